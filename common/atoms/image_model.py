"""Images of atoms and their exact derivatives: kernels in plain tensors, for plain projections and for phase objects.

An image is compared with its model on whitened Fourier coefficients inside a band. One road for both models: the atoms
are Gaussians rendered as ``V = By^T diag(w) Bx``; then

- projection: ``image = V``;
- phase object: ``image = |F^-1[T F[exp(i V)]]|^2 - 1`` with ``T`` the transfer of the wave.

`tangent` carries a change of V forwards to the coefficients, `cotangent` carries a change of the log-likelihood with
the
coefficients backwards to V; each is the other's adjoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.data import Optics
from common.image_formation import aberration_phase, electron_wavelength, exit_wave, spatial_envelope, temporal_envelope


@dataclass(frozen=True)
class Band:
    """The Fourier coefficients that are compared, and the grids on which the model is computed.

    box : side d of the grid on which atoms are drawn, pixels of ``pixel_size``.
    coarse : side m <= d of the grid of the image, on which every coefficient of the band is free of aliasing.
    limit : highest frequency, 1/angstrom.
    index : (f,) into the flattened ``rfft2`` of the (m, m) image.
    scale : (f,) from a mean-normalised coefficient to one of unit noise variance, multiplicity included.
    kx, ky : (f,) 1/angstrom.
    halved : (f,) weight with which ``irfft2`` repeats a coefficient, for the adjoint.
    """

    box: int
    coarse: int
    pixel_size: float
    limit: float
    index: Tensor
    scale: Tensor
    kx: Tensor
    ky: Tensor
    halved: Tensor

    @property
    def coordinates(self) -> Tensor:
        """(d,) angstrom from pixel ``d // 2``."""
        steps = torch.arange(self.box, dtype=self.scale.dtype, device=self.scale.device) - self.box // 2
        return steps * self.pixel_size

    @property
    def origin_phase(self) -> Tensor:
        """(f,) complex: moves the origin from pixel 0 to pixel ``d // 2``."""
        angle = 2 * math.pi * (self.box // 2) * self.pixel_size * (self.kx + self.ky)
        return torch.polar(torch.ones_like(angle), angle)


def fourier_band(
    box: int, pixel_size: float, limit: float, whitening: Tensor, frequencies: Tensor, *, margin: float = 3.0
) -> Band:
    """The band of all coefficients with ``0 < k <= limit``.

    Parameters
    ----------
    box, pixel_size : pixels; angstrom.
    limit : 1/angstrom; cut at Nyquist (exclusive).
    whitening, frequencies : (r,) factor that gives white noise of variance 1 per pixel, at these frequencies
        (ascending).
    margin : side of the image's grid in units of the band's radius; 3 is free of aliasing for the intensity of a wave
        that is itself limited to the band.
    """
    limit = min(limit, 0.5 / pixel_size * (1 - 1e-6))
    coarse = box if math.isinf(margin) else min(box, 2 * math.ceil(margin * limit * box * pixel_size / 2))
    device, dtype = whitening.device, whitening.dtype
    ky = torch.fft.fftfreq(coarse, 1.0 / coarse, device=device, dtype=dtype) / (box * pixel_size)
    kx = torch.fft.rfftfreq(coarse, 1.0 / coarse, device=device, dtype=dtype) / (box * pixel_size)
    ky, kx = (grid.flatten() for grid in torch.meshgrid(ky, kx, indexing="ij"))
    k = torch.sqrt(kx**2 + ky**2)
    index = torch.nonzero((k > 0) & (k <= limit))[:, 0]
    kx, ky, k = kx[index], ky[index], k[index]
    position = torch.searchsorted(frequencies, k).clamp(1, len(frequencies) - 1)
    left, right = frequencies[position - 1], frequencies[position]
    part = ((k - left) / (right - left)).clamp(0, 1)
    log_factor = torch.log(whitening)
    factor = torch.exp(log_factor[position - 1] * (1 - part) + log_factor[position] * part)
    twice = torch.where(kx > 0, 2.0, 1.0).to(dtype)
    return Band(box, coarse, pixel_size, limit, index, box * factor * twice.sqrt(), kx, ky, 1 / twice)


@dataclass(frozen=True)
class Profiles:
    """One-dimensional Gaussians of every atom's components in every view; b is the batch, k = atoms x components.

    bx, by : (b, k, d) normalised Gaussians along x and y.
    ux, uy : (b, k, d) ``(grid - centre) / variance``: the derivative of b by its centre is ``u b``.
    variance : (k,) angstrom^2.
    """

    bx: Tensor
    by: Tensor
    ux: Tensor
    uy: Tensor
    variance: Tensor

    def spread_x(self) -> Tensor:
        """Derivative of ``bx`` by the variance."""
        return self.bx * (self.ux**2 - 1 / self.variance[:, None]) / 2

    def spread_y(self) -> Tensor:
        return self.by * (self.uy**2 - 1 / self.variance[:, None]) / 2


def profiles(centres: Tensor, variance: Tensor, coordinates: Tensor) -> Profiles:
    """Gaussians of integral 1 at ``centres`` (b, k, 2), angstrom, with ``variance`` (k,), at ``coordinates`` (d,)."""
    offset = coordinates - centres[..., None]  # (b, k, 2, d)
    scaled = offset / variance[:, None, None]
    height = torch.rsqrt(2 * math.pi * variance)
    # tails of 1e-17 instead of denormal numbers, whose arithmetic is a hundred times slower
    gauss = torch.exp((offset * scaled / -2).clamp(min=-40.0)) * height[:, None, None]
    return Profiles(gauss[:, :, 0], gauss[:, :, 1], scaled[:, :, 0], scaled[:, :, 1], variance)


def render(by: Tensor, bx: Tensor, weights: Tensor) -> Tensor:
    """``sum_k weights_k by_k(y) bx_k(x)``: (b, d, d) from (b, k, d) twice and weights (k,) or (b, k)."""
    return by.mT @ (bx * weights[..., None])


@dataclass(frozen=True)
class Lens:
    """Transfer of the wave for a batch of images, and how it changes.

    transfer : (b, m, m) complex, in the order of ``fft2``.
    defocus_rate : (b, m, m) derivative of ``-chi`` by the defocus.
    spread_rate : (b, m, m) derivative of the log of the envelope by the log of the focal spread.
    amplitude_contrast : (b,), or None where there is none.
    """

    transfer: Tensor
    defocus_rate: Tensor
    spread_rate: Tensor
    amplitude_contrast: Tensor | None


def lens(optics: Optics, band: Band) -> Lens:
    """The transfer of the wave on the coarse grid of ``band``, zero beyond its limit, for each row of the optics."""
    m = band.coarse
    k = torch.fft.fftfreq(m, 1.0 / m, device=band.scale.device, dtype=band.scale.dtype) / (band.box * band.pixel_size)
    ky, kx = torch.meshgrid(k, k, indexing="ij")
    wavelength = electron_wavelength(optics.voltage_kv)
    aberration = optics.spherical_aberration_mm * 1e7
    chi = aberration_phase(kx, ky, wavelength=wavelength, spherical_aberration=aberration, defocus=optics.defocus)
    k2 = kx**2 + ky**2
    temporal = temporal_envelope(kx, ky, wavelength=wavelength, focal_spread=optics.focal_spread)
    envelope = temporal * (k2 <= band.limit**2)
    if bool((optics.convergence_mrad > 0).any()):
        envelope = envelope * spatial_envelope(
            kx,
            ky,
            wavelength=wavelength,
            spherical_aberration=aberration,
            defocus=optics.defocus,
            convergence_mrad=optics.convergence_mrad,
        )
    focus_rate = (math.pi * wavelength)[:, None, None] * k2
    contrast = optics.amplitude_contrast if bool((optics.amplitude_contrast > 0).any()) else None
    spread_rate = -((focus_rate * optics.focal_spread[:, None, None]) ** 2)
    return Lens(torch.polar(envelope, -chi), focus_rate, spread_rate, contrast)


@dataclass(frozen=True)
class Wave:
    """What the derivatives of a phase object need.

    exit : (b, d, d) exit wave. spectrum : (b, m, m) its transform after the lens. image : (b, m, m) wave in the image.
    factor : (b, 1, 1) or () derivative of the log of the exit wave by the phase.
    """

    exit: Tensor
    spectrum: Tensor
    image: Tensor
    lens: Lens
    factor: Tensor


def _crop(spectrum: Tensor, m: int) -> Tensor:
    """The m x m lowest frequencies of a transform in the order of ``fft2``."""
    d = spectrum.shape[-1]
    if m == d:
        return spectrum
    low, high = (m + 1) // 2, m // 2
    rows = torch.cat((spectrum[..., :low, :], spectrum[..., d - high :, :]), -2)
    return torch.cat((rows[..., :low], rows[..., d - high :]), -1)


def _pad(spectrum: Tensor, d: int) -> Tensor:
    """Adjoint of `_crop`."""
    m = spectrum.shape[-1]
    if m == d:
        return spectrum
    low, high = (m + 1) // 2, m // 2
    out = spectrum.new_zeros(*spectrum.shape[:-2], d, d)
    out[..., :low, :low] = spectrum[..., :low, :low]
    out[..., :low, d - high :] = spectrum[..., :low, low:]
    out[..., d - high :, :low] = spectrum[..., low:, :low]
    out[..., d - high :, d - high :] = spectrum[..., low:, low:]
    return out


def coefficients(image: Tensor, band: Band) -> Tensor:
    """Whitened coefficients (..., f) of images (..., m, m)."""
    spectrum = torch.fft.rfft2(image, norm="forward").flatten(-2)
    return spectrum[..., band.index] * band.scale


def projected_coefficients(centres: Tensor, variance: Tensor, weights: Tensor, band: Band) -> Tensor:
    """`coefficients` of rendered atoms without drawing them, from the Gaussians' own Fourier transform.

    Parameters
    ----------
    centres : (b, k, 2) angstrom. variance, weights : (k,) of each Gaussian, angstrom^2 and integral.
    band : of plain projections, narrow against the Gaussians' sampling, so that nothing is aliased.

    Returns
    -------
    (b, f) complex.
    """
    unit = 1 / (band.box * band.pixel_size)
    ky, kx = torch.round(band.ky / unit).long(), torch.round(band.kx / unit).long()
    n = int(torch.maximum(ky.abs(), kx).max()) + 1
    k = torch.arange(n, device=centres.device, dtype=centres.dtype) * unit
    # from the first pixel, as `rfft2` counts
    angle = 2 * math.pi * (centres[..., None] + (band.box // 2) * band.pixel_size) * k  # (b, k, 2, n)
    damped = torch.exp(-2 * math.pi**2 * variance[:, None] * k**2)[:, None]
    waves = torch.cat((torch.cos(angle) * damped, torch.sin(angle) * damped), -1)
    products = waves[:, :, 1].mT @ (waves[:, :, 0] * weights[:, None])  # (b, 2 n, 2 n): cosines, then sines
    flat, row, sign = products.flatten(1), 2 * n * ky.abs() + kx, torch.sign(ky)
    real = flat[:, row] - sign * flat[:, row + 2 * n * n + n]
    imaginary = flat[:, row + n] + sign * flat[:, row + 2 * n * n]
    return torch.complex(real, -imaginary) * (band.scale * unit**2)


def image_from_coefficients(values: Tensor, band: Band) -> Tensor:
    """Adjoint of `coefficients`: images (..., m, m) from (..., f)."""
    m = band.coarse
    spectrum = values.new_zeros(*values.shape[:-1], m * (m // 2 + 1))
    spectrum[..., band.index] = values * (band.scale * band.halved / m**2)
    return torch.fft.irfft2(spectrum.unflatten(-1, (m, m // 2 + 1)), s=(m, m), norm="forward")


def expose(phase: Tensor, optics: Lens | None, band: Band) -> tuple[Tensor, Wave | None]:
    """Model coefficients (b, f) of the rendered atoms ``phase`` (b, d, d), and the wave for the derivatives."""
    if optics is None:
        return coefficients(phase, band), None
    wave, factor = _exit(phase, optics)
    spectrum = _crop(torch.fft.fft2(wave, norm="forward"), band.coarse) * optics.transfer
    image = torch.fft.ifft2(spectrum, norm="forward")
    model = coefficients(image.real**2 + image.imag**2, band)
    return model, Wave(wave, spectrum, image, optics, factor)


def _exit(phase: Tensor, optics: Lens) -> tuple[Tensor, Tensor]:
    """The exit wave, and the derivative of its log by the phase."""
    contrast = optics.amplitude_contrast
    if contrast is None:
        imaginary = torch.tensor(1j, dtype=torch.complex64, device=phase.device)
        return torch.complex(torch.cos(phase), torch.sin(phase)), imaginary
    factor = torch.complex(-contrast, torch.sqrt(1 - contrast**2))[:, None, None]
    return exit_wave(phase, contrast), factor


def expose_through(phase: Tensor, lenses: list[Lens], band: Band) -> list[Tensor]:
    """Model coefficients (b, f) of the same rendered atoms through each of several lenses (one row each)."""
    wave, _ = _exit(phase, lenses[0])
    spectrum = _crop(torch.fft.fft2(wave, norm="forward"), band.coarse)
    images = (torch.fft.ifft2(spectrum * each.transfer, norm="forward") for each in lenses)
    return [coefficients(image.real**2 + image.imag**2, band) for image in images]


def _interference(wave: Wave, change: Tensor, band: Band) -> Tensor:
    """Coefficients (b, c, f) of ``2 Re(conj(psi) dpsi)`` for changes (b, c, m, m) of the transform of psi."""
    moved = torch.fft.ifft2(change, norm="forward")
    psi = wave.image[:, None]
    return coefficients(2 * (psi.real * moved.real + psi.imag * moved.imag), band)


def tangent(wave: Wave | None, change: Tensor, band: Band) -> Tensor:
    """Change of the coefficients (b, c, f) for changes (b, c, d, d) of the rendered atoms."""
    if wave is None:
        return coefficients(change, band)
    moved = change * (wave.factor * wave.exit)[:, None]
    spectrum = _crop(torch.fft.fft2(moved, norm="forward"), band.coarse) * wave.lens.transfer[:, None]
    return _interference(wave, spectrum, band)


def lens_tangents(wave: Wave, band: Band) -> Tensor:
    """Change of the coefficients (b, 2, f) with the defocus (per angstrom) and with the log of the focal spread."""
    by_defocus = wave.spectrum * torch.complex(torch.zeros_like(wave.lens.defocus_rate), wave.lens.defocus_rate)
    by_spread = wave.spectrum * wave.lens.spread_rate
    return _interference(wave, torch.stack((by_defocus, by_spread), 1), band)


def cotangent(wave: Wave | None, values: Tensor, band: Band) -> Tensor:
    """Adjoint of `tangent`: (b, d, d) from coefficients (b, f)."""
    image = image_from_coefficients(values, band)
    if wave is None:
        return image
    spectrum = torch.fft.fft2(2 * image * wave.image) * wave.lens.transfer.conj()
    back = torch.fft.ifft2(_pad(spectrum, band.box))
    source = wave.factor * wave.exit
    return source.real * back.real + source.imag * back.imag
