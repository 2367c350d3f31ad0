"""Masks about the origin, pixel ``n // 2``: soft balls and discs, image borders, and the tight mask of a map."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _radii(n: int, ndim: int, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    axis = torch.arange(n, dtype=dtype, device=device) - n // 2
    grids = torch.meshgrid(*[axis] * ndim, indexing="ij")
    return sum((g * g for g in grids), torch.zeros_like(grids[0])).sqrt()


def raised_cosine(distances: Tensor, edge: float) -> Tensor:
    """1 where the distance is <= 0, 0 where it is >= edge, half a cosine between; ``edge`` 0 gives a hard step."""
    if edge <= 0:
        return (distances <= 0).to(distances.dtype)
    return 0.5 + 0.5 * torch.cos(math.pi * (distances / edge).clamp(0, 1))


def soft_disc(
    n: int, radius: float, edge: float, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """(n, n), 1 within ``radius`` pixels of the origin, falling to 0 over ``edge`` pixels as a raised cosine."""
    return raised_cosine(_radii(n, 2, dtype, device) - radius, edge)


def soft_ball(
    n: int, radius: float, edge: float, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """(n, n, n), 1 within ``radius`` voxels of the origin, falling to 0 over ``edge`` voxels as a raised cosine."""
    return raised_cosine(_radii(n, 3, dtype, device) - radius, edge)


def border_mask(n: int, radius: float, *, device: torch.device | str | None = None) -> Tensor:
    """The pixels (n, n), bool, farther than ``radius`` pixels from the origin: background without the particle."""
    return _radii(n, 2, torch.float64, device) > radius


def smooth_gaussian(values: Tensor, sigma: float) -> Tensor:
    """A real (d, d, d) map convolved, periodically, with a Gaussian of rms width ``sigma`` voxels."""
    result = torch.fft.rfftn(values)
    for axis, d in enumerate(values.shape):
        last = axis == values.ndim - 1
        k = torch.fft.rfftfreq(d, device=values.device) if last else torch.fft.fftfreq(d, device=values.device)
        shape = [1] * values.ndim
        shape[axis] = -1
        result = result * torch.exp(-2 * (math.pi * sigma * k.to(values.dtype)) ** 2).reshape(shape)
    return torch.fft.irfftn(result, s=values.shape)


def grow(inside: Tensor, distance: float) -> Tensor:
    """A bool (d, d, d) mask grown by ``distance`` voxels on every side."""
    return _distance_outside(inside, math.ceil(distance)) <= distance


def _distance_outside(inside: Tensor, reach: int) -> Tensor:
    """The distance (voxels, exact up to ``reach``, more beyond) from each voxel to the mask, axis by axis."""
    far = float(4 * reach * reach + 4)
    square = torch.where(inside, 0.0, far).to(torch.float32)
    for axis in range(square.ndim):
        moved = square.movedim(axis, -1)
        length = moved.shape[-1]
        padded = torch.nn.functional.pad(moved, (reach, reach), value=far)
        best = moved
        for step in range(1, reach + 1):
            left, right = padded[..., reach - step :][..., :length], padded[..., reach + step :][..., :length]
            best = torch.minimum(best, torch.minimum(left, right) + step * step)
        square = best.movedim(-1, axis)
    return square.sqrt()


def tight_mask(
    values: Tensor, *, smoothing: float = 2.0, level: float = 0.15, margin: float = 2.0, edge: float = 4.0
) -> Tensor:
    """A soft mask that follows a map.

    Parameters
    ----------
    values : (d, d, d), the particle positive.
    smoothing : rms width of the Gaussian the map is smoothed with, voxels.
    level : threshold as a fraction of the smoothed map's 99.9th percentile, (0, 1).
    margin : how far the mask is grown, voxels.
    edge : width of the raised-cosine edge, voxels.

    Returns
    -------
    (d, d, d) in [0, 1]; all ones when the map is nowhere positive, so that nothing is hidden.
    """
    smooth = smooth_gaussian(values, smoothing)
    ordered = smooth.flatten().sort().values
    top = ordered[int(0.999 * (len(ordered) - 1))]
    if not bool(top > 0):
        return torch.ones_like(values)
    outside = _distance_outside(smooth > level * top, math.ceil(margin + edge))
    return raised_cosine(outside - margin, edge).to(values.dtype)
