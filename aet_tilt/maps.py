"""The volume of a tilt series with its two halves, by one method of reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aet_tilt.preprocessing import Preprocessed, for_reconstruction
from aet_tilt.reconstruction.methods import (
    Method,
    MethodOrAuto,
    ReconstructionSettings,
    choose_method,
    find_support,
    reconstruct_values,
)
from aet_tilt.reconstruction.problem import Problem, make_problem
from common.data import ImageStack, InputError, Poses, Volume
from common.fourier import crop_or_pad
from common.iteration import Observer
from common.resolution import FSC, fourier_shell_correlation


@dataclass(frozen=True)
class Maps:
    """volume : of all images. halves : of every second image each. fsc : of the halves. reason : of the method."""

    volume: Volume
    halves: tuple[Volume, Volume]
    fsc: FSC
    reason: str


def check_method(stack: ImageStack, method: MethodOrAuto) -> None:
    """InputError for a method that takes images for projections where these have a focus."""
    if stack.focus is not None and method in ("genfire", "est"):
        raise InputError(
            f"{method} takes images for projections, and images with a focus are none; use sieve or resire"
        )


def make_maps(
    clean: Preprocessed,
    poses: Poses,
    method: MethodOrAuto,
    settings: ReconstructionSettings,
    observers: Sequence[Observer],
) -> Maps:
    """The volume of an isolated particle by the chosen method, and two of half the images each."""
    images = for_reconstruction(clean)
    problem = _supported(images, poses, settings)
    if images.focus is not None:
        chosen: Method = "sieve" if method == "auto" or method == "fbp" else method
        return maps_of(problem, chosen, settings, f"{chosen}, with depth of field", observers)
    if method == "auto":
        choice = choose_method(problem, settings)
        return maps_of(problem, choice.method, choice.settings, choice.reason, observers)
    return maps_of(problem, method, settings, "as asked for", observers)


def _supported(images: ImageStack, poses: Poses, settings: ReconstructionSettings) -> Problem:
    posed = Poses(poses.rotations.to(images.images), poses.shifts.to(images.images))
    return find_support(make_problem(images, posed), settings)


def first_volume(clean: Preprocessed, poses: Poses, settings: ReconstructionSettings) -> Volume:
    """A quick one, by filtered back-projection, which takes images for projections."""
    images = replace(for_reconstruction(clean), focus=None)
    problem = _supported(images, poses, settings)
    return Volume(as_cube(reconstruct_values(problem, "fbp", settings)), images.pixel_size)


def maps_of(
    problem: Problem, method: Method, chosen: ReconstructionSettings, reason: str, observers: Sequence[Observer]
) -> Maps:
    """The volume and its halves by one method."""
    rows = torch.arange(len(problem.operator), device=problem.images.device)
    parts = (("volume", rows), ("half1", rows[::2]), ("half2", rows[1::2]))
    values = [
        reconstruct_values(problem.subset(part), method, chosen, name=name, observers=observers) for name, part in parts
    ]
    whole, one, two = (Volume(as_cube(v), problem.operator.pixel_size) for v in values)
    return Maps(whole, (one, two), fourier_shell_correlation(one, two), reason)


def as_cube(values: Tensor) -> Tensor:
    """A volume (D, r, D) with empty rows (D, D, D)."""
    d = values.shape[0]
    if values.shape[1] == d:
        return values
    return crop_or_pad(values.transpose(1, 2), d, 1).transpose(1, 2).contiguous()
