"""The map that fits averaged views best, inside its support."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from common.gridding import TAPS, oversampled_adjoint, spread_channels, transform_size
from common.masks import soft_ball

_NEGLIGIBLE = 1e-5  # of all posterior weight; views with less are left out


def maximise(
    sums: Tensor,
    counts: Tensor,
    points: Tensor,
    weights: Tensor,
    shells: Tensor,
    values: Tensor,
    *,
    support: float,
    ridge: float,
    symmetry: Tensor | None = None,
    iterations: int = 5,
    taps: int = TAPS,
) -> Tensor:
    """The next map: least squares over the averaged views, limited to a ball, by conjugate gradients from the last map.

    Parameters
    ----------
    sums : (m, 2 s, v) averaged images as angular orders; counts : (s, v) their squared transfer (`Expectation`).
    points : (v s A / 2, 3) where the samples lie (`Views`).
    weights : (s,) of the rings; shells : (s,) their radii in steps of 1 / (d voxel_size).
    values : (d, d, d) the last map.
    support : radius of the ball, voxels; at most a quarter of the box.
    ridge : prior weight of an empty map, as a fraction of the mean data weight.
    symmetry : (g, 3, 3) rotations of the particle onto itself.
    iterations : of the conjugate gradients. taps : of the gridding window, 2 (fast) or 4.

    Returns
    -------
    (d, d, d).
    """
    n_shells = len(shells)
    share = counts.sum(0)
    seen = (share > _NEGLIGIBLE * share.sum()).nonzero()[:, 0]
    points = points.view(len(share), -1, 3)[seen].flatten(0, 1)
    sums, counts = sums[..., seen], counts[:, seen]
    rings = rings_from_orders(torch.complex(sums[:, :n_shells], sums[:, n_shells:]).permute(2, 1, 0))
    density = (counts.T * weights)[:, :, None].expand(rings.shape)
    return solve_map(
        (rings * weights[:, None]).flatten(),
        density.flatten(),
        points,
        values,
        max_shell=math.ceil(float(shells.max())),
        support=support,
        ridge=ridge,
        symmetry=symmetry,
        iterations=iterations,
        taps=taps,
    )


def solve_map(
    samples: Tensor,
    density: Tensor,
    points: Tensor,
    values: Tensor,
    *,
    max_shell: int,
    support: float,
    ridge: float,
    symmetry: Tensor | None = None,
    iterations: int = 5,
    taps: int = TAPS,
) -> Tensor:
    """Least squares of a map in a ball over samples of its transform, by conjugate gradients from ``values``.

    Parameters
    ----------
    samples : (q,) complex, weighted; density : (q,) their weights; points : (q, 3) where, in steps of the oversampled
        transform.
    values, support, ridge, symmetry, iterations, taps : as for `maximise`.
    max_shell : outermost shell of the samples.

    Notes
    -----
    The normal equations of a support-limited least squares are a convolution, whose kernel is the transform of the
    sampling density (Toeplitz form [1]_).

    References
    ----------
    .. [1] Fessler et al., "Toeplitz-based iterative image reconstruction for MRI with correction for magnetic field
       inhomogeneity", IEEE Trans. Signal Process. 53, 3393 (2005). doi:10.1109/TSP.2005.853152
    """
    d, size = values.shape[-1], transform_size(max_shell)
    channels = [samples.real, samples.imag, density]
    totals = [values.new_zeros(size, size, size) for _ in channels]
    group = torch.eye(3, device=values.device)[None] if symmetry is None else symmetry
    for element in group.to(points):
        for total, more in zip(totals, spread_channels(channels, points @ element, size, taps=taps), strict=True):
            total += more
    ball = soft_ball(d, support, edge=1.5).to(values)
    right = ball * oversampled_adjoint(torch.complex(totals[0], totals[1]), d, taps=taps)
    kernel = convolution_kernel(totals[2], d, taps=taps)
    level = kernel[kernel > 0.1 * kernel.max()].mean() * ridge
    return conjugate_gradients(
        lambda v: ball * convolve(ball * v, kernel) + level * v, right, ball * values, iterations
    )


def rings_from_orders(orders: Tensor) -> Tensor:
    """Samples on half rings (..., A / 2) from angular orders 0 .. A / 2 of rings of a real image's transform.

    A real image has ``f(angle + pi) = conj f(angle)``, so order -m is ``(-1)^m`` times the conjugate of order m.
    """
    half = orders.shape[-1] - 1
    sign = torch.ones(half + 1, device=orders.device)
    sign[1::2] = -1
    mirrored = (sign * orders)[..., 1:half].flip(-1).conj()
    return torch.fft.ifft(torch.cat((orders, mirrored), -1), dim=-1)[..., :half]


def convolution_kernel(density: Tensor, box_size: int, *, taps: int = TAPS) -> Tensor:
    """The point spread of a sampling density (m, m, m), as ``rfftn`` on twice the box; real.

    It is known out to half the box, which is the largest distance within a support of a quarter of the box.
    """
    both = (density + density.flip((0, 1, 2))) / 2
    spread = oversampled_adjoint(torch.complex(both, torch.zeros_like(both)), box_size, taps=taps)
    padded = spread.new_zeros((2 * box_size,) * 3)
    first = box_size - box_size // 2
    inside = slice(first, first + box_size)
    padded[inside, inside, inside] = spread
    return torch.fft.rfftn(torch.fft.ifftshift(padded)).real


def convolve(values: Tensor, kernel: Tensor) -> Tensor:
    """Convolution of a map (d, d, d) with a kernel of `convolution_kernel`."""
    d = values.shape[-1]
    return torch.fft.irfftn(torch.fft.rfftn(values, s=(2 * d,) * 3) * kernel, s=(2 * d,) * 3)[:d, :d, :d]


def conjugate_gradients(operator: Callable[[Tensor], Tensor], right: Tensor, first: Tensor, iterations: int) -> Tensor:
    """Solve ``operator(x) = right`` (symmetric, positive) from ``first``, a fixed number of iterations."""
    x = first
    residual = right - operator(x)
    direction, square = residual, (residual * residual).sum()
    for _ in range(iterations):
        turned = operator(direction)
        length = square / (direction * turned).sum().clamp(min=torch.finfo(square.dtype).tiny)
        x = x + length * direction
        residual = residual - length * turned
        new = (residual * residual).sum()
        direction = residual + new / square.clamp(min=torch.finfo(square.dtype).tiny) * direction
        square = new
    return x
