"""From the projected potential to the image that an electron microscope makes of it: exit wave, lens, coherence.

Signs. A wave that goes along +z is ``exp(+2 pi i k z)``, matter advances it, ``psi = exp(+i sigma V)``, and the lens
multiplies its transform by ``exp(-i chi)`` with

    ``chi(k) = -pi lambda defocus k^2 + (pi / 2) lambda^3 Cs k^4``        (defocus positive = underfocus, as in RELION)

so that a weak object images as ``1 + F^-1[2 sin(chi) envelope F[sigma V]]``: atoms are bright where ``sin(chi) > 0``,
as in overfocus with a small negative Cs, and dark in underfocus with a positive one. Everything is differentiable in
every tensor.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from common.data import Optics
from common.scattering import atom_potential, projected_atoms, projected_potential, scattering_factor

__all__ = [
    "aberration_phase",
    "atom_potential",
    "contrast_transfer",
    "electron_wavelength",
    "exit_wave",
    "focal_series_transfer",
    "frequency_grid",
    "fresnel_propagator",
    "interaction_constant",
    "multislice_image",
    "phase_object_image",
    "projected_atoms",
    "projected_potential",
    "scattering_factor",
    "spatial_envelope",
    "temporal_envelope",
    "wave_transfer",
]

PLANCK = 6.62607015e-34  # J s
CHARGE = 1.602176634e-19  # C
ELECTRON_MASS = 9.1093837015e-31  # kg
LIGHT_SPEED = 299792458.0  # m/s
REST_ENERGY_KV = ELECTRON_MASS * LIGHT_SPEED**2 / CHARGE / 1e3  # 510.999 kV


def electron_wavelength(voltage_kv: Tensor) -> Tensor:
    """Relativistic wavelength, angstrom, of electrons accelerated by ``voltage_kv`` (any shape): 0.019687 at 300 kV."""
    momentum_c_kv = torch.sqrt(voltage_kv * (voltage_kv + 2 * REST_ENERGY_KV))
    return PLANCK * LIGHT_SPEED / CHARGE * 1e7 / momentum_c_kv


def interaction_constant(voltage_kv: Tensor) -> Tensor:
    """Phase per projected potential, radian / (V angstrom), relativistic [1]_, eq. 5.6: 6.526e-4 at 300 kV.

    References
    ----------
    .. [1] E. J. Kirkland, "Advanced Computing in Electron Microscopy", 2nd edition, Springer (2010).
    """
    ratio = (REST_ENERGY_KV + voltage_kv) / (2 * REST_ENERGY_KV + voltage_kv)
    return 2 * math.pi / (electron_wavelength(voltage_kv) * voltage_kv * 1e3) * ratio


def frequency_grid(
    box_size: int, pixel_size: float, *, half: bool, dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Spatial frequencies ``(kx, ky)``, 1/angstrom, in the order of ``fft2`` (d, d) or ``rfft2`` (d, d // 2 + 1)."""
    ky = torch.fft.fftfreq(box_size, pixel_size, dtype=dtype, device=device)
    kx = torch.fft.rfftfreq(box_size, pixel_size, dtype=dtype, device=device) if half else ky
    ky, kx = torch.meshgrid(ky, kx, indexing="ij")
    return kx, ky


def _per_image(value: Tensor) -> Tensor:
    return value[..., None, None]


def aberration_phase(
    kx: Tensor, ky: Tensor, *, wavelength: Tensor, spherical_aberration: Tensor, defocus: Tensor
) -> Tensor:
    """The phase chi of the lens, radian; the wave is multiplied by ``exp(-i chi)``.

    Parameters
    ----------
    kx, ky : (...) spatial frequencies on a grid of two dimensions, 1/angstrom.
    wavelength, spherical_aberration : (n,) angstrom; Cs is negative for an overcorrected microscope.
    defocus : (n, 3) u and v in angstrom, positive = underfocus, and the angle of u to x in degrees.

    Returns
    -------
    (n, ...) ``chi = -pi lambda defocus(direction) k^2 + (pi / 2) lambda^3 Cs k^4``.

    Notes
    -----
    Astigmatism as in CTFFIND4: ``defocus(direction) = (u + v + (u - v) cos 2 (direction - angle)) / 2``.
    """
    mean, half_difference = (defocus[..., 0] + defocus[..., 1]) / 2, (defocus[..., 0] - defocus[..., 1]) / 2
    angle = torch.deg2rad(2 * defocus[..., 2])
    k2 = kx**2 + ky**2
    # k^2 cos 2(direction - angle), written without the direction so that k = 0 has a gradient
    crossed = (kx**2 - ky**2) * _per_image(torch.cos(angle)) + 2 * kx * ky * _per_image(torch.sin(angle))
    focus = _per_image(mean) * k2 + _per_image(half_difference) * crossed
    aberration = _per_image(wavelength**3 * spherical_aberration) * k2**2
    return math.pi * (aberration / 2 - _per_image(wavelength) * focus)


