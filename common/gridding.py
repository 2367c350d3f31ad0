"""Fourier transforms of maps at any frequency, by gridding.

The *oversampled transform* of a map in a box of d pixels is its Fourier transform in steps of half of 1 / d, complex
(m, m, m), frequency zero at ``m // 2``, cut to the frequencies in use. Values between the grid points are taken with a
Kaiser-Bessel window, whose effect on the map is divided out beforehand [1]_, [2]_.

References
----------
.. [1] Jackson, Meyer, Nishimura, Macovski, "Selection of a convolution function for Fourier inversion using gridding",
   IEEE Trans. Med. Imaging 10, 473 (1991). doi:10.1109/42.97598
.. [2] Fessler, Sutton, "Nonuniform fast Fourier transforms using min-max interpolation",
   IEEE Trans. Signal Process. 51, 560 (2003). doi:10.1109/TSP.2002.807005 (the least-squares scaling)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from common.data import InputError

OVERSAMPLING = 2
_TAPS = 4
_DEGREE = 9  # of the polynomial on each unit interval of the window; within 1e-8 of Kaiser-Bessel
_BETA = 9.5  # best for particles inside 0.4 of the box: error 2e-4 per axis there, 3e-3 at the very edge of the box
_CHUNK = 8192  # points interpolated at once: 64 weights and indices each, kept within the processor's cache


@lru_cache(maxsize=1)
def _window() -> np.ndarray:
    """Coefficients (degree + 1, taps): tap j at fraction f of a grid step has the weight sum_i c[i, j] f^i."""
    nodes = 0.5 - 0.5 * np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    columns = []
    for tap in range(_TAPS):
        distance = (nodes - (tap - _TAPS // 2 + 1)) / (_TAPS / 2)
        values = np.i0(_BETA * np.sqrt(np.clip(1 - distance**2, 0, None))) / np.i0(_BETA)
        columns.append(np.polynomial.polynomial.polyfit(nodes, values, _DEGREE))
    return np.stack(columns, -1)


@lru_cache(maxsize=32)
def _window_transform(box_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over grid offsets of the interpolated ``exp(2 pi i k x)`` and of its square, at each pixel: (d,) each."""
    fractions = (np.arange(256) + 0.5) / 256
    weights = np.vander(fractions, _DEGREE + 1, increasing=True) @ _window()
    distance = fractions[:, None] - (np.arange(_TAPS) - _TAPS // 2 + 1)
    x = (np.arange(box_size) - box_size // 2) / (OVERSAMPLING * box_size)
    response = (weights[..., None] * np.exp(2j * np.pi * distance[..., None] * x)).sum(1)
    return response.mean(0).real, (np.abs(response) ** 2).mean(0)


def window_volume() -> float:
    """The integral of the three-dimensional window, in cells of the oversampled transform."""
    integral = (_window() / (np.arange(_DEGREE + 1)[:, None] + 1)).sum()
    return float(integral**3)


def largest_shell(box_size: int) -> int:
    """The outermost shell inside the circle of Nyquist: all its points stay in the box's cube however it is turned."""
    return (box_size - 1) // 2


def _fourier_matrix(box_size: int, max_shell: int, scale: np.ndarray, like: Tensor) -> Tensor:
    """(m, d) of ``scale[x] exp(-2 pi i k x / (2 d))`` for k = -h..h, reaching past ``max_shell`` by the window."""
    half = transform_size(max_shell) // 2
    k = np.arange(-half, half + 1)[:, None]
    x = np.arange(box_size) - box_size // 2
    matrix = torch.from_numpy(scale * np.exp((-2j * np.pi / (OVERSAMPLING * box_size)) * (k * x)))
    return matrix.to(dtype=like.dtype.to_complex(), device=like.device)


def transform_size(max_shell: int) -> int:
    """m of the oversampled transform that serves shells up to ``max_shell``: the window reaches past them."""
    return 2 * (OVERSAMPLING * max_shell + _TAPS // 2 + 1) + 1


def checked_shell(box_size: int, max_shell: int | None) -> int:
    """``max_shell``, or :func:`largest_shell` when None; InputError when it is negative or passes that."""
    limit = largest_shell(box_size)
    if max_shell is None:
        return limit
    if not 0 <= max_shell <= limit:
        raise InputError(f"max_shell is {max_shell}, expected 0 to {limit} for a box of {box_size} pixels")
    return max_shell


def oversampled_transform(values: Tensor, max_shell: int | None = None) -> Tensor:
    """The transform from which slices are interpolated.

    Parameters
    ----------
    values : (d, d, d) real.
    max_shell : the outermost shell (in steps of 1 / (d voxel_size)) that will be asked for; None: all inside Nyquist.

    Returns
    -------
    complex (m, m, m), Hermitian about ``m // 2``, with the window's effect divided out. Differentiable.
    """
    mean, square = _window_transform(values.shape[-1])
    return _to_transform(values, max_shell, mean / square)


def averaged_transform(values: Tensor, max_shell: int | None = None) -> Tensor:
    """The transform averaged over the window around each grid point; :func:`map_from_transform` inverts it."""
    mean, _ = _window_transform(values.shape[-1])
    return _to_transform(values, max_shell, mean / mean[values.shape[-1] // 2])


def _to_transform(values: Tensor, max_shell: int | None, scale: np.ndarray) -> Tensor:
    d = values.shape[-1]
    matrix = _fourier_matrix(d, checked_shell(d, max_shell), scale, values)
    half = matrix.shape[0] // 2
    right = values.to(matrix.dtype) @ matrix[half:].T  # k_x >= 0; the rest follows from Hermitian symmetry
    right = matrix @ right
    right = torch.tensordot(matrix, right, dims=([1], [0]))
    left = right[..., 1:].flip((0, 1, 2)).conj()
    return torch.cat((left, right), -1)


def oversampled_adjoint(transform: Tensor, box_size: int) -> Tensor:
    """The adjoint of :func:`oversampled_transform`: real (d, d, d) from complex (m, m, m)."""
    mean, square = _window_transform(box_size)
    return _to_map(transform, box_size, mean / square)


def map_from_transform(transform: Tensor, box_size: int) -> Tensor:
    """The map whose window-averaged transform is given: the inverse used when points were spread with the window.

    Parameters
    ----------
    transform : complex (m, m, m), averages of the map's transform over the window around each grid point.
    box_size : d, pixels.

    Returns
    -------
    real (d, d, d).
    """
    mean, _ = _window_transform(box_size)
    origin = mean[box_size // 2]
    return _to_map(transform, box_size, origin / mean) / (OVERSAMPLING * box_size) ** 3


def _to_map(transform: Tensor, box_size: int, scale: np.ndarray) -> Tensor:
    shell = (transform.shape[-1] - 1 - _TAPS) // (2 * OVERSAMPLING)
    matrix = _fourier_matrix(box_size, shell, scale, transform.real).conj()
    half = matrix.shape[0] // 2
    # a real map sees only the Hermitian part, so half of k_x is enough
    folded = transform[..., half:].clone()
    folded[..., 1:] += transform[..., :half].flip((0, 1, 2)).conj()
    folded = torch.tensordot(matrix, folded, dims=([0], [0]))
    folded = matrix.T @ folded
    right = matrix[half:]
    return folded.real @ right.real - folded.imag @ right.imag


def _cells(points: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Flat index of the first tap (q,) and the fractions of a grid step past it (3, 1, q), for points in grid steps."""
    transposed = points.T.contiguous()
    floor = transposed.floor()
    first = floor.long() + (size // 2 - _TAPS // 2 + 1)
    return (first[2] * size + first[1]) * size + first[0], (transposed - floor)[:, None, :]


def _weights(fractions: Tensor) -> Tensor:
    """The window's weights (3, taps, q) along x, y, z."""
    c = torch.from_numpy(_window()).to(fractions)[:, None, :, None]
    weights = c[_DEGREE] * fractions + c[_DEGREE - 1]
    for i in range(_DEGREE - 2, -1, -1):
        weights = torch.addcmul(c[i], weights, fractions)
    return weights


def _slopes(fractions: Tensor) -> Tensor:
    """The derivatives of :func:`_weights`, per grid step."""
    c = torch.from_numpy(_window()).to(fractions)[:, None, :, None]
    slopes = (_DEGREE * c[_DEGREE]) * fractions + (_DEGREE - 1) * c[_DEGREE - 1]
    for i in range(_DEGREE - 2, 0, -1):
        slopes = torch.addcmul(i * c[i], slopes, fractions)
    return slopes


def _offsets(size: int, device: torch.device) -> Tensor:
    step = torch.arange(_TAPS, device=device)
    return ((step[:, None, None] * size + step[:, None]) * size + step).flatten()


def _index(first: Tensor, size: int) -> Tensor:
    offsets = _offsets(size, first.device)
    if size**3 < 2**31:
        return first.int()[:, None] + offsets.int()
    return first[:, None] + offsets


def _outer(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(q, taps^3) products of the weights (taps, q) along each axis."""
    zy = (z.T[:, :, None] * y.T[:, None, :]).flatten(1)
    return (zy[:, :, None] * x.T[:, None, :]).flatten(1)


def _gather(grid: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    pairs = torch.view_as_real(grid.resolve_conj().contiguous()).view(-1, 2)
    summed = torch.nn.functional.embedding_bag(index, pairs, mode="sum", per_sample_weights=weights)
    return torch.view_as_complex(summed)


def spread_channels(channels: Sequence[Tensor], points: Tensor, size: int) -> list[Tensor]:
    """Several real values (q,) at the same points spread to one grid (m, m, m) each; see :func:`spread_points`."""
    grids = [channel.new_zeros(size**3) for channel in channels]
    for start in range(0, len(points), _CHUNK):
        first, fractions = _cells(points[start : start + _CHUNK], size)
        index = (first[:, None] + _offsets(size, first.device)).flatten()
        x, y, z = _weights(fractions)
        outer = _outer(z, y, x)
        for grid, channel in zip(grids, channels, strict=True):
            grid.scatter_add_(0, index, (outer * channel[start : start + _CHUNK, None]).flatten())
    return [grid.view(size, size, size) for grid in grids]


def spread_points(values: Tensor, points: Tensor, size: int) -> Tensor:
    """The adjoint of :func:`interpolate_points`: add values at points to a grid of zeros.

    Parameters
    ----------
    values : (q,) complex or real.
    points : (q, 3) of (k_x, k_y, k_z) in grid steps from frequency zero.
    size : m of the grid.

    Returns
    -------
    (m, m, m), as the values real or complex.
    """
    if not values.is_complex():
        return spread_channels((values,), points, size)[0]
    return torch.complex(*spread_channels((values.real, values.imag), points, size))


def interpolate_with_gradient(grid: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Values (q,) and their gradients (q, 3) along (x, y, z), per grid step, at points of an oversampled transform."""
    size = grid.shape[-1]
    values, gradients = [], []
    for start in range(0, len(points), _CHUNK):
        first, fractions = _cells(points[start : start + _CHUNK], size)
        (x, y, z), (dx, dy, dz) = _weights(fractions), _slopes(fractions)
        index = _index(first, size)
        values.append(_gather(grid, index, _outer(z, y, x)))
        slopes = (_outer(z, y, dx), _outer(z, dy, x), _outer(dz, y, x))
        gradients.append(torch.stack([_gather(grid, index, slope) for slope in slopes], -1))
    return torch.cat(values), torch.cat(gradients)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, grid: Tensor, points: Tensor) -> Tensor:
        ctx.save_for_backward(grid, points)
        size = grid.shape[-1]
        values = []
        for start in range(0, len(points), _CHUNK):
            first, fractions = _cells(points[start : start + _CHUNK], size)
            x, y, z = _weights(fractions)
            values.append(_gather(grid, _index(first, size), _outer(z, y, x)))
        return torch.cat(values) if values else grid.new_zeros(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        grid, points = ctx.saved_tensors  # type: ignore[attr-defined]
        for_grid, for_points = ctx.needs_input_grad  # type: ignore[attr-defined]
        spread = spread_points(gradients[0], points, grid.shape[-1]) if for_grid else None
        if not for_points:
            return spread, None
        _, slopes = interpolate_with_gradient(grid, points)
        return spread, (slopes.conj() * gradients[0][:, None]).real


def interpolate_points(grid: Tensor, points: Tensor) -> Tensor:
    """An oversampled transform at any points.

    Parameters
    ----------
    grid : complex (m, m, m) of :func:`oversampled_transform`.
    points : (q, 3) of (k_x, k_y, k_z) in grid steps (half the frequency step of the box) from frequency zero;
        ``|k| <= 2 max_shell + 1`` on each axis.

    Returns
    -------
    (q,) complex. Differentiable in both; the adjoint in the grid is :func:`spread_points`.
    """
    return _Interpolate.apply(grid, points)
