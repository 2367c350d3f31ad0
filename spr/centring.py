"""Where the particle lies in each image, before anything is known of its structure."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.fourier import frequencies_2d, shift_phases
from common.noise import signal_filter

_REACH = 3.0  # search window in units of the spread of positions


def centre_particles(
    white: Tensor, *, pixel_size: float, radius: float, shift_spread: float, rounds: int = 6, batch_size: int = 256
) -> Tensor:
    """Estimate the particle's position in each image from its power and its outline.

    Parameters
    ----------
    white : (n, d, d) images in which the noise is white with variance 1.
    pixel_size : angstrom.
    radius : of the particle, angstrom.
    shift_spread : rms of its position on each axis, angstrom; the prior.
    rounds : how often the templates are rebuilt from the centred images.

    Returns
    -------
    (n, 2) positions (x, y) relative to pixel ``d // 2``, angstrom: posterior means.

    Notes
    -----
    The particle is taken as a random field of unknown structure: where it is, the band that holds its atoms has power
    above the noise (log likelihood ratio of two Gaussians per pixel), and its rotational mean at low resolution is the
    same in all images (matched filter). Both profiles come from the images themselves, as centred so far. In phase
    contrast the atoms' band carries nearly all that is known, in projections the outline does.
    """
    n, d = len(white), white.shape[-1]
    k_x, k_y = frequencies_2d(d, 1.0, device=white.device)
    k = torch.fft.ifftshift(torch.sqrt(k_x**2 + k_y**2))[:, : d // 2 + 1]
    low = (k * 2 * radius / pixel_size < 2.0).to(white.dtype)  # wavelengths down to the particle's radius
    band = signal_filter(white, pixel_size)
    axis = torch.arange(d, device=white.device, dtype=white.dtype) - d // 2
    r = torch.sqrt(axis[:, None] ** 2 + axis**2) * pixel_size
    rings = (r / pixel_size).round().long()
    reach = max(2, min(d // 4, math.ceil(_REACH * shift_spread / pixel_size)))
    window = axis[d // 2 - reach : d // 2 + reach + 1] * pixel_size
    log_prior = -(window[:, None] ** 2 + window**2) / (2 * max(shift_spread, pixel_size) ** 2)
    edge = radius + _REACH * shift_spread
    inside = ((edge + 1.0 - r) / 2.0).clamp(0, 1)
    spectra = torch.fft.rfft2(white)
    outline = spectra * low
    power = torch.fft.irfft2(spectra * band, s=(d, d)) ** 2
    background = float(power[:, r > min(edge + 1.0, float(r.max()) * 0.9)].mean())
    powers = torch.fft.rfft2(power / background)
    independent = float(
        (band**2).mean() ** 2 / (band**4).mean()
    )  # fraction of pixels that are independent after the filter
    centres = white.new_zeros(n, 2)

    def radial(image: Tensor) -> Tensor:
        count = torch.bincount(rings.flatten())
        return (torch.bincount(rings.flatten(), weights=image.flatten()) / count)[rings].to(white.dtype)

    for _ in range(rounds):
        mean_outline, mean_power = torch.zeros_like(outline[0]), torch.zeros_like(powers[0])
        for part in torch.arange(n, device=white.device).split(batch_size):
            along_x, along_y = shift_phases(-centres[part] / pixel_size, d)
            phases = along_y[..., :, None] * along_x[..., None, :]
            mean_outline += (outline[part] * phases).sum(0) / n
            mean_power += (powers[part] * phases).sum(0) / n
        template = radial(torch.fft.irfft2(mean_outline, s=(d, d))) * inside
        excess = (radial(torch.fft.irfft2(mean_power, s=(d, d))) - 1).clamp(min=0) * inside
        filters = [torch.fft.rfft2(torch.fft.ifftshift(f)).conj() for f in (template, excess / (1 + excess))]
        parts = []
        for part in torch.arange(n, device=white.device).split(batch_size):
            ratio = outline[part] * filters[0] + 0.5 * independent * powers[part] * filters[1]
            ratio = torch.fft.irfft2(ratio, s=(d, d))
            ratio = ratio[:, d // 2 - reach : d // 2 + reach + 1, d // 2 - reach : d // 2 + reach + 1] + log_prior
            p = torch.softmax(ratio.flatten(1), 1).view_as(ratio)
            parts.append(torch.stack(((p.sum(1) * window).sum(1), (p.sum(2) * window).sum(1)), 1))
        centres = torch.cat(parts)
    return centres