def temporal_envelope(kx: Tensor, ky: Tensor, *, wavelength: Tensor, focal_spread: Tensor) -> Tensor:
    """Damping by a Gaussian spread of focus of rms ``focal_spread`` (n,), angstrom.

    Returns (n, ...) ``exp(-(pi lambda spread k^2)^2 / 2)``. abTEM's ``focal_spread`` is sqrt(2) times this rms.
    """
    return torch.exp(-((math.pi * _per_image(wavelength * focal_spread) * (kx**2 + ky**2)) ** 2) / 2)


def spatial_envelope(
    kx: Tensor,
    ky: Tensor,
    *,
    wavelength: Tensor,
    spherical_aberration: Tensor,
    defocus: Tensor,
    convergence_mrad: Tensor,
) -> Tensor:
    """Damping by a Gaussian source of rms half angle ``convergence_mrad`` (n,) on each axis.

    Returns (n, ...) ``exp(-(angle / lambda |grad chi|)^2 / 2)``: first order in the angle (Frank 1973); leaves out
    astigmatism in the gradient.
    """
    k2 = kx**2 + ky**2
    mean_defocus = (defocus[..., 0] + defocus[..., 1]) / 2
    # |grad chi| = 2 pi lambda k |lambda^2 Cs k^2 - defocus|; the wavelength cancels against the angle's
    slope = _per_image(wavelength**2 * spherical_aberration) * k2 - _per_image(mean_defocus)
    return torch.exp(-2 * (math.pi * _per_image(convergence_mrad * 1e-3) * slope) ** 2 * k2)


def _chi_and_envelopes(optics: Optics, box_size: int, pixel_size: float, half: bool) -> tuple[Tensor, Tensor, Tensor]:
    kx, ky = frequency_grid(box_size, pixel_size, half=half, dtype=optics.defocus.dtype, device=optics.defocus.device)
    wavelength = electron_wavelength(optics.voltage_kv)
    aberration = optics.spherical_aberration_mm * 1e7
    chi = aberration_phase(kx, ky, wavelength=wavelength, spherical_aberration=aberration, defocus=optics.defocus)
    temporal = temporal_envelope(kx, ky, wavelength=wavelength, focal_spread=optics.focal_spread)
    spatial = spatial_envelope(
        kx,
        ky,
        wavelength=wavelength,
        spherical_aberration=aberration,
        defocus=optics.defocus,
        convergence_mrad=optics.convergence_mrad,
    )
    return chi, temporal, spatial


def contrast_transfer(optics: Optics, box_size: int, pixel_size: float) -> Tensor:
    """The contrast transfer function of a weak object, for ``rfft2``.

    Parameters
    ----------
    optics : n rows.
    box_size, pixel_size : pixels; angstrom.

    Returns
    -------
    (n, d, d // 2 + 1) ``2 sin(chi - phi) envelope`` with ``sin(phi)`` the amplitude contrast, so that
    ``image = 1 + irfft2(ctf * rfft2(sigma V))``: positive where atoms are bright. RELION's CTF is minus half of it.
    """
    chi, temporal, spatial = _chi_and_envelopes(optics, box_size, pixel_size, half=True)
    return 2 * torch.sin(chi - _per_image(torch.asin(optics.amplitude_contrast))) * temporal * spatial


def wave_transfer(optics: Optics, box_size: int, pixel_size: float) -> Tensor:
    """The transfer of the wave, ``exp(-i chi)`` times both envelopes: (n, d, d) complex, in the order of ``fft2``."""
    chi, temporal, spatial = _chi_and_envelopes(optics, box_size, pixel_size, half=False)
    return torch.polar(temporal * spatial, -chi)


