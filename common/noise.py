"""The noise of the images, learned from their borders, and images in which it is white.

Whatever lies around the particle (support film, liquid, counting noise) is noise to a reconstruction. Its power
spectrum is measured outside a disc that holds the particle, and every image is divided by it, so that afterwards a sum
of squares is minus twice a log likelihood. A model image must pass through the same filter: `NoiseModel.filter`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from common.data import ImageStack, InputError
from common.noise_spectrum import (
    batches,
    border_mask,
    border_shell_power,
    floating,
    largest_radius,
    radius_grid,
    shell_grid,
    whitening_filter,
    without_border_plane,
)
from common.particle_extent import fit_extent, radial_mean


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
    """radius : from the particle's centre to its farthest end, angstrom.

    shift_spread : rms of its position on each axis, angstrom.
    """

    radius: float
    shift_spread: float


class Contrast(NamedTuple):
    """sign : +1 for bright atoms, -1 for dark. significance : standard errors between the measure and 0."""

    sign: int
    significance: float


def _noise_outside(stack: ImageStack, radius: float, batch_size: int) -> NoiseModel:
    d = stack.box_size
    mask = border_mask(d, radius / stack.pixel_size).to(stack.images.device)
    power = border_shell_power(stack.images, mask, batch_size)
    filter_ = whitening_filter(power, d).to(floating(stack.images[:1]).dtype)
    means, variances = [], []
    for part in batches(len(stack), batch_size):
        flat, mean = without_border_plane(floating(stack.images[part]), mask)
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
    largest = largest_radius(stack.box_size) * stack.pixel_size
    if radius is None:
        return extent_and_noise(stack, batch_size)[1]
    if not radius > 0:
        raise InputError(f"the radius of the particle's disc is {radius}, expected a positive number of angstrom")
    if radius > largest:
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
    Images (n, d, d), float32, or float64 where they came so: the plane through the border is subtracted, ``rfft2``
    multiplied by ``noise.filter``, and the result divided by ``noise.scale``. A model image that is 1 in vacuum
    corresponds to ``irfft2(noise.filter * rfft2(model - 1)) * noise.mean / noise.scale``.

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
    for part in batches(len(stack), batch_size):
        flat, _ = without_border_plane(floating(stack.images[part]), mask)
        white = torch.fft.irfft2(torch.fft.rfft2(flat) * noise.filter, s=(d, d))
        parts.append(white / noise.scale[part, None, None])
    return replace(stack, images=torch.cat(parts))


def signal_filter(white: Tensor, pixel_size: float) -> Tensor:
    """Where the particle stands out of white noise: weights (d, d // 2 + 1) in [0, 1) for ``rfft2``.

    The Wiener weight of each shell's power in excess of 1, for wavelengths below about 5 angstrom: atoms, not outlines.

    Parameters
    ----------
    white : (n, d, d) whitened images.
    """
    n, d = len(white), white.shape[-1]
    shells = shell_grid(d, white.device).round().long()
    power = torch.zeros(d, d // 2 + 1, dtype=torch.float64, device=white.device)
    for part in batches(n, 256):
        power += (torch.fft.rfft2(white[part]).abs().double() ** 2).sum(0)
    count = torch.bincount(shells.flatten())
    by_shell = torch.bincount(shells.flatten(), weights=power.flatten()) / (count * n * d * d)
    excess = (by_shell - 1 - 2 / torch.sqrt(count * n)).clamp(min=0)
    if not bool(excess.any()):
        excess = torch.ones_like(excess)
    frequency = shell_grid(d, white.device) / (d * pixel_size)
    high_pass = 0.5 - 0.5 * torch.cos(math.pi * ((frequency - 0.15) / 0.1).clamp(0, 1))
    return (excess / (1 + excess))[shells].float() * high_pass


def _measure_extent(stack: ImageStack, noise: NoiseModel, batch_size: int) -> ParticleExtent:
    """Radius and spread of position from the power that the particle adds to the white noise.

    The mean power against the distance from the centre is the thickness of the particle, taken for a ball, a needle or
    a disc, blurred by its shifts. Weak data cannot tell a small wandering particle from a large still one, nor a ball
    from an ellipsoid: mild priors prefer the large still ball.
    """
    d = stack.box_size
    white = whiten(stack, noise, batch_size=batch_size).images
    weight = signal_filter(white, stack.pixel_size)
    total, squares = white.new_zeros(d, d), white.new_zeros(d, d)
    for part in batches(len(white), batch_size):
        power = torch.fft.irfft2(torch.fft.rfft2(white[part]) * weight, s=(d, d)) ** 2
        total, squares = total + power.sum(0), squares + (power**2).sum(0)
    mean, square = total / len(white), squares / len(white)
    r = radius_grid(d, device=white.device)
    bins = r.round().long()
    rings = torch.bincount(bins.flatten())
    used = slice(0, d // 2)
    profile = radial_mean(mean, bins)[used]
    # neighbouring pixels share the filter's band, so about 8 of them make one independent value
    error = torch.sqrt(8 * radial_mean((square - mean**2).clamp(min=0), bins) / (rings * len(white)))[used]
    error = error.clamp(min=1e-3 * float(error.max())).clamp(min=1e-30)
    # what the filter itself spreads the power of a point
    response = torch.fft.rfft2(torch.fft.irfft2(weight, s=(d, d)) ** 2).real
    radius, spread = fit_extent(profile, error, response / response[0, 0], r)
    return ParticleExtent(radius * stack.pixel_size, spread * stack.pixel_size)


def extent_and_noise(stack: ImageStack, batch_size: int = 256) -> tuple[ParticleExtent, NoiseModel]:
    """`particle_radius` and `estimate_noise` at once: they need each other, so start from the corners and go in."""
    _check_images(stack)
    largest = largest_radius(stack.box_size) * stack.pixel_size
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
    return extent_and_noise(stack, batch_size)[0]


def contrast_sign(
    stack: ImageStack,
    noise: NoiseModel | None = None,
    extent: ParticleExtent | None = None,
    *,
    batch_size: int = 256,
) -> Contrast:
    """Whether atoms are bright or dark, from the images alone.

    Parameters
    ----------
    stack : n images, not whitened.
    noise, extent : of this stack; measured when None.

    Returns
    -------
    The sign, and how sure it is; below 3 standard errors take it as not determined.

    Raises
    ------
    InputError : the stack is empty or an image is constant.

    Notes
    -----
    Atoms are peaks on a flat ground: where they are bright, the intensities inside the particle, band-passed to where
    it stands out of the noise, are skewed to the positive side more than those of the border are.
    """
    _check_images(stack)
    if noise is None:
        noise = estimate_noise(stack, batch_size=batch_size)
    if extent is None:
        extent = _measure_extent(stack, noise, batch_size)
    white = whiten(stack, noise, batch_size=batch_size).images
    # back to the spectrum that the microscope gave: frequencies that it hardly passes say nothing about the sign
    weight = signal_filter(white, stack.pixel_size) / noise.filter
    r = radius_grid(stack.box_size, device=white.device) * stack.pixel_size
    inside, outside = r < extent.radius + extent.shift_spread, r > noise.radius + 2 * stack.pixel_size
    cubes: list[Tensor] = []
    squares: list[Tensor] = []
    for part in batches(len(white), batch_size):
        band = torch.fft.irfft2(torch.fft.rfft2(white[part]) * weight, s=white.shape[-2:])
        for store, power in ((cubes, band**3), (squares, band**2)):
            store.append(torch.stack((power[:, inside].mean(1), power[:, outside].mean(1)), 1))
    skewness = torch.cat(cubes) / torch.cat(squares).mean(0) ** 1.5
    difference = (skewness[:, 0] - skewness[:, 1]).double()
    mean = float(difference.mean())
    error = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    return Contrast(1 if mean >= 0 else -1, abs(mean) / error if error > 0 else math.inf)
