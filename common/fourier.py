"""Fourier transforms with the origin at pixel ``n // 2``, odd and even sizes; frequency grids; shells; shifts.

"centred" arrays hold frequency zero at index ``n // 2`` of every axis; "rfft" arrays are laid out as by
``torch.fft.rfftn`` (frequency zero first, last axis halved). In both, phases refer to the real-space origin ``n // 2``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_IMAGE = (-2, -1)
_VOLUME = (-3, -2, -1)


def fast_size(least: float) -> int:
    """The smallest even number, not below ``least``, whose prime factors an FFT likes."""
    size = 2 * math.ceil(least / 2)
    while any(size % (2 * factor) == 0 for factor in _primes(11, size // 2)):
        size += 2
    return size


def _primes(first: int, last: int) -> list[int]:
    return [p for p in range(first, last + 1) if all(p % q for q in range(2, math.isqrt(p) + 1))]


def fft2_centred(images: Tensor) -> Tensor:
    """(..., n, m) to its centred transform, complex (..., n, m), unnormalised."""
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(images, _IMAGE), dim=_IMAGE), _IMAGE)


def ifft2_centred(transforms: Tensor) -> Tensor:
    """The inverse of :func:`fft2_centred`; complex (..., n, m)."""
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(transforms, _IMAGE), dim=_IMAGE), _IMAGE)


def fft3_centred(volumes: Tensor) -> Tensor:
    """(..., n, m, l) to its centred transform, complex, unnormalised."""
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(volumes, _VOLUME), dim=_VOLUME), _VOLUME)


def ifft3_centred(transforms: Tensor) -> Tensor:
    """The inverse of :func:`fft3_centred`; complex."""
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(transforms, _VOLUME), dim=_VOLUME), _VOLUME)


def rfft2_origin(images: Tensor) -> Tensor:
    """Real (..., n, m) to its rfft transform (..., n, m // 2 + 1), phases about pixel ``n // 2``."""
    return torch.fft.rfftn(torch.fft.ifftshift(images, _IMAGE), dim=_IMAGE)


def irfft2_origin(transforms: Tensor, n: int) -> Tensor:
    """The inverse of :func:`rfft2_origin` for square images; real (..., n, n)."""
    return torch.fft.fftshift(torch.fft.irfftn(transforms, s=(n, n), dim=_IMAGE), _IMAGE)


def rfft3_origin(volumes: Tensor) -> Tensor:
    """Real (..., n, n, n) to its rfft transform (..., n, n, n // 2 + 1), phases about voxel ``n // 2``."""
    return torch.fft.rfftn(torch.fft.ifftshift(volumes, _VOLUME), dim=_VOLUME)


def irfft3_origin(transforms: Tensor, n: int) -> Tensor:
    """The inverse of :func:`rfft3_origin` for cubes; real (..., n, n, n)."""
    return torch.fft.fftshift(torch.fft.irfftn(transforms, s=(n, n, n), dim=_VOLUME), _VOLUME)


def _centred_axis(n: int, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    return torch.arange(-(n // 2), n - n // 2, dtype=dtype, device=device)


def _rfft_axes(n: int, ndim: int, dtype: torch.dtype, device: torch.device | str | None) -> list[Tensor]:
    full = torch.fft.ifftshift(_centred_axis(n, dtype, device))
    return [full] * (ndim - 1) + [torch.arange(n // 2 + 1, dtype=dtype, device=device)]


def frequencies_2d(
    n: int, pixel_size: float, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """The centred grids ``(k_x, k_y)``, each (n, n), 1/angstrom."""
    axis = _centred_axis(n, dtype, device) / (n * pixel_size)
    k_y, k_x = torch.meshgrid(axis, axis, indexing="ij")
    return k_x, k_y


def frequencies_3d(
    n: int, voxel_size: float, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The centred grids ``(k_x, k_y, k_z)``, each (n, n, n), 1/angstrom."""
    axis = _centred_axis(n, dtype, device) / (n * voxel_size)
    k_z, k_y, k_x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return k_x, k_y, k_z


def rfft_frequencies_2d(
    n: int, pixel_size: float, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """The rfft grids ``(k_x, k_y)``, each (n, n // 2 + 1), 1/angstrom; Nyquist has k_y < 0, k_x > 0."""
    axes = [axis / (n * pixel_size) for axis in _rfft_axes(n, 2, dtype, device)]
    k_y, k_x = torch.meshgrid(*axes, indexing="ij")
    return k_x, k_y


def rfft_frequencies_3d(
    n: int, voxel_size: float, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The rfft grids ``(k_x, k_y, k_z)``, each (n, n, n // 2 + 1), 1/angstrom."""
    axes = [axis / (n * voxel_size) for axis in _rfft_axes(n, 3, dtype, device)]
    k_z, k_y, k_x = torch.meshgrid(*axes, indexing="ij")
    return k_x, k_y, k_z


def _shells(axes: list[Tensor]) -> Tensor:
    grids = torch.meshgrid(*axes, indexing="ij")
    return sum((g * g for g in grids), torch.zeros_like(grids[0])).sqrt().round().long()


def shell_indices(n: int, ndim: int, *, device: torch.device | str | None = None) -> Tensor:
    """The shell ``round(|k| n pixel_size)`` of each point of a centred grid, int64 (n,) * ndim; corners pass n // 2."""
    return _shells([_centred_axis(n, torch.float64, device)] * ndim)


def rfft_shell_indices(n: int, ndim: int, *, device: torch.device | str | None = None) -> Tensor:
    """The shell of every point of an rfft grid, int64 (n, ..., n // 2 + 1); corners pass ``n // 2``."""
    return _shells(_rfft_axes(n, ndim, torch.float64, device))


def rfft_multiplicity(
    n: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """How often each column of an rfft grid stands in the full transform: (n // 2 + 1,) of 1 and 2."""
    columns = torch.full((n // 2 + 1,), 2.0, dtype=dtype, device=device)
    columns[0] = 1
    if n % 2 == 0:
        columns[-1] = 1
    return columns


def shell_sum(values: Tensor, shells: Tensor, n_shells: int) -> Tensor:
    """Sum over each shell.

    Parameters
    ----------
    values : (..., *shells.shape) real or complex.
    shells : int64, any shape; points with a shell >= n_shells are left out.

    Returns
    -------
    (..., n_shells).
    """
    inside = (shells >= 0) & (shells < n_shells)
    lead = values.shape[: values.ndim - shells.ndim]
    chosen = values[..., inside].reshape(math.prod(lead), -1)
    total = chosen.new_zeros(chosen.shape[0], n_shells).index_add(1, shells[inside], chosen)
    return total.reshape(*lead, n_shells)


def shell_mean(values: Tensor, shells: Tensor, n_shells: int) -> Tensor:
    """The mean over each shell, (..., n_shells); 0 where a shell is empty. Arguments as :func:`shell_sum`."""
    ones = torch.ones(shells.shape, dtype=values.real.dtype, device=values.device)
    return shell_sum(values, shells, n_shells) / shell_sum(ones, shells, n_shells).clamp(min=1)


def shift_phases(shifts: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The phase factors that shift an image, one for each axis.

    Parameters
    ----------
    shifts : (..., 2) of (x, y), pixels.
    n : box size, pixels.

    Returns
    -------
    along x (..., n // 2 + 1), rfft order; along y (..., n), fft order; complex. At the Nyquist frequency of an
    even box it is the cosine, so that a shifted real image is real and the shift by ``-s`` is the exact adjoint.
    """
    y, x = _rfft_axes(n, 2, shifts.dtype, shifts.device)
    return _phases(shifts[..., :1] * x, n, x), _phases(shifts[..., 1:] * y, n, y)


def _phases(products: Tensor, n: int, axis: Tensor) -> Tensor:
    angle = products * (-2 * math.pi / n)
    return torch.complex(angle.cos(), torch.where(2 * axis.abs() == n, 0.0, angle.sin()))


def shift_images(images: Tensor, shifts: Tensor) -> Tensor:
    """Shift images periodically by any fraction of a pixel, exactly for band-limited images.

    Parameters
    ----------
    images : (..., n, n) real.
    shifts : (..., 2) of (x, y), pixels; leading dims broadcast with the images'. Content moves towards positive x, y.

    Returns
    -------
    (..., n, n). Differentiable in both; the adjoint in the images is the shift by ``-shifts``.
    """
    n = images.shape[-1]
    along_x, along_y = shift_phases(shifts, n)
    transforms = torch.fft.rfftn(images, dim=_IMAGE) * along_y[..., :, None] * along_x[..., None, :]
    return torch.fft.irfftn(transforms, s=(n, n), dim=_IMAGE)


def crop_or_pad(arrays: Tensor, n: int, ndim: int) -> Tensor:
    """Crop or zero-pad the last ``ndim`` axes to ``n``, keeping the origin: pixel ``old // 2`` becomes ``n // 2``."""
    widths: list[int] = []
    for axis in range(1, ndim + 1):
        old = arrays.shape[-axis]
        before = n // 2 - old // 2
        widths += [before, n - old - before]
    return torch.nn.functional.pad(arrays, widths)


def resample_fourier(arrays: Tensor, n: int, ndim: int) -> Tensor:
    """Resample a periodic real array to ``n`` samples an axis over the same field of view, by its Fourier coefficients.

    Parameters
    ----------
    arrays : (..., m, m[, m]) real.
    n : new box size; the pixel becomes ``m / n`` times as large. Values, not sums, are kept.
    ndim : 2 or 3.

    Returns
    -------
    (..., n, n[, n]); the origin ``m // 2`` becomes ``n // 2``.
    """
    dims = tuple(range(-ndim, 0))
    m = arrays.shape[-1]
    transform = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(arrays, dims), dim=dims), dims)
    for axis in dims:
        transform = _resize_spectrum(transform.movedim(axis, -1), n).movedim(-1, axis)
    inverse = torch.fft.ifftn(torch.fft.ifftshift(transform, dims), dim=dims).real
    return torch.fft.fftshift(inverse, dims) * (n / m) ** ndim


def _resize_spectrum(transform: Tensor, n: int) -> Tensor:
    """Crop or pad the last axis of a centred transform; an even size's Nyquist term stands for both of its signs."""
    m = transform.shape[-1]
    start = m // 2 - n // 2
    if n < m:
        kept = transform[..., start : start + n]
        if n % 2:
            return kept
        return torch.cat((kept[..., :1] + transform[..., start + n : start + n + 1], kept[..., 1:]), -1)
    if n > m and m % 2 == 0:
        nyquist = transform[..., :1] / 2
        transform = torch.cat((nyquist, transform[..., 1:], nyquist), -1)
    return torch.nn.functional.pad(transform, (-start, n - transform.shape[-1] + start))
