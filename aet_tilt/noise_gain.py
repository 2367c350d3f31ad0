"""Gain and read noise from the images alone: variance against mean where no signal can be."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from aet_tilt.found_mask import smooth_images
from common.fourier import rfft_frequencies_2d
from common.least_squares import least_squares

_N_BINS = 24
_SIGNIFICANT = 12.0  # of chi squared: below it a curve is not told from a line
_CORNER = 0.5  # cycles per pixel: an image's signal lies inside the circle of Nyquist, white noise in the corners too


class NoiseGain(NamedTuple):
    """variance = gain * (mean - pedestal) + read_noise^2; one of pedestal and read_noise is 0."""

    gain: float
    read_noise: float
    pedestal: float
    white: bool


def estimate_gain(images: Tensor, *, measured: Tensor | None = None) -> NoiseGain:
    """Poisson-Gaussian noise of a stack.

    Parameters
    ----------
    images : (n, d, d), counts or any linear unit.
    measured : (d, d) bool; all when None.

    Returns
    -------
    NoiseGain, in the images' unit; ``white`` is False where the corners of the spectrum hold next to nothing: images
    that were interpolated, denoised or noise-free have no gain to be found (gain 0).

    Notes
    -----
    The images' part beyond Nyquist's circle is noise; its local power, in bins of the local mean, is fitted with a line
    by iterated weights, after Foi et al. [1]_ (who take wavelet details). What signal leaks into the corners grows with
    the square of the contrast; a quadratic term takes it up where it is significant.

    References
    ----------
    .. [1] Foi, Trimeche, Katkovnik, Egiazarian, "Practical Poissonian-Gaussian noise modeling and fitting for
       single-image raw-data", IEEE Trans. Image Process. 17, 1737 (2008). doi:10.1109/TIP.2008.2001399
    """
    d = images.shape[-1]
    values = images.double()
    k_x, k_y = rfft_frequencies_2d(d, 1.0, dtype=values.dtype, device=values.device)
    corner = (k_x.square() + k_y.square() > _CORNER**2).to(values.dtype)
    share = 1 - torch.pi / 4
    noise = torch.fft.irfft2(torch.fft.rfft2(values) * corner, s=(d, d)).square() / share
    mean = smooth_images(values, 1.5)
    inner = torch.zeros(d, d, dtype=torch.bool, device=images.device)
    inner[4:-4, 4:-4] = True
    if measured is not None:
        inner &= measured
    mean, noise = mean[:, inner].flatten(), noise[:, inner].flatten()
    order = mean.argsort()
    size = len(order) // _N_BINS
    bins = order[: size * _N_BINS].view(_N_BINS, size)
    x, y = mean[bins].mean(-1), noise[bins].mean(-1)
    if float(y.mean()) < 1e-6 * float(images.double().var()):
        return NoiseGain(0.0, 0.0, 0.0, False)
    design = torch.stack((torch.ones_like(x), x, (x - x.min()).square()), -1)
    (line, misfit), (curve, less) = _fit(design[:, :2], y, size), _fit(design, y, size)
    curved = float(curve[2]) > 0 and float(curve[1]) > 0 and misfit - less > _SIGNIFICANT
    offset, gain = (curve if curved else line)[:2]
    if float(gain) <= 0:
        return NoiseGain(0.0, float(y.mean().sqrt()), 0.0, True)
    slope = float(gain)
    return NoiseGain(slope, max(0.0, float(offset)) ** 0.5, max(0.0, -float(offset)) / slope, True)


def _fit(design: Tensor, y: Tensor, bin_size: int) -> tuple[Tensor, float]:
    """Coefficients by iterated weights, and chi squared: a bin's variance is known to sqrt(2 / independent values)."""
    predicted = y.mean().expand_as(y)
    for _ in range(5):
        weight = 1 / predicted.clamp(min=0.05 * float(y.mean()))
        fit = least_squares(design * weight[:, None], (y * weight)[:, None])[:, 0]
        predicted = design @ fit
    independent = bin_size * (1 - torch.pi / 4)
    return fit, float(((y - predicted) * weight).square().sum()) * independent / 2
