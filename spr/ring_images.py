"""Images on rings of Fourier space, the form in which they are compared with views of a map."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.data import ImageStack, Optics
from common.image_formation import aberration_phase, electron_wavelength, temporal_envelope
from common.noise import NoiseModel


@dataclass(frozen=True)
class RingImages:
    """Whitened images on rings in Fourier space.

    rings : (n, s, a) complex; shell s, angle 2 pi a / A; noise of variance 1 for a particle that fills the box.
    transfer : (n, s, a) real: what the microscope and the whitening do to a projection.
    frequencies : (s,) radius of each ring, 1/angstrom.
    weights : (s,) independent Fourier coefficients of the image for each sample of the ring.
    centres : (n, 2) where the particle is expected, (x, y) angstrom.
    centre_sigma : how well that is known on each axis, angstrom.
    noise_power : mean square of the noise in ``rings``; less than 1 where only a disc of the images was looked at.
    """

    rings: Tensor
    transfer: Tensor
    frequencies: Tensor
    weights: Tensor
    centres: Tensor
    centre_sigma: float
    noise_power: float = 1.0

    def __len__(self) -> int:
        return len(self.rings)

    def __getitem__(self, index: Tensor) -> RingImages:
        """The images at ``index``."""
        return replace(self, rings=self.rings[index], transfer=self.transfer[index], centres=self.centres[index])

    def ring_vectors(self) -> Tensor:
        """(s, a, 2) frequencies (k_x, k_y) of the samples, 1/angstrom."""
        return ring_vectors(self.frequencies, self.rings.shape[-1])


def ring_vectors(frequencies: Tensor, n_angles: int) -> Tensor:
    """Points on rings: (s, a, 2) of (k_x, k_y), in the unit of ``frequencies`` (s,)."""
    angle = torch.arange(n_angles, device=frequencies.device, dtype=frequencies.dtype) * (2 * math.pi / n_angles)
    return frequencies[:, None, None] * torch.stack((torch.cos(angle), torch.sin(angle)), -1)


def ring_transform(images: Tensor, vectors: Tensor, pixel_size: float) -> Tensor:
    """The exact Fourier transform of images at any frequencies, about pixel ``d // 2``, divided by d.

    Parameters
    ----------
    images : (n, d, d) real.
    vectors : (..., 2) of (k_x, k_y), 1/angstrom.

    Returns
    -------
    complex (n, ...); white noise of variance 1 has variance 1 in it.
    """
    d = images.shape[-1]
    x = (torch.arange(d, device=images.device, dtype=images.dtype) - d // 2) * pixel_size
    k = vectors.reshape(-1, 2)
    along = [torch.polar(torch.ones_like(phase), phase) for phase in (-2 * math.pi * k[:, i, None] * x for i in (0, 1))]
    rows = images.to(along[0].dtype) @ along[0].T  # (n, y, k)
    return (rows * along[1].T).sum(1).div(d).reshape(len(images), *vectors.shape[:-1])


def ring_transfer(optics: Optics | None, noise: NoiseModel, vectors: Tensor, stack: ImageStack) -> Tensor:
    """What becomes of a projection (sigma V, radian) in the whitened images: (n, s, a).

    The weak-phase contrast transfer ``2 sin(chi - phi)`` with its envelope, times the whitening filter and the dose;
    the whitening filter alone where there are no optics.
    """
    d = stack.box_size
    k_x, k_y = vectors.unbind(-1)
    position = torch.sqrt(k_x**2 + k_y**2) * d * stack.pixel_size
    below = position.floor().long().clamp(max=d // 2 - 1)
    row = noise.filter[0, : d // 2 + 1]
    fraction = position - below
    whitening = row[below] * (1 - fraction) + row[below + 1] * fraction
    if optics is None:
        return whitening / noise.scale[:, None, None]
    wavelength = electron_wavelength(optics.voltage_kv)
    chi = aberration_phase(
        k_x,
        k_y,
        wavelength=wavelength,
        spherical_aberration=optics.spherical_aberration_mm * 1e7,
        defocus=optics.defocus,
    )
    envelope = temporal_envelope(k_x, k_y, wavelength=wavelength, focal_spread=optics.focal_spread)
    contrast = 2 * torch.sin(chi - torch.asin(optics.amplitude_contrast)[:, None, None]) * envelope
    return contrast * whitening * (noise.mean / noise.scale)[:, None, None]
