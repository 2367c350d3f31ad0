"""The likeliest pose of every image in a map that a search found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.data import Poses
from common.iteration import step_generator
from spr.ab_initio import SearchSettings, SearchState, expect_all, trial_shifts
from spr.orientation_search import random_frames, views_of
from spr.ring_images import RingImages
from spr.ring_sampling import SearchGrid


@dataclass(frozen=True)
class Assignment:
    """The best pose of every image on a grid. log_likelihood : (n,) nats over no particle."""

    poses: Poses
    log_likelihood: Tensor


def assign(
    state: SearchState,
    images: RingImages,
    grid: SearchGrid,
    settings: SearchSettings,
    *,
    seed: int,
    rows: Tensor | None = None,
) -> Assignment:
    """Every image's best pose against the final map of a search, over all orientations and the shifts around it.

    rows : (k,) the images that are looked at; all when None.
    """
    frames = random_frames(grid.directions, generator=step_generator(seed, 10**6)).to(state.values)
    views = views_of(state.values, frames, grid.shells, images.rings.shape[-1], images.weights)
    every = torch.arange(len(images), device=state.shifts.device) if rows is None else rows
    width = settings.shift_step / float(images.frequencies.max())
    trials = trial_shifts(state.shifts[every], width)
    found = expect_all(images, every, trials, views, 1.0)
    return Assignment(Poses(found.rotations, found.shifts), found.best)
