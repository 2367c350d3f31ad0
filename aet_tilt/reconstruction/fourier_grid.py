"""The transforms of images laid onto the Cartesian grid of the volume's transform, for GENFIRE."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from aet_tilt.reconstruction.tilt_operator import kaiser_bessel, kaiser_bessel_transform
from common.data import Poses
from common.fourier import shift_images

_TAPS = 6


class MeasuredGrid(NamedTuple):
    """The grid points near the images' planes, in the half space of an rfft of m voxels.

    points : (g,) into (m, m, m // 2 + 1), flat, frequency zero first. values : (g,) complex, phases about voxel 0.
    frequencies : (g,) in [0, 0.5), cycles per voxel.
    """

    points: Tensor
    values: Tensor
    frequencies: Tensor


def lay_onto_grid(images: Tensor, poses: Poses, pixel_size: float, grid_size: int, reach: float) -> MeasuredGrid:
    """Weighted means of the images' transforms at the grid points near their planes (Pryor et al. 2017, eqs. 1-3).

    Parameters
    ----------
    images : (n, d, d). poses : n; shifts in angstrom. pixel_size : angstrom.
    grid_size : m >= d; the step of the grid is 1 / (m pixels).
    reach : the largest distance of a grid point from a plane, grid steps, (0, 1].

    Notes
    -----
    Each image's transform is taken at the foot of the perpendicular from the grid point onto its plane, interpolated
    from the oversampled transform of the image with a Kaiser-Bessel window; the weight is one over the distance.
    """
    m = grid_size
    half = m * m * (m // 2 + 1)
    real, imaginary, weight = (images.new_zeros(half) for _ in range(3))
    centred = shift_images(images, -poses.shifts / pixel_size)
    for image, rotation in zip(centred, poses.rotations, strict=True):
        points = _points_near_plane(rotation, m, reach)
        seen = points.to(rotation.dtype) @ rotation.T
        closeness = 1 / (seen[:, 2].abs() + 0.01)
        values = _sample_transform(image, seen[:, :2], m) * closeness
        # the half space with k_x > 0, and of the plane k_x = 0 both halves: there a point and its mate both stand
        x, y, z = points.unbind(-1)
        flat = ((z % m) * m + y % m) * (m // 2 + 1) + x
        real.index_add_(0, flat, values.real)
        imaginary.index_add_(0, flat, values.imag)
        weight.index_add_(0, flat, closeness)
    index = weight.nonzero().flatten()
    values = torch.complex(real[index], imaginary[index]) / weight[index]
    return MeasuredGrid(index, values, grid_frequencies(m, index).to(images.dtype))


def grid_frequencies(size: int, index: Tensor) -> Tensor:
    """Cycles per voxel of points of an rfft grid (m, m, m // 2 + 1), flat."""
    z, rest = index // (size * (size // 2 + 1)), index % (size * (size // 2 + 1))
    y, x = rest // (size // 2 + 1), rest % (size // 2 + 1)
    signed = [torch.where(axis > size // 2, axis - size, axis).double() for axis in (z, y, x)]
    return (signed[0] ** 2 + signed[1] ** 2 + signed[2] ** 2).sqrt() / size


def _points_near_plane(rotation: Tensor, size: int, reach: float) -> Tensor:
    """Grid points (g, 3) of (x, y, z), x >= 0, strictly inside Nyquist, within ``reach`` of the plane of a view."""
    normal = rotation[2]
    steep = int(normal.abs().argmax())
    others = [axis for axis in range(3) if axis != steep]
    line = torch.arange(-(size // 2) + 1, size // 2, device=rotation.device)
    a, b = (grid.flatten() for grid in torch.meshgrid(line, line, indexing="ij"))
    crossing = -(normal[others[0]] * a + normal[others[1]] * b) / normal[steep]
    # the plane stays within 54.7 degrees of its coordinate plane: no more than two points on each side
    around = torch.arange(-1, 3, device=rotation.device)
    c = (crossing.floor().long()[:, None] + around).flatten()
    points = torch.empty(len(c), 3, dtype=torch.long, device=rotation.device)
    points[:, others[0]], points[:, others[1]] = a.repeat_interleave(4), b.repeat_interleave(4)
    points[:, steep] = c
    near = (points.to(rotation.dtype) @ normal).abs() <= reach
    inside = 4 * points.square().sum(-1) < size * size
    return points[near & inside & (points[:, 0] >= 0)]


def _sample_transform(image: Tensor, points: Tensor, size: int) -> Tensor:
    """The transform of an image (d, d) at points (g, 2) of (x, y), in steps of 1 / size: complex (g,)."""
    d = image.shape[-1]
    m = max(size, 2 * d)
    window = kaiser_bessel_transform(d, m).to(image)
    padded = torch.nn.functional.pad(image / (window[:, None] * window), (0, m - d, 0, m - d))
    grid = torch.fft.fft2(padded.roll((-(d // 2), -(d // 2)), (0, 1))).flatten()
    u, v = (points * (m / size)).double().unbind(-1)
    step = torch.arange(_TAPS, device=image.device)
    at_u, at_v = (torch.floor(part).long()[:, None] - _TAPS // 2 + 1 + step for part in (u, v))
    along_u, along_v = (kaiser_bessel(part[:, None] - at).to(image) for part, at in ((u, at_u), (v, at_v)))
    index = ((at_v % m)[:, :, None] * m + (at_u % m)[:, None, :]).flatten(1)
    weights = (along_v[:, :, None] * along_u[:, None, :]).flatten(1)
    pairs = torch.view_as_real(grid)
    summed = torch.nn.functional.embedding_bag(index, pairs, mode="sum", per_sample_weights=weights)
    return torch.view_as_complex(summed)
