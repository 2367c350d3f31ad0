"""How long a particle of unknown orientation is, from the mean power that it adds around the middle of its images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.noise_spectrum import shell_grid

_ASPECTS = (1 / 3, 1 / 2, 2 / 3, 3 / 2, 2.0, 3.0)  # of the ellipsoids that a particle may be like
_UNLIKE_BALL, _WANDERING = 4.0, 4.0  # of the priors: an octave of aspect; a spread of a whole radius, squared


def radial_mean(image: Tensor, bins: Tensor) -> Tensor:
    """Mean of an image (d, d) over the pixels of each of the ``bins`` (d, d), double precision."""
    flat = bins.flatten()
    return torch.bincount(flat, weights=image.flatten().double()) / torch.bincount(flat).clamp(min=1)


def _misfit(profile: Tensor, shapes: Tensor, error: Tensor) -> Tensor:
    """Chi-squared of a profile (m,) against level + height x each of ``shapes`` (s, m), both fitted, height >= 0."""
    weight = error**-2 / (error**-2).sum()
    shapes = shapes - (shapes * weight).sum(1, keepdim=True)
    profile = profile - (profile * weight).sum()
    height = ((shapes * profile * weight).sum(1) / (shapes**2 * weight).sum(1)).clamp(min=0)
    return (((profile - height[:, None] * shapes) / error) ** 2).sum(1)


def mean_thickness(r: Tensor, radius: float, aspect: float, steps: int = 64) -> Tensor:
    """Thickness, averaged over all orientations, of an ellipsoid of revolution at distances ``r`` from its centre.

    Parameters
    ----------
    radius : the longest semi-axis, in the unit of ``r``.
    aspect : axis of revolution over the other two; above 1 a needle, below 1 a disc, 1 a ball.
    """
    shortest = radius / max(aspect, 1 / aspect)
    half = torch.sqrt((radius**2 - r**2).clamp(min=0))
    if aspect == 1:
        return half
    # along each ray, the share of orientations in which the ellipsoid holds the point
    depth = (torch.arange(steps, dtype=r.dtype, device=r.device) + 0.5) / steps
    inverse = 1 / (r[..., None] ** 2 + (half[..., None] * depth) ** 2).clamp(min=1e-12)
    bent = 1 / shortest**2 - 1 / radius**2
    if aspect > 1:
        share = 1 - torch.sqrt(((1 / shortest**2 - inverse) / bent).clamp(0, 1))
    else:
        share = torch.sqrt(((inverse - 1 / radius**2) / bent).clamp(0, 1))
    return half * share.mean(-1)


def fit_extent(profile: Tensor, error: Tensor, response: Tensor, r: Tensor) -> tuple[float, float]:
    """Radius and spread, pixels, of the ellipsoid whose mean thickness, blurred by its shifts, is most like a profile.

    Parameters
    ----------
    profile, error : (m,) mean power at distances 0 .. m - 1 pixels from the middle, and its standard deviation.
    response : (d, d // 2 + 1) ``rfft2`` of what a point becomes. r : (d, d) pixels from the middle.
    """
    d, used = r.shape[0], slice(0, len(profile))
    bins = r.round().long()
    every = torch.arange(0.0, 0.12 * d, 0.5, device=r.device)
    blurs = torch.exp(-2 * (math.pi * every[:, None, None] * shell_grid(d, r.device) / d) ** 2)

    def fitted(radius: float, aspect: float) -> tuple[float, float, float]:
        """Misfit with the priors, radius and spread of the best spread for this shape."""
        shape = torch.fft.rfft2(torch.fft.ifftshift(mean_thickness(r, radius, aspect))) * response
        spreads = every[every < radius]
        blurred = torch.fft.fftshift(torch.fft.irfft2(shape * blurs[: len(spreads)], s=(d, d)), dim=(-2, -1))
        shapes = torch.stack([radial_mean(one, bins)[used] for one in blurred])
        prior = (_WANDERING * spreads / radius) ** 2 + _UNLIKE_BALL * abs(math.log2(aspect))
        misfit = _misfit(profile, shapes, error) + prior
        return float(misfit.min()), radius, float(spreads[misfit.argmin()])

    best = min(fitted(radius, 1.0) for radius in torch.arange(3.0, d / 2, 0.5).tolist())
    lengths = [best[1] * 1.08**k for k in range(-2, 16) if 3 <= best[1] * 1.08**k < d / 2]
    _, radius, spread = min(best, *(fitted(radius, aspect) for aspect in _ASPECTS for radius in lengths))
    return radius, spread
