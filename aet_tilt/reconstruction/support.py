"""Where matter may be: first loosely, as far as the shadows allow, then tightly around a reconstruction."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aet_tilt.reconstruction.problem import Problem
from common.masks import grow, smooth_gaussian


def _smooth_images(images: Tensor, sigma: float) -> Tensor:
    k = torch.fft.fftfreq(images.shape[-1], device=images.device).to(images.dtype)
    fall = torch.exp(-2 * (math.pi * sigma * k) ** 2)
    return torch.fft.ifft2(torch.fft.fft2(images) * fall[:, None] * fall).real


def loose_support(problem: Problem, *, smoothing: float = 2.0, level: float = 0.08, agreement: float = 0.9) -> Tensor:
    """The voxels that lie in the shadow of the specimen in nearly all images.

    Parameters
    ----------
    problem : its images have no background.
    smoothing : rms width of the Gaussian that the images are smoothed with, pixels.
    level : of the shadows, as a fraction of the smoothed images' 99th percentile, (0, 1).
    agreement : share of the images in whose shadow a voxel must lie, among those that see it, (0, 1].

    Returns
    -------
    (d, d, d) of 0 and 1. Everything when nothing lies outside the shadows.
    """
    smooth = _smooth_images(problem.images, smoothing)
    ordered = smooth.flatten().sort().values
    top = ordered[int(0.99 * (len(ordered) - 1))]
    shadows = (smooth > level * top).to(smooth.dtype)
    seen = problem.operator.backproject(torch.ones_like(shadows))
    shaded = problem.operator.backproject(shadows)
    found = shaded >= agreement * seen
    return found.to(smooth.dtype) if bool(found.any()) else torch.ones_like(shaded)


def tighten(
    values: Tensor, support: Tensor, *, smoothing: float = 2.0, level: float = 0.1, margin: float = 3.0
) -> Tensor:
    """The part of a support near the matter of a reconstruction.

    Parameters
    ----------
    values, support : (d, d, d).
    smoothing : rms width of the Gaussian the map is smoothed with, voxels.
    level : threshold as a fraction of the smoothed map's 99.9th percentile, (0, 1).
    margin : how far the part is grown, voxels.

    Returns
    -------
    (d, d, d) of 0 and 1; the support as it was when the map is nowhere positive.
    """
    smooth = smooth_gaussian(values * support, smoothing)
    ordered = smooth.flatten().sort().values
    top = ordered[int(0.999 * (len(ordered) - 1))]
    if not bool(top > 0):
        return support
    return grow(smooth > level * top, margin).to(support.dtype) * support
