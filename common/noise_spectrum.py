"""Kernels of `common.noise`: the power spectrum of noise that is seen only around a particle. Lengths in pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

SMALLEST_BORDER = 0.15  # fraction of the box; what lies outside the inscribed circle is 0.21
FLOOR = 1e-4  # of the images' variance: the least noise power, so that noise-free images stay finite


def radius_grid(box_size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Distance from pixel ``box_size // 2``, in pixels: (d, d)."""
    axis = torch.arange(box_size, dtype=dtype, device=device) - box_size // 2
    return torch.sqrt(axis[:, None] ** 2 + axis**2)


def shell_grid(box_size: int, device: torch.device | str) -> Tensor:
    """Cycles per box of every point of the grid of ``rfft2``, not rounded: (d, d // 2 + 1)."""
    ky = torch.fft.fftfreq(box_size, 1 / box_size, device=device)
    kx = torch.fft.rfftfreq(box_size, 1 / box_size, device=device)
    return torch.sqrt(ky[:, None] ** 2 + kx**2)


def border_mask(box_size: int, radius: float, *, edge: float = 3.0) -> Tensor:
    """1 outside a disc of ``radius`` pixels, 0 inside, a cosine edge of ``edge`` pixels beyond it: (d, d) float32."""
    return 0.5 - 0.5 * torch.cos(math.pi * ((radius_grid(box_size) - radius) / edge).clamp(0, 1))


def largest_radius(box_size: int) -> float:
    """The largest disc, in pixels, that leaves enough border to learn from."""
    grid = radius_grid(box_size).flatten().sort().values
    return float(grid[int((1 - SMALLEST_BORDER) * (grid.numel() - 1))]) - 1.5


def border_planes(images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least-squares plane through each border: (n, 3) coefficients of 1, y, x; and the basis (3, d, d)."""
    d = images.shape[-1]
    axis = (torch.arange(d, dtype=images.dtype, device=images.device) - d // 2) / d
    basis = torch.stack((torch.ones_like(mask), axis[:, None].expand(d, d), axis.expand(d, d))).to(images.dtype)
    weighted = basis * mask
    normal = torch.einsum("iyx,jyx->ij", weighted, basis)
    return torch.linalg.solve(normal, torch.einsum("iyx,nyx->in", weighted, images)).T, basis


def floating(images: Tensor) -> Tensor:
    """Counts as float32; float64 stays."""
    return images if images.dtype == torch.float64 else images.float()


def batches(n: int, batch_size: int) -> Iterator[slice]:
    """Slices of at most ``batch_size`` that cover ``n``."""
    return (slice(start, min(start + batch_size, n)) for start in range(0, n, batch_size))


def without_border_plane(images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Images without their border's plane, and the border's mean."""
    planes, basis = border_planes(images, mask)
    return images - torch.einsum("ni,iyx->nyx", planes, basis), planes[:, 0]


def border_shell_power(images: Tensor, mask: Tensor, batch_size: int) -> Tensor:
    """Noise power by integer shell, float64, from the border alone.

    The autocorrelation of the masked noise over the autocorrelation of the mask is unbiased whatever the shape of the
    border; its transform, under a lag window, is the spectrum (Wiener-Khinchin, Blackman and Tukey).
    """
    n, d = len(images), images.shape[-1]
    power = torch.zeros(2 * d, d + 1, dtype=torch.float64, device=images.device)
    variance = 0.0
    for part in batches(n, batch_size):
        flat, _ = without_border_plane(floating(images[part]), mask)
        spectrum = torch.fft.rfft2(flat * mask, s=(2 * d, 2 * d))
        power += (spectrum.real**2 + spectrum.imag**2).sum(0).double()
        variance += float((flat.double() ** 2).mean((-2, -1)).sum()) / n
    pairs = torch.fft.irfft2(torch.fft.rfft2(mask.double(), s=(2 * d, 2 * d)).abs() ** 2, s=(2 * d, 2 * d))
    lags = torch.fft.irfft2(power / n, s=(2 * d, 2 * d)) / pairs.clamp(min=1.0)
    axis = torch.fft.fftfreq(2 * d, 1 / (2 * d), device=images.device).abs()
    near = axis <= d // 2 - 1
    distance = torch.sqrt(axis[near][:, None] ** 2 + axis[near] ** 2)
    window = 0.5 + 0.5 * torch.cos(math.pi * (distance / (d / 2)).clamp(0, 1))
    # lags within half a box, put back on the grid of the images
    kept = torch.zeros(d, d, dtype=torch.float64, device=images.device)
    index = torch.fft.fftfreq(2 * d, 1 / (2 * d), device=images.device)[near].long() % d
    kept[index[:, None], index] = lags[near][:, near] * window
    spectrum_2d = torch.fft.rfft2(kept).real
    shells = shell_grid(d, images.device).round().long()
    count = torch.bincount(shells.flatten())
    by_shell = torch.bincount(shells.flatten(), weights=spectrum_2d.flatten()) / count.clamp(min=1)
    # the plane took power from the first shells, which must not be amplified for it
    by_shell[:2] = by_shell[:4].max()
    return by_shell.clamp(min=FLOOR * variance)


def whitening_filter(shell_power: Tensor, box_size: int) -> Tensor:
    """One over the amplitude of the noise, interpolated between shells: (d, d // 2 + 1) float32."""
    shell = shell_grid(box_size, shell_power.device)
    low = shell.floor().long().clamp(max=len(shell_power) - 2)
    fraction = (shell - low).clamp(0, 1)
    log_power = torch.log(shell_power)
    return torch.exp(-0.5 * (log_power[low] * (1 - fraction) + log_power[low + 1] * fraction)).float()
