"""Images turned in their plane until the tilt axis runs along y, where the fast operator applies."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from common.data import ImageStack, Poses
from common.fourier import crop_or_pad, fast_size

_IN_PLANE = 2e-6  # how far the axis may leave the image plane in float32 poses
_MOST = 45.0  # degrees; past that the shears wrap round


def turn_images(images: Tensor, angles: Tensor) -> Tensor:
    """Turn each image about its origin: content at x goes to ``Rz(angle) x``.

    Parameters
    ----------
    images : (n, d, d). angles : (n,), degrees, at most 45 either way.

    Returns
    -------
    (n, d, d). The turn by ``-angles`` is the exact adjoint, and for band-limited images that keep clear of the corners
    the inverse.

    Notes
    -----
    Three shears, each exact for periodic band-limited rows [1]_.

    References
    ----------
    .. [1] Larkin, Oldfield, Klemm, "Fast Fourier method for the accurate rotation of sampled images", Opt. Commun.
       139, 99 (1997). doi:10.1016/S0030-4018(97)00097-7
    """
    d = images.shape[-1]
    size = fast_size(1.5 * d)
    half, sine = torch.tan(torch.deg2rad(angles.double()) / 2), torch.sin(torch.deg2rad(angles.double()))
    turned = crop_or_pad(images, size, 2)
    for amount, along in ((-half, 2), (sine, 1), (-half, 2)):
        turned = _shear(turned, amount, along)
    return crop_or_pad(turned, d, 2)


def _shear(images: Tensor, amounts: Tensor, along: int) -> Tensor:
    """Move the content of each row (along 2) or column (1) by ``amount`` times its distance from the origin."""
    size = images.shape[-1]
    distance = torch.arange(size, device=images.device, dtype=torch.float64) - size // 2
    k = torch.arange(size // 2 + 1, device=images.device, dtype=torch.float64)
    k = torch.where(2 * k == size, 0.0, k)  # the Nyquist term of a real row cannot move
    angle = (-2 * math.pi / size) * amounts[:, None, None] * distance[:, None] * k
    phases = torch.complex(angle.cos(), angle.sin()).to(images.dtype.to_complex())
    if along == 1:
        phases = phases.transpose(1, 2)
    return torch.fft.irfft(torch.fft.rfft(images, dim=along) * phases, n=size, dim=along)


def level(stack: ImageStack, poses: Poses) -> tuple[ImageStack, Poses]:
    """Images and poses with the tilt axis along y, where in-plane turns alone keep it from there.

    Poses ``Rz(a) Ry(b)`` with a in -45 .. 45 degrees become ``Ry(b)``, and the images are turned by -a; any others, and
    images measured in part, are given back as they are.
    """
    axis = poses.rotations[:, :, 1]
    angles = torch.rad2deg(torch.atan2(-axis[:, 0], axis[:, 1]))
    in_plane = float(axis[:, 2].abs().amax()) <= _IN_PLANE and float(angles.abs().amax()) <= _MOST
    if stack.measured is not None or not in_plane or float(axis[:, 0].abs().amax()) <= _IN_PLANE:
        return stack, poses
    cosine, sine = axis[:, 1], -axis[:, 0]
    zero, one = torch.zeros_like(cosine), torch.ones_like(cosine)
    back = torch.stack((cosine, sine, zero, -sine, cosine, zero, zero, zero, one), -1).view(-1, 3, 3)
    rotations = back @ poses.rotations
    shifts = (back[:, :2, :2] @ poses.shifts[..., None])[..., 0]
    return replace(stack, images=turn_images(stack.images, -angles)), Poses(rotations, shifts)
