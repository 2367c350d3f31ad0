"""The pseudopolar transform of slices: its samples lie on lines of equal slope, and on concentric squares [1]_, [2]_.

A slice of d x d pixels, padded to m = 2 d, is transformed at the points ``(k, s k)`` and ``(s k, k)``, k = -d .. d - 1
in steps of 1 / m, for 2 d + 1 slopes s from -1 to 1 in each of the two sectors: a Fourier transform along one axis, and
a fractional one (chirp z) along the other.

References
----------
.. [1] Averbuch, Coifman, Donoho, Israeli, Shkolnisky, Sedelnikov, "A framework for discrete integral transformations
   II: the 2D discrete Radon transform", SIAM J. Sci. Comput. 30, 785 (2008). doi:10.1137/060650301
.. [2] Bailey, Swarztrauber, "The fractional Fourier transform and applications", SIAM Rev. 33, 389 (1991).
   doi:10.1137/1033097
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.fourier import fast_size


def fractional_fourier(values: Tensor, alpha: Tensor, n_out: int) -> Tensor:
    """``sum_x values[x] exp(-2 pi i alpha (l - n_out // 2) (x - d // 2))`` by Bluestein's convolution.

    Parameters
    ----------
    values : (..., d) complex. alpha : (...) cycles per pixel and step, broadcast with the leading dimensions.
    n_out : number of outputs l.

    Returns
    -------
    (..., n_out) complex. The adjoint is the same function of ``-alpha`` with d outputs.
    """
    d = values.shape[-1]
    x = torch.arange(d, device=values.device, dtype=torch.float64) - d // 2
    out = torch.arange(n_out, device=values.device, dtype=torch.float64) - n_out // 2
    # l x = (l^2 + x^2 - (l - x)^2) / 2
    size = fast_size(d + n_out - 1)
    lag = torch.arange(-(d - 1), n_out, device=values.device, dtype=torch.float64) + (d // 2 - n_out // 2)
    turn = alpha.double()[..., None]
    chirp = _phase(turn * lag.square(), values.dtype)
    head, tail = _phase(-turn * x.square(), values.dtype), _phase(-turn * out.square(), values.dtype)
    spectrum = torch.fft.fft(values * head, n=size) * torch.fft.fft(chirp, n=size)
    return torch.fft.ifft(spectrum)[..., d - 1 : d - 1 + n_out] * tail


def _phase(half_turns: Tensor, dtype: torch.dtype) -> Tensor:
    """``exp(i pi half_turns)``; reduced in float64, for the squares grow large."""
    angle = math.pi * torch.remainder(half_turns, 2.0)
    return torch.complex(angle.cos(), angle.sin()).to(dtype)


def pseudopolar(slices: Tensor) -> Tensor:
    """Real or complex slices (r, z, x) of d x d pixels to (r, 2, 2 d, 2 d + 1): sector, k, slope.

    Sector 0 holds the points ``(k_x, k_z) = (k, s k) / m``, sector 1 ``(s k, k) / m``, k = -d .. d - 1,
    ``s = (l - d) / d``.
    """
    d = slices.shape[-1]
    return torch.stack((_sector(slices, d), _sector(slices.transpose(-1, -2), d)), 1)


def pseudopolar_adjoint(samples: Tensor) -> Tensor:
    """The adjoint of :func:`pseudopolar`: complex (r, z, x)."""
    d = samples.shape[-2] // 2
    return _sector_adjoint(samples[:, 0], d) + _sector_adjoint(samples[:, 1], d).transpose(-1, -2)


def _slopes(d: int, like: Tensor) -> Tensor:
    """alpha of each k: the slope's step is 1 / d, so points lie ``k / (2 d^2)`` apart."""
    return (torch.arange(2 * d, device=like.device, dtype=torch.float64) - d) / (2.0 * d * d)


def _sector(slices: Tensor, d: int) -> Tensor:
    """(r, z, x) to (r, k, l): plain along x, fractional along z."""
    left = d - d // 2
    padded = torch.nn.functional.pad(slices, (left, d - left))  # pixel d // 2 to d
    along_x = torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(padded, -1)), -1)
    return fractional_fourier(along_x.transpose(-1, -2), _slopes(d, slices), 2 * d + 1)


def _sector_adjoint(samples: Tensor, d: int) -> Tensor:
    along_x = fractional_fourier(samples, -_slopes(d, samples), d).transpose(-1, -2)
    padded = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(along_x, -1), norm="forward"), -1)
    left = d - d // 2
    return padded[..., left : left + d]


def sample_weights(d: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The area that each sample stands for, in units of 1 / (2 d)^2 (2 d, 2 d + 1): |k| / d, at most shared at k = 0.

    With it the normal operator is near the identity times (2 d)^2, and conjugate gradients need few steps.
    """
    k = (torch.arange(2 * d, device=device, dtype=dtype) - d).abs() / d
    k[d] = 1 / (4 * (2 * d + 1))
    ends = torch.ones(2 * d + 1, device=device, dtype=dtype)
    ends[0] = ends[-1] = 0.5  # the lines of slope +-1 stand in both sectors
    return k[:, None] * ends


def invert_pseudopolar(samples: Tensor, first: Tensor, n_iterations: int) -> Tensor:
    """The real slices that fit pseudopolar samples best, by conjugate gradients with the areas as weights.

    Parameters
    ----------
    samples : (r, 2, 2 d, 2 d + 1). first : (r, d, d) real, to start from. n_iterations : >= 0.

    Returns
    -------
    (r, d, d) real.
    """
    d = first.shape[-1]
    weights = sample_weights(d, dtype=first.dtype, device=first.device)
    values = first
    residual = pseudopolar_adjoint((samples - pseudopolar(values)) * weights).real
    direction, energy = residual, residual.square().sum((-2, -1), keepdim=True)
    tiny = torch.finfo(first.dtype).tiny
    for _ in range(n_iterations):
        applied = pseudopolar_adjoint(pseudopolar(direction) * weights).real
        length = energy / (direction * applied).sum((-2, -1), keepdim=True).clamp(min=tiny)
        values, residual = values + length * direction, residual - length * applied
        fresh = residual.square().sum((-2, -1), keepdim=True)
        direction, energy = residual + fresh / energy.clamp(min=tiny) * direction, fresh
    return values
