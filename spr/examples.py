"""Measured images beside what the model predicts for them."""

from __future__ import annotations

import torch
from torch import Tensor

from common.atoms.image_model import Band
from common.atoms.likelihood import expose_views, measure, views_of
from common.atoms.model import AtomicModel
from common.data import ImageStack
from common.noise import NoiseModel
from common.report import ImageExamples, pick_examples
from spr.model_parts import select_images

_RESOLUTION = 1.2  # angstrom; finer detail is noise to the eye
_MARGIN = 3.0  # angstrom shown around the particle


def example_images(stack: ImageStack, noise: NoiseModel, model: AtomicModel, numbers: Tensor) -> ImageExamples:
    """The best, median and worst explained images.

    Parameters
    ----------
    stack, noise : the images of the model, raw. numbers : (m,) their rows in the input, from 0.

    Returns
    -------
    Whitened images cut around the particle, low-passed to 1.2 angstrom, and the model's, in units of the noise.
    """
    chosen, groups = pick_examples(model.correlation.cpu())
    rows = chosen.to(model.correlation.device)
    few = select_images(model, rows)
    centre = few.positions.mean(0)
    centres = few.poses.shifts + (few.poses.rotations @ centre)[:, :2]
    radius = float(torch.linalg.vector_norm(few.positions - centre, dim=1).max())
    side = min(2 * round((radius + _MARGIN) / stack.pixel_size), stack.box_size)
    data = measure(stack[rows], noise[rows], centres, side=side, limits=[1 / _RESOLUTION])[0]
    predicted = expose_views(few.parameters, views_of(few.parameters), data).model
    measured, made = (picture(values, data.band).float().cpu() for values in (data.spectra, predicted))
    scale = data.band.box / data.band.coarse
    return ImageExamples(
        numbers[rows].cpu() + 1, groups, few.correlation.cpu(), measured, made, stack.pixel_size * scale
    )


def picture(values: Tensor, band: Band) -> Tensor:
    """Images (..., m, m) from whitened coefficients (..., f) of `common.atoms.likelihood.Measurement`."""
    m = band.coarse
    spectrum = values.new_zeros(*values.shape[:-1], m * (m // 2 + 1))
    spectrum[..., band.index] = values * band.halved.sqrt()
    return torch.fft.irfft2(spectrum.unflatten(-1, (m, m // 2 + 1)), s=(m, m), norm="ortho")
