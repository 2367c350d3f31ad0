"""Model and measurement brought together: atoms in poses, whitened images, coefficients in a band."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from common.atoms.image_model import (
    Band,
    Lens,
    Profiles,
    Wave,
    expose,
    fourier_band,
    lens,
    profiles,
    render,
)
from common.data import ImageStack, Optics
from common.noise import NoiseModel, whiten


@dataclass(frozen=True)
class Parameters:
    """Everything that is refined, float64.

    positions : (n, 3) angstrom. heights : (n,) integral over the plane: radian angstrom^2, or intensity angstrom^2.
    b_factors : (n,) angstrom^2, on top of the shared shape.
    widths : (c,) angstrom, standard deviations of the Gaussians of the atoms' shape. fractions : (c,) sum to 1.
    focal_spread, defocus_shift : () angstrom, shared by all images. contrast : () log of a shared factor.
    rotations : (m, 3, 3). shifts : (m, 2) angstrom. gains : (m,) logs. defocus : (m,) angstrom, offset of each image.
    """

    positions: Tensor
    heights: Tensor
    b_factors: Tensor
    widths: Tensor
    fractions: Tensor
    focal_spread: Tensor
    defocus_shift: Tensor
    contrast: Tensor
    rotations: Tensor
    shifts: Tensor
    gains: Tensor
    defocus: Tensor


@dataclass(frozen=True)
class Views:
    """Own parameters of some images, or of several candidate poses of each."""

    rotations: Tensor
    shifts: Tensor
    gains: Tensor
    defocus: Tensor

    def __getitem__(self, index: Tensor | slice) -> Views:
        return Views(*(getattr(self, f.name)[index] for f in fields(self)))

    def __len__(self) -> int:
        return len(self.gains)


def views_of(parameters: Parameters) -> Views:
    return Views(parameters.rotations, parameters.shifts, parameters.gains, parameters.defocus)


@dataclass(frozen=True)
class Measurement:
    """Whitened images cut around their particles, as coefficients in a band.

    spectra : (m, f) complex; unit variance of noise. power : (m,) sum of squares of all coefficients of the band.
    level : (m,) what a model image that is 0 in vacuum is multiplied by (vacuum level over noise scale).
    origins : (m, 2) place of the cut's centre relative to the box's, angstrom, (x, y).
    optics : of each image; None for plain projections. band : which coefficients.
    vacuum_known : the level is that of the vacuum; else the images came without one, and the contrast must be found.
    """

    spectra: Tensor
    power: Tensor
    level: Tensor
    origins: Tensor
    optics: Optics | None
    band: Band
    vacuum_known: bool = True

    def __getitem__(self, index: Tensor) -> Measurement:
        optics = None if self.optics is None else self.optics[index]
        return replace(
            self,
            spectra=self.spectra[index],
            power=self.power[index],
            level=self.level[index],
            origins=self.origins[index],
            optics=optics,
        )

    def __len__(self) -> int:
        return len(self.level)


def measure(
    stack: ImageStack, noise: NoiseModel, centres: Tensor, *, side: int, limits: list[float], margin: float = 3.0
) -> list[Measurement]:
    """Whiten, cut a square of ``side`` pixels around each particle, and take its coefficients up to each of ``limits``.

    Parameters
    ----------
    stack, noise : raw images and their noise.
    centres : (m, 2) where each particle is, angstrom from the box's centre; rounded to whole pixels.
    side : pixels, at most the box.
    limits : 1/angstrom.
    """
    white = whiten(stack, noise).images
    m, d = white.shape[0], white.shape[-1]
    reach = (d - side) // 2
    moved = torch.round(centres.to(white.device) / stack.pixel_size).clamp(-reach, reach).long()
    axis = torch.arange(side, device=white.device) + d // 2 - side // 2
    rows, columns = axis + moved[:, 1:2], axis + moved[:, 0:1]
    cut = white[torch.arange(m, device=white.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    spread = math.sqrt(float(noise.shell_power.mean()))
    # images normalised to a border of zero have lost their vacuum level
    vacuum_known = stack.optics is None or float(noise.mean.min()) > 0.1 * spread
    vacuum = noise.mean if stack.optics is not None and vacuum_known else torch.ones_like(noise.mean)
    level = (vacuum / noise.scale).to(white)
    optics = None if stack.optics is None else _as_type(stack.optics, white)
    frequencies = torch.arange(len(noise.shell_power), device=white.device).float() / (d * stack.pixel_size)
    spectra = torch.fft.rfft2(cut, norm="ortho")
    whitening = noise.shell_power.to(white.device).float().rsqrt()
    found = []
    for limit in limits:
        room = math.inf if optics is None else margin
        band = fourier_band(side, stack.pixel_size, limit, whitening, frequencies, margin=room)
        kept = spectra[:, _column(band, side)[0], _column(band, side)[1]] / band.halved.sqrt() * 1.0
        power = (kept.real**2 + kept.imag**2).double().sum(1)
        found.append(Measurement(kept, power, level, (moved * stack.pixel_size).to(white), optics, band, vacuum_known))
    return found


def _column(band: Band, side: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of the band's coefficients in ``rfft2`` of the whole cut."""
    unit = side * band.pixel_size
    return torch.round(band.ky * unit).long() % side, torch.round(band.kx * unit).long()


