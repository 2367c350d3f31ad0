"""Particles as discs of excess power: where they are in the mean of a few frames, without anyone pointing at them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class DetectionSettings:
    """How particles are found.

    smallest_radius, largest_radius : angstrom.
    frames : averaged (as power) to one detection.
    significance : nats that a disc must gain over background.
    least_excess : power above the background's, as a fraction of it, in the band of the particles.
    """

    smallest_radius: float = 5.0
    largest_radius: float = 40.0
    frames: int = 10
    significance: float = 40.0
    least_excess: float = 0.1


class Disc(NamedTuple):
    """x, y : angstrom. radius : angstrom. excess : power over the background's, less 1. gain : nats."""

    x: float
    y: float
    radius: float
    excess: float
    gain: float


def band_power(frames: Tensor, filter_: Tensor) -> Tensor:
    """Power (n, y, x) of frames in a band: ``filter_`` (y, x // 2 + 1) multiplies ``rfft2``."""
    return torch.fft.irfft2(torch.fft.rfft2(frames) * filter_, s=frames.shape[-2:]).square()


def binned(power: Tensor, factor: int) -> Tensor:
    """Mean over squares of ``factor`` pixels: (..., y // factor, x // factor)."""
    height, width = (s // factor * factor for s in power.shape[-2:])
    shape = (*power.shape[:-2], height // factor, factor, width // factor, factor)
    return power[..., :height, :width].reshape(shape).mean((-3, -1))


def find_discs(
    power: Tensor, pixel_size: float, freedom: float, settings: DetectionSettings | None = None
) -> list[Disc]:
    """Discs in which the power is above the background's, the most certain first; they do not overlap.

    Parameters
    ----------
    power : (y, x) band power averaged over frames, on pixels of ``pixel_size`` angstrom.
    freedom : independent values that went into one square angstrom of it.

    Returns
    -------
    Discs, sub-pixel.

    Notes
    -----
    A disc of power p over a background b gains ``m / 2 (p / b - 1 - ln(p / b))`` nats, m its independent values: the
    likelihood ratio of two variances. The background is the median over the field, again once particles are known.
    """
    settings = settings or DetectionSettings()
    rest, found = power.clone(), list[Disc]()
    height, width = power.shape
    y = (torch.arange(height) + 0.5) * pixel_size
    x = (torch.arange(width) + 0.5) * pixel_size
    largest = min(settings.largest_radius, 0.35 * min(height, width) * pixel_size)
    radii = [settings.smallest_radius]
    while radii[-1] * 1.15 <= largest:
        radii.append(radii[-1] * 1.15)
    inside = torch.fft.rfft2(torch.ones(height, width), s=(2 * height, 2 * width))
    kernels = [_disc_transform(height, width, radius / pixel_size) for radius in radii]
    counts = [torch.fft.irfft2(inside * k, s=(2 * height, 2 * width))[:height, :width].clamp(min=1) for k in kernels]
    for _ in range(64):
        # the median of what is left: particles are put to the background as they are found
        background = float(rest.median())
        transform = torch.fft.rfft2(rest, s=(2 * height, 2 * width))
        best = Disc(0.0, 0.0, 0.0, 0.0, 0.0)
        for radius, kernel, count in zip(radii, kernels, counts, strict=True):
            mean = torch.fft.irfft2(transform * kernel, s=(2 * height, 2 * width))[:height, :width] / count
            ratio = (mean / background).clamp(min=1.0)
            # a disc cut by the border of the field counts by the part that is seen
            gain = 0.5 * freedom * count * pixel_size**2 * (ratio - 1 - ratio.log())
            k = int(gain.argmax())
            value = float(gain.flatten()[k])
            if value > best.gain:
                best = Disc(float(x[k % width]), float(y[k // width]), radius, float(ratio.flatten()[k]) - 1, value)
        if best.gain < settings.significance or best.excess < settings.least_excess:
            break
        distance = torch.sqrt((x - best.x) ** 2 + (y[:, None] - best.y) ** 2)
        weight = (rest / background - 1).clamp(min=0) * (distance < 1.2 * best.radius)
        total = weight.sum().clamp(min=1e-12)
        centre_x, centre_y = float((weight * x).sum() / total), float((weight * y[:, None]).sum() / total)
        found.append(best._replace(x=centre_x, y=centre_y))
        rest = torch.where(distance < 1.4 * best.radius + 2.0, background, rest)
    return found


def _disc_transform(height: int, width: int, radius: float) -> Tensor:
    y = torch.fft.fftfreq(2 * height, 1 / (2 * height))
    x = torch.fft.fftfreq(2 * width, 1 / (2 * width))
    disc = (radius + 0.5 - torch.sqrt(y[:, None] ** 2 + x**2)).clamp(0, 1)
    return torch.fft.rfft2(disc)


def shell_power(frames: Tensor, pixel_size: float, step: float = 0.01) -> tuple[Tensor, Tensor]:
    """Mean power by shells ``step`` (1/angstrom) wide and the shell of every coefficient of ``rfft2``."""
    height, width = frames.shape[-2:]
    k_y = torch.fft.fftfreq(height, pixel_size)
    k_x = torch.fft.rfftfreq(width, pixel_size)
    shells = (torch.sqrt(k_y[:, None] ** 2 + k_x**2) / step).round().long()
    power = torch.fft.rfft2(frames).abs().square().mean(0) if frames.ndim == 3 else torch.fft.rfft2(frames).abs() ** 2
    size = int(shells.max()) + 1
    count = torch.bincount(shells.flatten(), minlength=size).clamp(min=1)
    return torch.bincount(shells.flatten(), weights=power.flatten().double(), minlength=size) / count, shells


def band_filter(signal: Tensor, noise: Tensor, pixel_size: float, shape: tuple[int, int], step: float = 0.01) -> Tensor:
    """The filter (y, x // 2 + 1) whose power tells signal from noise best, given both by shells ``step`` wide.

    Whitening times the root of ``e / (1 + e)``, e the signal's power over the noise's, for wavelengths of 1.1 to 6
    angstrom: atoms, not outlines.
    """
    height, width = shape
    k_y = torch.fft.fftfreq(height, pixel_size)
    k_x = torch.fft.rfftfreq(width, pixel_size)
    k = torch.sqrt(k_y[:, None] ** 2 + k_x**2)
    shells = (k / step).round().long().clamp(max=len(noise) - 1)
    ratio = (signal / noise.clamp(min=1e-30)).clamp(min=0)
    weight = torch.sqrt(ratio / (1 + ratio) / noise.clamp(min=1e-30))
    rise = 0.5 - 0.5 * torch.cos(math.pi * ((k - 0.16) / 0.08).clamp(0, 1))
    return weight[shells].float() * rise * (k < 0.9)