def focal_series_transfer(
    optics: Optics, box_size: int, pixel_size: float, *, n_points: int = 7
) -> tuple[Tensor, Tensor]:
    """Transfers at the foci of a Gauss-Hermite quadrature over the focal spread, and their weights.

    Returns
    -------
    (n_points, n, d, d) complex and (n_points,), for `phase_object_image`: temporal incoherence, not linearised.

    Notes
    -----
    Exact for a linear image while ``pi lambda spread k_max^2`` stays below about ``sqrt(n_points)``.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(n_points)
    still = replace(optics, focal_spread=torch.zeros_like(optics.focal_spread))
    in_focus = optics.defocus.new_tensor([1.0, 1.0, 0.0])
    transfers = [
        wave_transfer(
            replace(still, defocus=optics.defocus + float(node) * optics.focal_spread[:, None] * in_focus),
            box_size,
            pixel_size,
        )
        for node in nodes
    ]
    return torch.stack(transfers), optics.defocus.new_tensor(weights / weights.sum())


def _image_of_wave(wave_ft: Tensor, transfer: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        wave = torch.fft.ifft2(wave_ft * transfer)
        return wave.real**2 + wave.imag**2
    terms = (weight * _image_of_wave(wave_ft, each, None) for weight, each in zip(weights, transfer, strict=True))
    return torch.stack(list(terms)).sum(0)


def exit_wave(phase: Tensor, amplitude_contrast: Tensor | None = None) -> Tensor:
    """``exp(i phase exp(i phi))``, ``sin(phi)`` the amplitude contrast (n,): phase (n, d, d) in radian, complex out."""
    if amplitude_contrast is None:
        return torch.polar(torch.ones_like(phase), phase)
    contrast = _per_image(amplitude_contrast)
    return torch.polar(torch.exp(-phase * contrast), phase * torch.sqrt(1 - contrast**2))


def phase_object_image(
    phase: Tensor, transfer: Tensor, *, weights: Tensor | None = None, amplitude_contrast: Tensor | None = None
) -> Tensor:
    """The image of a phase object: exit wave, transfer by the lens, intensity. 1 in vacuum.

    Parameters
    ----------
    phase : (n, d, d) ``sigma V`` projected along the beam, radian.
    transfer : (n, d, d) complex, `wave_transfer`; or (q, n, d, d) with ``weights`` (q,), `focal_series_transfer`.
    amplitude_contrast : (n,) in [0, 1), or None for no absorption.

    Returns
    -------
    (n, d, d) intensities relative to the incoming beam.

    Notes
    -----
    Waves wrap around the box: leave a margin of ``lambda |defocus| k_max`` around the particle.
    """
    return _image_of_wave(torch.fft.fft2(exit_wave(phase, amplitude_contrast)), transfer, weights)


def fresnel_propagator(box_size: int, pixel_size: float, thickness: float, wavelength: Tensor) -> Tensor:
    """``exp(-i pi lambda thickness k^2)``: (n, d, d) complex for ``wavelength`` (n,), angstrom; order of ``fft2``."""
    kx, ky = frequency_grid(box_size, pixel_size, half=False, dtype=wavelength.dtype, device=wavelength.device)
    angle = -math.pi * thickness * _per_image(wavelength) * (kx**2 + ky**2)
    return torch.polar(torch.ones_like(angle), angle)


def multislice_image(
    slice_phases: Tensor, propagator: Tensor, transfer: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """The image of a few thick slices, for particles thicker than the depth of field.

    Parameters
    ----------
    slice_phases : (s, n, d, d) ``sigma V`` of each slice, radian, in the order in which the beam meets them.
    propagator : (n, d, d) complex from one slice's centre to the next, `fresnel_propagator`.
    transfer, weights : as in `phase_object_image`; the defocus counts from the centre of the last slice.

    Returns
    -------
    (n, d, d) intensities relative to the incoming beam.
    """
    wave = exit_wave(slice_phases[0])
    for phase in slice_phases[1:]:
        wave = torch.fft.ifft2(torch.fft.fft2(wave) * propagator) * exit_wave(phase)
    return _image_of_wave(torch.fft.fft2(wave), transfer, weights)
