"""Where the images hold their signal: the band, the grids of a search, and the images sampled on rings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.data import ImageStack, InputError
from common.noise import NoiseModel
from spr.ring_images import RingImages, ring_transfer, ring_transform, ring_vectors

_SEEN = 3  # standard deviations of a ring's power, from which it counts as signal
_WIDE = 0.9  # of the signal, in a wide band
_SIGNIFICANT = 8  # standard deviations of a ring's power; pure noise reaches 5 on the best of its rings


@dataclass(frozen=True)
class SearchGrid:
    """The grids of a search.

    box_size, voxel_size : of the map, voxels and angstrom. radius : of its support, angstrom.
    disc_radius : of the part of the images that is looked at, angstrom.
    shells : (s,) rings, in steps of 1 / (box_size voxel_size). directions : number of view directions.
    """

    box_size: int
    voxel_size: float
    radius: float
    disc_radius: float
    shells: Tensor
    directions: int


def signal_to_noise(white: Tensor, pixel_size: float, radius: float, frequencies: Tensor) -> Tensor:
    """Power of the particle over that of the noise on rings: (s,), 0 where there is none.

    white : (n, d, d). radius : of the disc that is looked at, angstrom. frequencies : (s,) 1/angstrom.
    """
    disc = disc_mask(white.shape[-1], radius, pixel_size).to(white)
    vectors = ring_vectors(frequencies, 16)[:, :8]
    power = torch.zeros_like(frequencies)
    for part in white.split(128):
        power += ring_transform(part * disc, vectors, pixel_size).abs().square().mean(-1).sum(0)
    return (power / len(white) / disc.square().mean() - 1).clamp(min=0)


def disc_mask(box_size: int, radius: float, pixel_size: float) -> Tensor:
    """1 inside ``radius`` angstrom, falling linearly to 0 over 2 angstrom: (d, d)."""
    axis = (torch.arange(box_size) - box_size // 2) * pixel_size
    return (1 + (radius - torch.sqrt(axis[:, None] ** 2 + axis**2)) / 2).clamp(0, 1)


def signal_rings(
    white: Tensor, pixel_size: float, radius: float, window: float, outlines: bool, *, wide: bool = False
) -> Tensor:
    """The rings that hold most of what the images say about atoms, in steps of 1 / ``window``: (s,) rising.

    They run around the strongest ring beyond 1/4 angstrom (the particle's strongest atomic reflections) as far as the
    signal stays above a sixth of that; ``wide``: on the fine side until they hold nine tenths of the signal, gaps
    between reflections included. With ``outlines`` (projections, where low frequencies mean thickness) coarser rings
    as strong as that join them.
    """
    step = 1 / window
    frequencies = torch.arange(1, int(0.95 / (2 * pixel_size) / step), device=white.device) * step
    ratio = signal_to_noise(white, pixel_size, radius, frequencies)
    atomic = frequencies > 0.25
    peak = int(torch.where(atomic, ratio, -1.0).argmax())
    # the disc holds about so many independent coefficients on half a ring
    chance = 1 / torch.sqrt(len(white) * 2 * math.pi * frequencies * radius)
    if not bool(atomic.any()) or not bool((ratio > _SIGNIFICANT * chance)[peak]):
        raise InputError(
            "the images hold no signal above their noise at spacings below 4 angstrom, expected that of atoms: "
            "check the pixel size, and the contrast and dose of the images"
        )
    enough = ratio >= ratio[peak] / 6
    first = last = peak
    while first > 0 and bool(enough[first - 1]):
        first -= 1
    while last + 1 < len(enough) and bool(enough[last + 1]):
        last += 1
    if wide:
        signal = torch.where(ratio > _SEEN * chance, ratio * frequencies, 0.0)[first:].cumsum(0)
        last = max(last, first + int((signal >= _WIDE * signal[-1]).nonzero()[0, 0]))
    number = torch.arange(len(enough), device=white.device)
    chosen = (number >= first) & (number <= last)
    if outlines:
        chosen |= enough & (number < first)
    return (number[chosen] + 1).float()


def map_box(last_shell: float) -> int:
    """Even box size of a map that holds shells up to ``last_shell``."""
    return 2 * math.ceil(1.14 * last_shell)


def sample_rings(
    stack: ImageStack, white: ImageStack, noise: NoiseModel, grid: SearchGrid, centres: Tensor, *, centre_sigma: float
) -> RingImages:
    """The whitened images on the rings of a grid, enough samples on each for a particle that fills the support."""
    pixel, window = stack.pixel_size, grid.box_size * grid.voxel_size
    frequencies = grid.shells / window
    orders = 2 * math.pi * grid.radius * float(frequencies.max()) + 6
    n_angles = 16 * math.ceil(2 * orders / 16)
    vectors = ring_vectors(frequencies, n_angles)
    disc = disc_mask(stack.box_size, grid.disc_radius, pixel).to(white.images)
    rings = torch.cat(
        [ring_transform(part * disc, vectors[:, : n_angles // 2], pixel) for part in white.images.split(128)]
    )
    coefficients = 2 * math.pi * frequencies / window * (stack.box_size * pixel) ** 2 / n_angles
    return RingImages(
        torch.cat((rings, rings.conj()), -1),
        ring_transfer(stack.optics, noise, vectors, stack),
        frequencies,
        coefficients,
        centres,
        centre_sigma,
        float(disc.square().mean()),
    )


def signal_nats(images: RingImages) -> float:
    """Half the particle's power over the noise, summed over an image: what a perfect model would gain on each image."""
    excess = images.rings.abs().square().mean((0, 2)) - images.noise_power
    return float((excess.clamp(min=0) * images.weights).sum()) * images.rings.shape[-1] / 2
