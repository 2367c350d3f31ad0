"""The final atoms through multislice: images by another program's physics against the measured ones."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from common.atoms.likelihood import Measurement, expose_views, measure, views_of
from common.atoms.model import AtomicModel
from common.atoms.verification import MultisliceCheck
from common.data import ImageStack, InputError
from common.extras import require_abtem
from common.noise import NoiseModel
from common.simulation import multislice_images
from spr.model_parts import select_images

_RESOLUTION = 1.0  # angstrom
_MARGIN = 3.0  # angstrom around the particle
_B_FACTORS = (0.2, 0.5, 0.8, 1.2, 2.0, 3.5)  # angstrom^2, of which the images choose
_TRIALS = 3  # images by which they do


def check_can_run(stack: ImageStack, element: str) -> None:
    """InputError unless multislice of these particles is possible."""
    if stack.optics is None:
        raise InputError("multislice_images needs a defocus for each image, and the images have none: set it to 0")
    if element == "X":
        raise InputError("multislice_images needs the species of the atoms: say --element, or set it to 0")
    require_abtem("multislice_images")


def check_by_multislice(
    stack: ImageStack, noise: NoiseModel, model: AtomicModel, numbers: Tensor, *, count: int
) -> MultisliceCheck:
    """Compare ``count`` measured images, spread evenly over the stack, with multislice images of the atoms.

    Parameters
    ----------
    stack, noise : the m images of the model, raw, with optics. numbers : (m,) their rows in the input, from 0.
    count : images, at least 1.

    Notes
    -----
    Positions, poses, defocus and focal spread are the model's; the potential is that of neutral atoms, with the B
    factor among a few that agrees best. Scale and offset of an image do not count in a correlation.
    """
    rows = torch.linspace(0, len(stack) - 1, min(count, len(stack)), device=numbers.device).round().long()
    trial_rows = rows[torch.linspace(0, len(rows) - 1, min(_TRIALS, len(rows))).round().long()]
    trials = [(b, _correlations(stack, noise, model, trial_rows, b)[1].mean()) for b in _B_FACTORS]
    b_factor = max(trials, key=lambda trial: float(trial[1]))[0]
    return MultisliceCheck(numbers[rows], *_correlations(stack, noise, model, rows, b_factor), b_factor)


def _correlations(
    stack: ImageStack, noise: NoiseModel, model: AtomicModel, rows: Tensor, b_factor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(k,) each: measured with model, measured with multislice, multislice with model."""
    few, few_noise, part = stack[rows], noise[rows], select_images(model, rows)
    centre = part.positions.mean(0)
    centres = part.poses.shifts + (part.poses.rotations @ centre)[:, :2]
    radius = float(torch.linalg.vector_norm(part.positions - centre, dim=1).max())
    side = min(2 * round((radius + _MARGIN) / stack.pixel_size), stack.box_size)

    def measured(images: ImageStack) -> Measurement:
        return measure(images, few_noise, centres, side=side, limits=[1 / _RESOLUTION])[0]

    data = measured(few)
    expected = expose_views(part.parameters, views_of(part.parameters), data).model
    made = measured(_multislice_stack(few, few_noise, part, b_factor)).spectra
    pairs = ((data.spectra, expected), (data.spectra, made), (made, expected))
    found = [_correlation(a, b).cpu() for a, b in pairs]
    return found[0], found[1], found[2]


def _multislice_stack(stack: ImageStack, noise: NoiseModel, model: AtomicModel, b_factor: float) -> ImageStack:
    """The images that multislice predicts, with the vacuum level of the measured ones."""
    placed = (model.positions - model.positions.mean(0)) @ model.poses.rotations.mT
    moved = (model.poses.rotations @ model.positions.mean(0))[:, :2] + model.poses.shifts
    views = placed + torch.nn.functional.pad(moved, (0, 1))[:, None]
    optics = stack.optics
    if optics is None:
        raise InputError("the images have no optics, expected a defocus for each to compare them with multislice")
    focus = optics.defocus.clone()
    focus[:, :2] += model.defocus_offsets[:, None].to(focus)
    spread = torch.full_like(optics.focal_spread, float(model.parameters.focal_spread))
    images = multislice_images(
        list(model.symbols),
        views.cpu(),
        replace(optics, defocus=focus, focal_spread=spread).to("cpu"),
        box_size=stack.box_size,
        pixel_size=stack.pixel_size,
        b_factor=b_factor,
    ).to(stack.images.device)
    raw = noise.mean[:, None, None] + (images - 1) * noise.scale[:, None, None]
    return replace(stack, images=raw)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Of complex coefficients (k, f)."""
    cross = (a.conj() * b).real.sum(1)
    return cross / (torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1))
