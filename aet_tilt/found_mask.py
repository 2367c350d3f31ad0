"""Where the particle is in each image, and the background beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.data import ImageStack
from common.fourier import rfft_frequencies_2d

_CLIP = 3.0  # robust standard deviations: what lies beyond in the border is no background


@dataclass(frozen=True)
class FoundMask:
    """inside : (n, d, d) bool, the particle. background : (n,) its surroundings' level. isolated : (n,) bool, False
    where the particle reaches the border of the measured area."""

    inside: Tensor
    background: Tensor
    isolated: Tensor


def smooth_images(images: Tensor, sigma: float) -> Tensor:
    """(..., d, d) convolved, periodically, with a Gaussian of rms width ``sigma`` pixels."""
    d = images.shape[-1]
    k_x, k_y = rfft_frequencies_2d(d, 1.0, dtype=images.dtype, device=images.device)
    blur = torch.exp(-2 * (torch.pi * sigma) ** 2 * (k_x.square() + k_y.square()))
    return torch.fft.irfft2(torch.fft.rfft2(images) * blur, s=(d, d))


def border_of(measured: Tensor) -> Tensor:
    """(d, d) bool: the outermost measured pixels, a twentieth of the box wide, at least 2."""
    width = max(2, measured.shape[-1] // 20)
    inner = torch.nn.functional.max_pool2d((~measured)[None].float(), 2 * width + 1, 1, width)[0] > 0
    frame = torch.ones_like(measured)
    frame[width:-width, width:-width] = False
    return measured & (inner | frame)


def clipped_mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n,) of each row (n, p), outliers left out."""
    keep = torch.ones_like(values, dtype=torch.bool)
    for _ in range(5):
        count = keep.sum(-1).clamp(min=2)
        mean = (values * keep).sum(-1) / count
        spread = (((values - mean[:, None]).square() * keep).sum(-1) / (count - 1)).sqrt()
        keep = (values - mean[:, None]).abs() <= _CLIP * spread[:, None].clamp(min=torch.finfo(values.dtype).tiny)
    return mean, spread


def find_particle(
    images: Tensor, *, measured: Tensor | None = None, smoothing: float = 2.0, level: float = 0.1
) -> FoundMask:
    """The particle by a threshold on smoothed images, ``level`` of the way from the border to the 99th percentile.

    Parameters
    ----------
    images : (n, d, d), the particle brighter than its surroundings.
    measured : (d, d) bool, the pixels that were measured; all when None.
    smoothing : rms width of the Gaussian, pixels.
    level : fraction of the contrast, (0, 1); raised where it lies within 4 standard deviations of the background.
        What passes it is grown by twice the smoothing.

    Returns
    -------
    FoundMask. Where the particle reaches the border (an extended film) there is no background to measure: 0.
    """
    d = images.shape[-1]
    measured = torch.ones(d, d, dtype=torch.bool, device=images.device) if measured is None else measured
    border = border_of(measured)
    smooth = smooth_images(images, smoothing)
    background, _ = clipped_mean(images[:, border])
    level_at_border, spread = clipped_mean(smooth[:, border])
    values = smooth[:, measured].sort(-1).values
    top = values[:, int(0.99 * (values.shape[-1] - 1))]
    threshold = torch.maximum(level_at_border + level * (top - level_at_border), level_at_border + 4 * spread)
    reach = 2 * round(2 * smoothing) + 1
    core = (smooth > threshold[:, None, None]).float()
    inside = (torch.nn.functional.max_pool2d(core, reach, 1, reach // 2) > 0) & measured
    # a film fills its border with what it holds inside: then the border is as bright as the middle
    coarse = smooth_images(images, max(smoothing, d / 24))
    edge, ordered = coarse[:, border].mean(-1), coarse[:, measured].sort(-1).values
    low, high = (ordered[:, int(q * (ordered.shape[-1] - 1))] for q in (0.05, 0.99))
    isolated = edge - low < 0.25 * (high - low)
    if 2 * int(isolated.sum()) < len(images):
        isolated = torch.zeros_like(isolated)  # a film is a film at every tilt
    return FoundMask(inside, torch.where(isolated, background, 0.0), isolated)


def particle_radius(stack: ImageStack) -> float:
    """Angstrom: how far the particle reaches from the middle of its shadow, at most, in any image."""
    inside = find_particle(stack.images, measured=stack.measured).inside
    far = 0.0
    for mask in inside:
        places = mask.nonzero().double()
        if len(places):
            far = max(far, float((places - places.mean(0)).norm(dim=1).max()))
    return max(far, 1.0) * stack.pixel_size