def _as_type(optics: Optics, like: Tensor) -> Optics:
    return Optics(**{f.name: getattr(optics, f.name).to(like) for f in fields(optics)})


def batches(n: int, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    for start in range(0, n, batch_size):
        yield torch.arange(start, min(n, start + batch_size), device=device)


def gaussians(parameters: Parameters, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and variance (n x c,) of every Gaussian of every atom."""
    weights = parameters.heights[:, None] * parameters.fractions
    variance = parameters.widths**2 + parameters.b_factors[:, None] / (8 * math.pi**2)
    return weights.flatten().to(dtype), variance.flatten().to(dtype)


@dataclass(frozen=True)
class Exposure:
    """A batch of model images and what their derivatives need.

    placed : (b, k, 3) Gaussians' centres relative to the particle's origin in the view. model : (b, f) coefficients.
    """

    placed: Tensor
    rotations: Tensor
    drawn: Profiles
    weights: Tensor
    wave: Wave | None
    model: Tensor
    gain: Tensor


def lens_of(optics: Optics | None, parameters: Parameters, views: Views, band: Band) -> Lens | None:
    """The lens with the refined focal spread and defocus; ``optics`` has one row per view."""
    if optics is None:
        return None
    moved = (views.defocus + parameters.defocus_shift).to(optics.defocus)
    defocus = torch.cat((optics.defocus[:, :2] + moved[:, None], optics.defocus[:, 2:]), 1)
    spread = torch.full_like(optics.focal_spread, float(parameters.focal_spread))
    return lens(replace(optics, defocus=defocus, focal_spread=spread), band)


def expose_views(parameters: Parameters, views: Views, data: Measurement) -> Exposure:
    """Model coefficients of each row of ``data`` (one per view)."""
    band = data.band
    dtype = band.scale.dtype
    weights, variance = gaussians(parameters, dtype)
    rotations = views.rotations.to(dtype)
    components = len(parameters.widths)
    placed = parameters.positions.to(dtype) @ rotations.mT  # (b, n, 3)
    centres = placed[..., :2] + (views.shifts.to(dtype) - data.origins)[:, None]
    if components > 1:
        placed, centres = (x.repeat_interleave(components, 1) for x in (placed, centres))
    drawn = profiles(centres, variance, band.coordinates)
    optics = lens_of(data.optics, parameters, views, band)
    model, wave = expose(render(drawn.by, drawn.bx, weights), optics, band)
    gain = torch.exp(views.gains + parameters.contrast).to(dtype) * data.level
    return Exposure(placed, rotations, drawn, weights, wave, model * gain[:, None], gain)


def real_form(values: Tensor) -> Tensor:
    """(..., f) complex as (..., 2 f) real, so that inner products are sums over pixels."""
    return torch.view_as_real(values).flatten(-2)
