"""The noise of the images, learned from their borders, and images in which it is white.

Whatever lies around the particle (support film, liquid, counting noise) is noise to a reconstruction. Its power
spectrum is measured outside a disc that holds the particle, and every image is divided by it, so that afterwards a sum
of squares is minus twice a log likelihood. A model image must pass through the same filter: `NoiseModel.filter`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from common.data import ImageStack, InputError

SMALLEST_BORDER = 0.15  # fraction of the box; what lies outside the inscribed circle is 0.21


@dataclass(frozen=True)
class NoiseModel:
    """What the image borders say about noise.

    filter : (d, d // 2 + 1) real, positive; multiplies ``rfft2`` of an image: one over the amplitude of the noise.
    shell_power : (shells,) noise power by integer shell (cycles per box), intensity^2; of white noise its variance.
    mean : (n,) mean intensity of each border: what a model image, 1 in vacuum, is multiplied by.
    scale : (n,) noise amplitude of each image relative to the stack, near 1.
    radius : of the disc that was left out, angstrom.
    """

    filter: Tensor
    shell_power: Tensor
    mean: Tensor
    scale: Tensor
    radius: float

    def __getitem__(self, index: Tensor) -> NoiseModel:
        return replace(self, mean=self.mean[index], scale=self.scale[index])

    def to(self, device: torch.device | str) -> NoiseModel:
        moved = {name: getattr(self, name).to(device) for name in ("filter", "shell_power", "mean", "scale")}
        return replace(self, **moved)


class ParticleExtent(NamedTuple):
    """radius : of the particle, angstrom. shift_spread : rms of its position on each axis, angstrom."""

    radius: float
    shift_spread: float


def radius_grid(box_size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Distance from pixel ``box_size // 2``, in pixels: (d, d)."""
    axis = torch.arange(box_size, dtype=dtype, device=device) - box_size // 2
    return torch.sqrt(axis[:, None] ** 2 + axis**2)


def _shell_grid(box_size: int, device: torch.device | str) -> Tensor:
    ky = torch.fft.fftfreq(box_size, 1 / box_size, device=device)
    kx = torch.fft.rfftfreq(box_size, 1 / box_size, device=device)
    return torch.sqrt(ky[:, None] ** 2 + kx**2)


def border_mask(box_size: int, radius: float, *, edge: float = 3.0) -> Tensor:
    """1 outside a disc of ``radius`` pixels, 0 inside, a cosine edge of ``edge`` pixels beyond it: (d, d) float32."""
    return 0.5 - 0.5 * torch.cos(math.pi * ((radius_grid(box_size) - radius) / edge).clamp(0, 1))


def _largest_radius(box_size: int) -> float:
    """The largest disc, in pixels, that leaves enough border to learn from."""
    grid = radius_grid(box_size).flatten().sort().values
    return float(grid[int((1 - SMALLEST_BORDER) * (grid.numel() - 1))]) - 1.5


def _border_planes(images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least-squares plane through each border: (n, 3) coefficients of 1, y, x, and the basis (3, d, d)."""
    d = images.shape[-1]
    axis = (torch.arange(d, dtype=images.dtype, device=images.device) - d // 2) / d
    basis = torch.stack((torch.ones_like(mask), axis[:, None].expand(d, d), axis.expand(d, d))).to(images.dtype)
    weighted = basis * mask
    normal = torch.einsum("iyx,jyx->ij", weighted, basis)
    return torch.linalg.solve(normal, torch.einsum("iyx,nyx->in", weighted, images)).T, basis


def _batches(n: int, batch_size: int) -> Iterator[slice]:
    return (slice(start, min(start + batch_size, n)) for start in range(0, n, batch_size))


def _flattened(images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Images without their border's plane, and the border's mean."""
    planes, basis = _border_planes(images, mask)
    return images - torch.einsum("ni,iyx->nyx", planes, basis), planes[:, 0]


def _shell_power(images: Tensor, mask: Tensor, batch_size: int) -> Tensor:
    """Noise power by shell from the border alone.

    The autocorrelation of the masked noise over the autocorrelation of the mask is unbiased whatever the shape of the
    border; its transform, under a lag window, is the spectrum (Wiener-Khinchin, Blackman and Tukey).
    """
    n, d = len(images), images.shape[-1]
    power = torch.zeros(2 * d, d + 1, dtype=torch.float64, device=images.device)
    for part in _batches(n, batch_size):
        flat, _ = _flattened(images[part].float(), mask)
        spectrum = torch.fft.rfft2(flat * mask, s=(2 * d, 2 * d))
        power += (spectrum.real**2 + spectrum.imag**2).sum(0).double()
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
    shells = _shell_grid(d, images.device).round().long()
    count = torch.bincount(shells.flatten())
    by_shell = torch.bincount(shells.flatten(), weights=spectrum_2d.flatten()) / count.clamp(min=1)
    # the plane took power from the first shells, which must not be amplified for it
    by_shell[:2] = by_shell[:4].max()
    return by_shell.clamp(min=1e-3 * float(by_shell.clamp(min=0).median()))


def _filter(shell_power: Tensor, box_size: int) -> Tensor:
    shell = _shell_grid(box_size, shell_power.device)
    low = shell.floor().long().clamp(max=len(shell_power) - 2)
    fraction = (shell - low).clamp(0, 1)
    log_power = torch.log(shell_power)
    return torch.exp(-0.5 * (log_power[low] * (1 - fraction) + log_power[low + 1] * fraction)).float()


def _noise_outside(stack: ImageStack, radius: float, batch_size: int) -> NoiseModel:
    d = stack.box_size
    mask = border_mask(d, radius / stack.pixel_size).to(stack.images.device)
    power = _shell_power(stack.images, mask, batch_size)
    filter_ = _filter(power, d)
    means, variances = [], []
    for part in _batches(len(stack), batch_size):
        flat, mean = _flattened(stack.images[part].float(), mask)
        white = torch.fft.irfft2(torch.fft.rfft2(flat * mask) * filter_, s=(d, d))
        means.append(mean)
        variances.append((white**2 * mask).sum((-2, -1)) / mask.sum())
    variance = torch.cat(variances)
    variance = variance / variance.mean()
    # each border measures its own level with an error of sqrt(2 / pixels); keep only what scatters beyond that
    chance = 2 / float(mask.sum())
    seen = float(variance.var()) if len(variance) > 1 else 0.0
    kept = max(0.0, 1 - chance / seen) if seen > 0 else 0.0
    scale = torch.sqrt((1 + kept * (variance - 1)).clamp(min=1e-3))
    return NoiseModel(filter_, power, torch.cat(means), scale, radius)


def _check_images(stack: ImageStack) -> None:
    if len(stack) == 0:
        raise InputError("the image stack is empty, expected at least one image")
    flat = stack.images.reshape(len(stack), -1)
    constant = flat.amax(1) == flat.amin(1)
    if bool(constant.any()):
        first = int(constant.nonzero()[0])
        value = float(flat[first, 0])
        raise InputError(f"image {first + 1} is constant ({value:g}), expected noise around the particle: leave it out")


def estimate_noise(stack: ImageStack, *, radius: float | None = None, batch_size: int = 256) -> NoiseModel:
    """Learn the noise from the image borders.

    Parameters
    ----------
    stack : n images; each with some border free of the particle.
    radius : angstrom, of the disc about the box's centre that holds the particle wherever it is shifted; found from the
        data when None, `particle_radius`.

    Returns
    -------
    The noise model; `whiten` applies it.

    Raises
    ------
    InputError : the stack is empty, an image is constant, or the disc leaves less than 15 % of the box.
    """
    _check_images(stack)
    largest = _largest_radius(stack.box_size) * stack.pixel_size
    if radius is None:
        return _extent_and_noise(stack, batch_size)[1]
    if not 0 < radius <= largest:
        raise InputError(
            f"the particle's disc has a radius of {radius:g} angstrom, expected at most {largest:.1f} in a box of "
            f"{stack.box_size} pixels of {stack.pixel_size:g}: cut larger boxes"
        )
    return _noise_outside(stack, radius, batch_size)


def whiten(stack: ImageStack, noise: NoiseModel, *, batch_size: int = 256) -> ImageStack:
    """Images in which the noise is white, with mean 0 and variance 1.

    Parameters
    ----------
    stack : the n images that the noise was learned from, or some of them with ``noise[index]``.
    noise : from `estimate_noise`.

    Returns
    -------
    Images (n, d, d), float32: plane through the border subtracted, ``rfft2`` multiplied by ``noise.filter``, divided by
    ``noise.scale``. A model image that is 1 in vacuum corresponds to
    ``irfft2(noise.filter * rfft2(model - 1)) * noise.mean / noise.scale``.

    Raises
    ------
    InputError : the noise model is of another number of images or another box.
    """
    d = stack.box_size
    if len(noise.mean) != len(stack) or noise.filter.shape[0] != d:
        raise InputError(
            f"the noise model is of {len(noise.mean)} images in a box of {noise.filter.shape[0]}, "
            f"expected {len(stack)} in a box of {d}"
        )
    mask = border_mask(d, noise.radius / stack.pixel_size).to(stack.images.device)
    parts = []
    for part in _batches(len(stack), batch_size):
        flat, _ = _flattened(stack.images[part].float(), mask)
        white = torch.fft.irfft2(torch.fft.rfft2(flat) * noise.filter, s=(d, d))
        parts.append(white / noise.scale[part, None, None])
    return replace(stack, images=torch.cat(parts))


def _radial_mean(image: Tensor, bins: Tensor) -> Tensor:
    flat = bins.flatten()
    return torch.bincount(flat, weights=image.flatten().double()) / torch.bincount(flat).clamp(min=1)


def _measure_extent(stack: ImageStack, noise: NoiseModel, batch_size: int) -> ParticleExtent:
    """Radius and spread of position from the power that the particle adds to the white noise.

    The mean power against the distance from the centre is the particle's profile blurred by its shifts.
    """
    d = stack.box_size
    white = whiten(stack, noise, batch_size=batch_size).images
    excess = (white**2).mean(0)
    r = radius_grid(d, device=white.device)
    bins = r.round().long()
    profile = _radial_mean(excess, bins)[: d // 2]
    profile = (profile - excess[r > noise.radius / stack.pixel_size + 2].mean()).float()
    best = (math.inf, 1.0, 0.0)
    for spread in torch.arange(0.0, 0.12 * d, 0.5).tolist():
        blur = torch.exp(-2 * (math.pi * spread * _shell_grid(d, white.device) / d) ** 2)
        for radius in torch.arange(3.0, d / 2, 0.5).tolist():
            ball = torch.fft.ifftshift(torch.sqrt((radius**2 - r**2).clamp(min=0)))
            blurred = torch.fft.fftshift(torch.fft.irfft2(torch.fft.rfft2(ball) * blur, s=(d, d)))
            shape = _radial_mean(blurred, bins)[: d // 2].float()
            shape = shape / shape.norm()
            residual = float((profile - (profile * shape).sum().clamp(min=0) * shape).norm())
            if residual < best[0]:
                best = (residual, radius, spread)
    return ParticleExtent(best[1] * stack.pixel_size, best[2] * stack.pixel_size)


def _extent_and_noise(stack: ImageStack, batch_size: int) -> tuple[ParticleExtent, NoiseModel]:
    """Radius and noise need each other: start from the corners and go in."""
    largest = _largest_radius(stack.box_size) * stack.pixel_size
    noise = _noise_outside(stack, largest, batch_size)
    extent = _measure_extent(stack, noise, batch_size)
    outside = extent.radius + 2.5 * extent.shift_spread + 2 * stack.pixel_size
    if outside < largest:
        noise = _noise_outside(stack, outside, batch_size)
        extent = _measure_extent(stack, noise, batch_size)
    return extent, noise


def particle_radius(stack: ImageStack, *, batch_size: int = 256) -> ParticleExtent:
    """How large the particle is and how far from the box's centre it lies, from the images alone.

    Parameters
    ----------
    stack : n images of one kind of particle, not whitened.

    Returns
    -------
    Radius (angstrom) of the ball whose thickness follows the power that the particle adds to the noise, and the rms
    (angstrom) of its position on each axis.

    Raises
    ------
    InputError : the stack is empty or an image is constant.
    """
    _check_images(stack)
    return _extent_and_noise(stack, batch_size)[0]
