"""Where a particle's centre is in every frame: sub-pixel, from its power, its outline, and its own movement.

Three measurements, each with its information, meet in one path through time (`spr.paths`):

- band-passed power is high inside the particle's outline: unbiased, but speckled by whatever lattice planes show, and
  the speckle turns only as fast as the particle does;
- the particle takes electrons away, so that at low resolution its disc is dark: weak in a frame, fresh in each;
- a frame and the next ones show nearly the same particle: their correlation says how far it moved, to a fraction of a
  pixel, while a sum over time would let it wander. A frame is never correlated with itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spr.detection import band_filter, band_power
from spr.paths import Movement, Path, solve_path
from spr.windowed_spectra import Band, best_shift, shifted


@dataclass(frozen=True)
class TrackingSettings:
    """How centres are refined.

    lags : frames up to which movement is measured by correlation.
    step : angstrom, rms movement between frames on each axis.
    turning : angstrom, error of a measured movement because the particle turns meanwhile, by the root of the lag.
    speckle_frames : frames over which the particle's speckle stays the same.
    reach : angstrom, how far around the path the centre is looked for.
    rounds : each with profiles learned from the path of the last.
    max_frequency : 1/angstrom.
    """

    lags: int = 3
    step: float = 0.3
    turning: float = 0.15
    speckle_frames: float = 6.0
    reach: float = 3.0
    rounds: int = 3
    max_frequency: float = 0.9


class CentredBoxes(NamedTuple):
    """Boxes cut from background-free frames.

    images : (n, d, d). corners : (n, 2) of (x, y), angstrom, of each box's first pixel.
    """

    images: Tensor
    corners: Tensor


class RefinedPath(NamedTuple):
    """path : positions and covariance, angstrom. gain : (n,) nats by which each frame shows a particle there."""

    path: Path
    gain: Tensor


def soft_discs(centres: Tensor, radius: float, edge: float, size: int, pixel_size: float) -> Tensor:
    """(n, d, d): 1 within ``radius`` of each centre (n, 2), 0 beyond ``radius + edge``; angstrom from pixel 0."""
    axis = torch.arange(size, dtype=centres.dtype, device=centres.device) * pixel_size
    r = torch.sqrt((axis - centres[:, 0, None, None]) ** 2 + (axis[:, None] - centres[:, 1, None, None]) ** 2)
    return 0.5 + 0.5 * torch.cos(math.pi * ((r - radius) / edge).clamp(0, 1))


def refine_path(
    boxes: CentredBoxes,
    start: Tensor,
    radius: float,
    pixel_size: float,
    noise: Tensor,
    settings: TrackingSettings | None = None,
) -> RefinedPath:
    """Refine the centre of one particle in every frame.

    Parameters
    ----------
    boxes : n boxes of d pixels, each with the particle and some margin.
    start : (n, 2) of (x, y), angstrom, rough centres, good to about ``settings.reach``.
    radius : of the particle, angstrom.
    noise : background power per pixel by shells 0.01/angstrom wide; of white noise its variance.

    Returns
    -------
    The path with its covariance and each frame's evidence for the particle.
    """
    settings = settings or TrackingSettings()
    n, d = len(boxes.images), boxes.images.shape[-1]
    band = Band.of((d, d), pixel_size, settings.max_frequency)
    path = Path(start.double(), torch.eye(2, dtype=torch.float64).expand(n, 2, 2) * settings.reach**2)
    gain = torch.zeros(n)
    for _ in range(settings.rounds):
        inner = (path.positions - boxes.corners.double()).float()
        spectra, signal, floor = _particle_spectra(boxes.images, inner, radius, pixel_size, noise, band)
        absolute, information, gain = _positions(boxes, inner, radius, pixel_size, noise, signal, settings)
        movements = {}
        for lag in range(1, min(settings.lags, n - 1) + 1):
            movements[lag] = _movement(spectra, inner, boxes.corners, signal, floor, band, lag, settings)
        path = solve_path(absolute + boxes.corners, information, settings.step**2, movements)
    return RefinedPath(path, gain)


def _particle_spectra(
    images: Tensor, centres: Tensor, radius: float, pixel_size: float, noise: Tensor, band: Band
) -> tuple[Tensor, Tensor, Tensor]:
    """Band spectra of the particle alone, its power over the noise by shells, and the noise of each coefficient."""
    d = images.shape[-1]
    spectra = torch.empty(len(images), *band.shape, dtype=torch.complex64)
    area = 0.0
    for first in range(0, len(images), 64):
        part = slice(first, first + 64)
        mask = soft_discs(centres[part], radius + 1.0, 3.0, d, pixel_size)
        area += float(mask.square().sum())
        spectra[part] = band.cut(torch.fft.rfft2(images[part] * mask))
    k = torch.sqrt(band.k_x**2 + band.k_y**2)
    shells = (k / 0.01).round().long().clamp(max=len(noise) - 1)
    floor = noise[shells].float() * area / len(images)
    power = (spectra.abs().square().mean(0) / floor).flatten().double()
    index = shells.flatten()
    count = torch.bincount(index, minlength=len(noise)).clamp(min=1)
    ratio = torch.bincount(index, weights=power, minlength=len(noise)) / count - 1
    # neighbouring shells share the window's width
    smooth = torch.nn.functional.avg_pool1d(ratio[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
    return spectra, (smooth - 0.02).clamp(min=0), floor


def _movement(
    spectra: Tensor,
    centres: Tensor,
    corners: Tensor,
    signal: Tensor,
    floor: Tensor,
    band: Band,
    lag: int,
    settings: TrackingSettings,
) -> Movement:
    """How far the particle moved over ``lag`` frames, from the likelihood that both frames show the same particle.

    For two coefficients with common power e over noise 1 and coherence c the likelihood of a shift is
    ``Re(a conj(b)) c e / ((1 + e)^2 - c^2 e^2)``, up to a constant: the off-diagonal of
    the inverse of their covariance.
    """
    n = len(spectra) - lag
    k = torch.sqrt(band.k_x**2 + band.k_y**2)
    e = signal[(k / 0.01).round().long().clamp(max=len(signal) - 1)].float() * (k > 0.16)
    # both are moved to the path's centre; what is left is how far the path is off
    expected = centres[lag:] - centres[:-lag]
    coherence = 0.7
    shifts, information, value = torch.zeros(n, 2), torch.zeros(n, 2, 2), torch.zeros(n)
    for _ in range(2):
        weight = coherence * e / ((1 + e) ** 2 - (coherence * e) ** 2) / floor
        agreed, possible = 0.0, 0.0
        for first in range(0, n, 64):
            part, later = slice(first, min(first + 64, n)), slice(first + lag, min(first + 64, n) + lag)
            cross = shifted(spectra[later], -expected[part], band) * spectra[part].conj() * weight
            shifts[part], information[part], value[part] = best_shift(cross, band, 0.9)
            agreed += float(value[part].sum())
            possible += float((band.weight * weight * e * floor).sum()) * (part.stop - part.start)
        coherence = min(0.95, max(0.05, agreed / max(possible, 1e-12)))
    sure = value > 6.0
    moved = expected + torch.where(sure[:, None], shifts, 0.0) + corners[lag:] - corners[:-lag]
    # the lags share their frames' noise and the particle's turn: together they say little more than one of them
    exact = torch.where(sure[:, None, None], information, torch.eye(2)) / settings.lags
    error = torch.linalg.inv(exact) + settings.lags * lag * settings.turning**2 * torch.eye(2)
    return Movement(moved, torch.where(sure[:, None, None], torch.linalg.inv(error), 0.0))


def _positions(
    boxes: CentredBoxes,
    centres: Tensor,
    radius: float,
    pixel_size: float,
    noise: Tensor,
    signal: Tensor,
    settings: TrackingSettings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres (n, 2) in their boxes, angstrom, and information (n, 2, 2) from power and outline; evidence (n,)."""
    images = boxes.images
    n, d = images.shape[0], images.shape[-1]
    filter_ = band_filter(signal * noise, noise, pixel_size, (d, d))
    freedom = float(filter_.square().mean() ** 2 / filter_.pow(4).mean())
    k_y, k_x = torch.fft.fftfreq(d, pixel_size), torch.fft.rfftfreq(d, pixel_size)
    k = torch.sqrt(k_y[:, None] ** 2 + k_x**2)
    shells = (k / 0.01).round().long().clamp(max=len(noise) - 1)
    low = ((k > 0.5 / (d * pixel_size)) & (k < 1.5 / radius)).float() / noise[shells].float().clamp(min=1e-30)
    profiles = _profiles(images, centres, filter_, low, radius, pixel_size)
    axis = (torch.arange(d) - d // 2) * pixel_size
    r = torch.sqrt(axis[:, None] ** 2 + axis**2)
    rings = (r / pixel_size).round().long().clamp(max=len(profiles[0]) - 1)
    outside = (r > radius + 4.0) & (r < 0.5 * d * pixel_size)
    background = float(profiles[0][rings][outside].mean())
    excess = (profiles[0][rings] / background - 1).clamp(min=0) * (r < radius + 4.0)
    log_ratio = 0.5 * freedom * excess / (1 + excess)
    outline = (profiles[1][rings] - profiles[1][rings][outside].mean()) * (r < radius + 4.0)
    kernels = [torch.fft.rfft2(torch.fft.ifftshift(each)).conj() for each in (log_ratio / background, outline)]
    constant = 0.5 * freedom * float(torch.log1p(excess).sum())
    found, information, gain = torch.empty(n, 2), torch.empty(n, 2, 2), torch.empty(n)
    grid = torch.arange(d) * pixel_size
    for first in range(0, n, 64):
        part = slice(first, min(first + 64, n))
        some = images[part] - images[part].mean((1, 2), keepdim=True)
        bright = torch.fft.irfft2(torch.fft.rfft2(band_power(some, filter_)) * kernels[0], s=(d, d)) - constant
        dark = torch.fft.irfft2(torch.fft.rfft2(some) * low * kernels[1], s=(d, d))
        off_x, off_y = grid - centres[part, 0, None], grid - centres[part, 1, None]
        squares = off_y[:, :, None] ** 2 + off_x[:, None, :] ** 2
        near = squares < (2 * settings.reach) ** 2
        spread = settings.reach / 2
        score = (bright / settings.speckle_frames + dark - squares / (2 * spread**2)).masked_fill(~near, -torch.inf)
        p = torch.softmax(score.flatten(1), 1).view_as(score)
        mean = torch.stack(((p.sum(1) * off_x).sum(1), (p.sum(2) * off_y).sum(1)), 1)
        xx, yy = (p.sum(1) * off_x**2).sum(1), (p.sum(2) * off_y**2).sum(1)
        xy = (p * off_y[:, :, None] * off_x[:, None, :]).sum((1, 2))
        second = torch.stack((torch.stack((xx, xy), 1), torch.stack((xy, yy), 1)), 1)
        covariance = second - mean[:, :, None] * mean[:, None] + pixel_size**2 / 12 * torch.eye(2)
        # the prior was only there to make the mean local: what it knew is taken off again
        held = torch.linalg.inv(covariance)
        alone = held - torch.eye(2) / spread**2
        values, vectors = torch.linalg.eigh(alone)
        alone = (vectors * values.clamp(min=1e-3)[:, None]) @ vectors.mT
        found[part] = centres[part] + torch.linalg.solve(alone, (held @ mean[..., None]))[..., 0].clamp(
            -2 * settings.reach, 2 * settings.reach
        )
        information[part] = alone
        gain[part] = (bright + dark).masked_fill(~near, -torch.inf).flatten(1).max(1).values
    return found, information, gain


def _profiles(
    images: Tensor, centres: Tensor, filter_: Tensor, low: Tensor, radius: float, pixel_size: float
) -> tuple[Tensor, Tensor]:
    """Radial means about the centres, by pixels of distance: of the band power, and of the image at low resolution."""
    d = images.shape[-1]
    axis = torch.arange(d) * pixel_size
    sums = torch.zeros(3, d, dtype=torch.float64)
    pass_low = (low > 0).float()
    for first in range(0, len(images), 64):
        part = slice(first, first + 64)
        some = images[part] - images[part].mean((1, 2), keepdim=True)
        off_x, off_y = axis - centres[part, 0, None], axis - centres[part, 1, None]
        r = torch.sqrt(off_y[:, :, None] ** 2 + off_x[:, None, :] ** 2) / pixel_size
        index = r.round().long().clamp(max=d - 1).flatten()
        smooth = torch.fft.irfft2(torch.fft.rfft2(some) * pass_low, s=(d, d))
        for row, values in enumerate((torch.ones_like(some), band_power(some, filter_), smooth)):
            sums[row] += torch.bincount(index, weights=values.flatten().double(), minlength=d)
    count = sums[0].clamp(min=1)
    return (sums[1] / count).float(), (sums[2] / count).float()
