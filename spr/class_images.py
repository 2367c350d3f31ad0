"""Class averages as images in pixels, and how far independent halves of a class agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.fourier import resample_fourier, rfft_multiplicity, rfft_shell_indices, shell_sum
from common.masks import soft_disc
from common.parallel import sum_over_shards

_FINER = 3  # samples between which an image is interpolated, along an axis, for each of its pixels
_AGREE = 0.143  # of a Fourier ring correlation, as for half maps


@dataclass(frozen=True)
class WeightedSums:
    """sums : (k, d, d) turned images times their transfer. weights : (k, d, d // 2 + 1) their squared transfer."""

    sums: Tensor
    weights: Tensor


@dataclass(frozen=True)
class RingCorrelation:
    """Fourier ring correlation of the halves of classes.

    frequencies : (s,) 1/angstrom. correlation : (k, s). coefficients : (s,) independent ones of the particle's disc.
    """

    frequencies: Tensor
    correlation: Tensor
    coefficients: Tensor


def turn_images(images: Tensor, angles: Tensor, shifts: Tensor) -> Tensor:
    """Images as their class average sees them.

    Parameters
    ----------
    images : (n, d, d). angles : (n,) degrees. shifts : (n, 2) of the particle, pixels.

    Returns
    -------
    (n, d, d); the value at x is that of the image at ``R(-angle) x + shift``, 0 outside; bicubic on three times the
    samples, right to 1 % of a peak.
    """
    d = images.shape[-1]
    fine = resample_fourier(images, _FINER * d, 2)
    axis = torch.arange(d, device=images.device, dtype=images.dtype) - d // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    c, s = (f(torch.deg2rad(angles)).to(images)[:, None, None] for f in (torch.cos, torch.sin))
    moved = shifts.to(images)[:, :, None, None]
    at = torch.stack((c * x + s * y + moved[:, 0], -s * x + c * y + moved[:, 1]), -1)
    origin = _FINER * d // 2
    place = 2 * (_FINER * at + origin) / (_FINER * d - 1) - 1
    sampled = torch.nn.functional.grid_sample(fine[:, None], place, mode="bicubic", align_corners=True)
    return sampled[:, 0]


def sum_images(
    white: Tensor,
    transfer: Tensor,
    label: Tensor,
    angles: Tensor,
    shifts: Tensor,
    weights: Tensor,
    n_classes: int,
    *,
    batch_size: int = 64,
) -> WeightedSums:
    """Add whitened images up class by class.

    Parameters
    ----------
    white : (n, d, d). transfer : (n, d, d // 2 + 1), of microscope and whitening, to the images; taken as round.
    label, angles, shifts, weights : of each image; shifts (n, 2) in pixels.
    """
    d = white.shape[-1]

    def of_shard(rows: Tensor) -> tuple[Tensor, Tensor]:
        sums, counts = white.new_zeros(n_classes, d, d), white.new_zeros(n_classes, d, d // 2 + 1)
        for part in rows.to(white.device).split(batch_size):
            matched = torch.fft.irfft2(torch.fft.rfft2(white[part]) * transfer[part], s=(d, d))
            turned = turn_images(matched, angles[part], shifts[part]) * weights[part, None, None]
            sums = sums.index_add(0, label[part], turned)
            counts = counts.index_add(0, label[part], transfer[part].square() * weights[part, None, None])
        return sums, counts

    return WeightedSums(*sum_over_shards(of_shard, len(white), n_shards=4))


def signal_power(white: Tensor, transfer: Tensor, radius: float) -> Tensor:
    """Mean power of the particles' projections over the shells: (d, d // 2 + 1), 0 where there is only noise.

    white : (n, d, d). transfer : (n, d, d // 2 + 1). radius : of the disc that holds the particles, pixels.
    """
    n, d = white.shape[:2]
    disc = soft_disc(d, radius, edge=2.0).to(white)
    shells = rfft_shell_indices(d, 2, device=white.device)
    count = rfft_multiplicity(d, dtype=white.dtype, device=white.device).expand(d, -1)
    power, square = torch.zeros_like(count), torch.zeros_like(count)
    for part in torch.arange(n, device=white.device).split(128):
        power = power + torch.fft.rfft2(white[part] * disc).abs().square().sum(0)
        square = square + transfer[part].square().sum(0)
    seen, passed, each = (shell_sum(v * count, shells, d // 2 + 1) for v in (power, square, torch.ones_like(count)))
    noise = float(disc.square().sum())
    chance = 2 * torch.sqrt(d * d / (disc.square().sum() * each.clamp(min=1) * n))
    excess = (seen / (each * n).clamp(min=1) / noise - 1 - chance).clamp(min=0) * noise
    level = excess * n * each / passed.clamp(min=1e-12)
    level = torch.cat((level, level.new_zeros(1)))
    return level[shells.clamp(max=d // 2 + 1)]


def wiener_averages(sums: WeightedSums, power: Tensor, radius: float) -> Tensor:
    """Class averages (k, d, d), corrected for the transfer as far as the signal allows, inside a disc.

    power : `signal_power`. radius : pixels.
    """
    d = sums.sums.shape[-1]
    filtered = torch.fft.rfft2(sums.sums) * power / (sums.weights * power + 1)
    return torch.fft.irfft2(filtered, s=(d, d)) * soft_disc(d, radius, edge=2.0).to(sums.sums)


def ring_correlation(first: Tensor, second: Tensor, radius: float, pixel_size: float) -> RingCorrelation:
    """Fourier ring correlation of images (k, d, d) within a disc of ``radius`` pixels.

    References
    ----------
    Saxton, Baumeister, "The correlation averaging of a regularly arranged bacterial cell envelope protein", J. Microsc.
    127, 127 (1982). doi:10.1111/j.1365-2818.1982.tb00405.x
    """
    d = first.shape[-1]
    disc = soft_disc(d, radius, edge=2.0).to(first)
    shells = rfft_shell_indices(d, 2, device=first.device)
    count = rfft_multiplicity(d, dtype=first.dtype, device=first.device).expand(d, -1)
    a, b = torch.fft.rfft2(first * disc), torch.fft.rfft2(second * disc)
    cross, own, other = (
        shell_sum(values * count, shells, d // 2 + 1)
        for values in ((a * b.conj()).real, a.abs().square(), b.abs().square())
    )
    both = (own * other).sqrt()
    correlation = torch.where(both > 0, cross / both.clamp(min=torch.finfo(both.dtype).tiny), 0.0)
    coefficients = shell_sum(count, shells, d // 2 + 1) / 2 * (float(disc.square().mean()))
    frequencies = torch.arange(d // 2 + 1, device=first.device, dtype=first.dtype) / (d * pixel_size)
    return RingCorrelation(frequencies, correlation, coefficients)


def mean_correlation(frc: RingCorrelation, low: float, high: float) -> tuple[Tensor, float]:
    """Mean of each curve from ``low`` to ``high`` 1/angstrom, and what chance alone scatters it by."""
    band = (frc.frequencies >= low) & (frc.frequencies <= high)
    weight = torch.where(band, frc.coefficients, 0.0)
    return (frc.correlation * weight).sum(1) / weight.sum(), 1 / math.sqrt(2 * float(weight.sum()))


def class_resolution(frc: RingCorrelation, low: float, high: float) -> Tensor:
    """Spacing to which each class's halves agree, angstrom; infinity where they do not.

    From the best ring of the band outwards to the first below 0.143: rings that the microscope does not pass at low
    frequencies hold nothing that could agree.
    """
    band = (frc.frequencies >= low) & (frc.frequencies <= high)
    found = []
    for curve in frc.correlation:
        peak = int(torch.where(band, curve, -2.0).argmax())
        if float(curve[peak]) < _AGREE:
            found.append(math.inf)
            continue
        below = (curve[peak:] < _AGREE).nonzero()
        last = peak + (int(below[0]) - 1 if len(below) else len(curve) - 1 - peak)
        found.append(1 / max(float(frc.frequencies[last]), 1e-6))
    return torch.tensor(found)
