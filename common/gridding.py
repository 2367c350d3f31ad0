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
TAPS = 4  # of the window along each axis; 2 is eight times faster and serves where per cents do not matter
_DEGREE = 9  # of the polynomial on each unit interval of the window; within 1e-8 of Kaiser-Bessel
_BETA = {2: 5.0, 4: 9.5}  # 4 taps: error 2e-4 per axis inside 0.4 of the box, 3e-3 at its edge; 2: 3e-2 inside 0.4
_CHUNK = 8192  # points interpolated at once: 64 weights and indices each, kept within the processor's cache


@lru_cache(maxsize=2)
def _window(taps: int) -> np.ndarray:
    """Coefficients (degree + 1, taps): tap j at fraction f of a grid step has the weight sum_i c[i, j] f^i."""
    nodes = 0.5 - 0.5 * np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    columns = []
    for tap in range(taps):
        distance = (nodes - (tap - taps // 2 + 1)) / (taps / 2)
        values = np.i0(_BETA[taps] * np.sqrt(np.clip(1 - distance**2, 0, None))) / np.i0(_BETA[taps])
        columns.append(np.polynomial.polynomial.polyfit(nodes, values, _DEGREE))
    return np.stack(columns, -1)


@lru_cache(maxsize=32)
def _window_transform(box_size: int, taps: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over grid offsets of the interpolated ``exp(2 pi i k x)`` and of its square, at each pixel: (d,) each."""
    fractions = (np.arange(256) + 0.5) / 256
    weights = np.vander(fractions, _DEGREE + 1, increasing=True) @ _window(taps)
    distance = fractions[:, None] - (np.arange(taps) - taps // 2 + 1)
    x = (np.arange(box_size) - box_size // 2) / (OVERSAMPLING * box_size)
    response = (weights[..., None] * np.exp(2j * np.pi * distance[..., None] * x)).sum(1)
    return response.mean(0).real, (np.abs(response) ** 2).mean(0)


def window_volume(taps: int = TAPS) -> float:
    """The integral of the three-dimensional window, in cells of the oversampled transform."""
    integral = (_window(taps) / (np.arange(_DEGREE + 1)[:, None] + 1)).sum()
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
    return 2 * (OVERSAMPLING * max_shell + TAPS // 2 + 1) + 1


def checked_shell(box_size: int, max_shell: int | None) -> int:
    """``max_shell``, or :func:`largest_shell` when None; InputError when it is negative or passes that."""
    limit = largest_shell(box_size)
    if max_shell is None:
        return limit
    if not 0 <= max_shell <= limit:
        raise InputError(f"max_shell is {max_shell}, expected 0 to {limit} for a box of {box_size} pixels")
    return max_shell


def oversampled_transform(values: Tensor, max_shell: int | None = None, *, taps: int = TAPS) -> Tensor:
    """The transform from which slices are interpolated.

    Parameters
    ----------
    values : (d, d, d) real.
    max_shell : the outermost shell (in steps of 1 / (d voxel_size)) that will be asked for; None: all inside Nyquist.
    taps : of the window that will be interpolated with, 2 or 4.

    Returns
    -------
    complex (m, m, m), Hermitian about ``m // 2``, with the window's effect divided out. Differentiable.
    """
    mean, square = _window_transform(values.shape[-1], taps)
    return _to_transform(values, max_shell, mean / square)


def transform_and_slopes(values: Tensor, max_shell: int | None = None) -> Tensor:
    """The oversampled transform and its slopes along (k_x, k_y, k_z), per grid step: complex (m, m, m, 4).

    The slopes are transforms too, of the map times ``-i pi x / d``, so that one interpolation
    (:func:`interpolate_channels`) serves all four. Parameters as for :func:`oversampled_transform`.
    """
    d = values.shape[-1]
    step = torch.pi / d * (torch.arange(d, device=values.device, dtype=values.dtype) - d // 2)
    weighted = (values * step, values * step[:, None], values * step[:, None, None])
    slopes = [-1j * oversampled_transform(each, max_shell) for each in weighted]
    return torch.stack((oversampled_transform(values, max_shell), *slopes), -1)


def averaged_transform(values: Tensor, max_shell: int | None = None) -> Tensor:
    """The transform averaged over the window around each grid point; :func:`map_from_transform` inverts it."""
    mean, _ = _window_transform(values.shape[-1], TAPS)
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


def oversampled_adjoint(transform: Tensor, box_size: int, *, taps: int = TAPS) -> Tensor:
    """The adjoint of :func:`oversampled_transform`: real (d, d, d) from complex (m, m, m)."""
    mean, square = _window_transform(box_size, taps)
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
    mean, _ = _window_transform(box_size, TAPS)
    origin = mean[box_size // 2]
    return _to_map(transform, box_size, origin / mean) / (OVERSAMPLING * box_size) ** 3


def _to_map(transform: Tensor, box_size: int, scale: np.ndarray) -> Tensor:
    shell = (transform.shape[-1] - 1 - TAPS) // (2 * OVERSAMPLING)
    matrix = _fourier_matrix(box_size, shell, scale, transform.real).conj()
    half = matrix.shape[0] // 2
    # a real map sees only the Hermitian part, so half of k_x is enough
    folded = transform[..., half:].clone()
    folded[..., 1:] += transform[..., :half].flip((0, 1, 2)).conj()
    folded = torch.tensordot(matrix, folded, dims=([0], [0]))
    folded = matrix.T @ folded
    right = matrix[half:]
    return folded.real @ right.real - folded.imag @ right.imag


def _cells(points: Tensor, size: int, taps: int) -> tuple[Tensor, Tensor]:
    """Flat index of the first tap (q,) and the fractions of a grid step past it (3, 1, q), for points in grid steps."""
    transposed = points.T.contiguous()
    floor = transposed.floor()
    first = floor.long() + (size // 2 - taps // 2 + 1)
    return (first[2] * size + first[1]) * size + first[0], (transposed - floor)[:, None, :]


def _weights(fractions: Tensor, taps: int) -> Tensor:
    """The window's weights (3, taps, q) along x, y, z."""
    c = torch.from_numpy(_window(taps)).to(fractions)[:, None, :, None]
    weights = c[_DEGREE] * fractions + c[_DEGREE - 1]
    for i in range(_DEGREE - 2, -1, -1):
        weights = torch.addcmul(c[i], weights, fractions)
    return weights


def _slopes(fractions: Tensor, taps: int) -> Tensor:
    """The derivatives of :func:`_weights`, per grid step."""
    c = torch.from_numpy(_window(taps)).to(fractions)[:, None, :, None]
    slopes = (_DEGREE * c[_DEGREE]) * fractions + (_DEGREE - 1) * c[_DEGREE - 1]
    for i in range(_DEGREE - 2, 0, -1):
        slopes = torch.addcmul(i * c[i], slopes, fractions)
    return slopes


def _offsets(size: int, taps: int, device: torch.device) -> Tensor:
    step = torch.arange(taps, device=device)
    return ((step[:, None, None] * size + step[:, None]) * size + step).flatten()


def _index(first: Tensor, size: int, taps: int) -> Tensor:
    offsets = _offsets(size, taps, first.device)
    if size**3 < 2**31:
        return first.int()[:, None] + offsets.int()
    return first[:, None] + offsets


def _outer(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(q, taps^3) products of the weights (taps, q) along each axis."""
    z, y, x = (weights.T.contiguous() for weights in (z, y, x))  # else the products are laid out to be copied
    zy = (z[:, :, None] * y[:, None, :]).flatten(1)
    return (zy[:, :, None] * x[:, None, :]).flatten(1)


def _gather(grid: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums (q, c) of the rows ``index`` (q, taps^3) of a complex grid (m, m, m, c)."""
    c = grid.shape[-1]
    rows = torch.view_as_real(grid.resolve_conj().contiguous()).view(-1, 2 * c)
    summed = torch.nn.functional.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)
    return torch.view_as_complex(summed.view(-1, c, 2))


def spread_channels(channels: Sequence[Tensor], points: Tensor, size: int, *, taps: int = TAPS) -> list[Tensor]:
    """Several real values (q,) at the same points spread to one grid (m, m, m) each; see :func:`spread_points`."""
    grids = [channel.new_zeros(size**3) for channel in channels]
    for start in range(0, len(points), _CHUNK):
        first, fractions = _cells(points[start : start + _CHUNK], size, taps)
        index = (first[:, None] + _offsets(size, taps, first.device)).flatten()
        x, y, z = _weights(fractions, taps)
        outer = _outer(z, y, x)
        for grid, channel in zip(grids, channels, strict=True):
            grid.scatter_add_(0, index, (outer * channel[start : start + _CHUNK, None]).flatten())
    return [grid.view(size, size, size) for grid in grids]


def spread_points(values: Tensor, points: Tensor, size: int, *, taps: int = TAPS) -> Tensor:
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
        return spread_channels((values,), points, size, taps=taps)[0]
    return torch.complex(*spread_channels((values.real, values.imag), points, size, taps=taps))


def interpolate_with_gradient(grid: Tensor, points: Tensor, *, taps: int = TAPS) -> tuple[Tensor, Tensor]:
    """Values (q,) and their gradients (q, 3) along (x, y, z), per grid step, at points of an oversampled transform."""
    size = grid.shape[-1]
    values, gradients = [], []
    for start in range(0, len(points), _CHUNK):
        first, fractions = _cells(points[start : start + _CHUNK], size, taps)
        (x, y, z), (dx, dy, dz) = _weights(fractions, taps), _slopes(fractions, taps)
        index = _index(first, size, taps)
        values.append(_gather(grid[..., None], index, _outer(z, y, x))[:, 0])
        slopes = (_outer(z, y, dx), _outer(z, dy, x), _outer(dz, y, x))
        gradients.append(torch.cat([_gather(grid[..., None], index, slope) for slope in slopes], -1))
    return torch.cat(values), torch.cat(gradients)


def interpolate_channels(grid: Tensor, points: Tensor, *, taps: int = TAPS) -> Tensor:
    """Several transforms (m, m, m, c), held point by point, at the same points (q, 3): (q, c), not differentiable."""
    size = grid.shape[0]
    values = [grid.new_zeros(0, grid.shape[-1])]
    for part in points.split(_CHUNK):
        first, fractions = _cells(part, size, taps)
        x, y, z = _weights(fractions, taps)
        values.append(_gather(grid, _index(first, size, taps), _outer(z, y, x)))
    return torch.cat(values)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, grid: Tensor, points: Tensor, taps: int) -> Tensor:
        ctx.save_for_backward(grid, points)
        ctx.taps = taps  # type: ignore[attr-defined]
        return interpolate_channels(grid[..., None], points, taps=taps)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grid, points = ctx.saved_tensors  # type: ignore[attr-defined]
        taps = ctx.taps  # type: ignore[attr-defined]
        for_grid, for_points, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
        spread = spread_points(gradients[0], points, grid.shape[-1], taps=taps) if for_grid else None
        if not for_points:
            return spread, None, None
        _, slopes = interpolate_with_gradient(grid, points, taps=taps)
        return spread, (slopes.conj() * gradients[0][:, None]).real, None


def interpolate_points(grid: Tensor, points: Tensor, *, taps: int = TAPS) -> Tensor:
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
    return _Interpolate.apply(grid, points, taps)
