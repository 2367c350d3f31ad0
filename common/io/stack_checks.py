"""What makes a stack of images unusable, looked for before any work is done on it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from common.data import ImageStack, InputError

_INTEGER_LIMITS = (127.0, 255.0, 32767.0, 65535.0)
_MOST_SATURATED = 0.01
_BATCH = 256


def check_stack(
    stack: ImageStack, image_names: Sequence[str], *, minimum_images: int = 20, source: str = "the stack"
) -> tuple[str, ...]:
    """Look at every image for what would spoil a reconstruction.

    Parameters
    ----------
    stack : as read.
    image_names : one for each image, as in ``ParticleFile.image_names``.
    minimum_images : fewer than these are refused.
    source : the file's name, for messages.

    Returns
    -------
    Warnings, in words: images whose brightness or contrast stands far outside that of the others.

    Raises
    ------
    InputError : too few images; an image that holds NaN, is constant, is saturated (more than 1 % of its pixels at its
        maximum, and more than at the value below; or 0.1 % at the limit of an integer type), or is another's copy.
    """
    n = len(stack)
    if len(image_names) != n:
        raise ValueError(f"{len(image_names)} names for {n} images")
    if n < minimum_images:
        raise InputError(f"{source}: holds {n} image{'s' * (n != 1)}, expected at least {minimum_images}; add images")
    means, spreads = [], []
    for first in range(0, n, _BATCH):
        pixels = stack.images[first : first + _BATCH].reshape(-1, stack.box_size**2)
        _check_values(pixels, first, image_names, source)
        means.append(pixels.double().mean(-1))
        spreads.append(pixels.double().std(-1))
    _check_copies(stack.images, image_names, source)
    mean, spread = torch.cat(means), torch.cat(spreads)
    typical = float(spread.median())
    return (*_outliers("mean", mean, typical, source), *_outliers("standard deviation", spread, typical, source))


def _name(index: int, names: Sequence[str]) -> str:
    return f"image {index + 1} ({names[index]})"


def _check_values(pixels: Tensor, first: int, names: Sequence[str], source: str) -> None:
    bad = ~torch.isfinite(pixels)
    if bool(bad.any()):
        k = int(bad.any(-1).nonzero()[0])
        raise InputError(
            f"{source}: {_name(first + k, names)} holds {int(bad[k].sum())} NaN or infinite pixels, expected numbers; "
            f"leave it out ({int(bad.any(-1).sum())} such images of {len(pixels)} looked at)"
        )
    highest = pixels.amax(-1, keepdim=True)
    constant = highest[:, 0] == pixels.amin(-1)
    if bool(constant.any()):
        k = int(constant.nonzero()[0])
        raise InputError(
            f"{source}: {_name(first + k, names)} is constant (every pixel is {float(highest[k]):g}), expected an "
            f"image; leave it out ({int(constant.sum())} such images of {len(pixels)} looked at)"
        )
    at_highest = (pixels == highest).sum(-1)
    below = pixels.masked_fill(pixels == highest, -torch.inf).amax(-1, keepdim=True)
    piled_up = at_highest > (pixels == below).sum(-1)  # the tail of counts falls, clipped values pile up
    limit = torch.isin(highest[:, 0], torch.tensor(_INTEGER_LIMITS, dtype=pixels.dtype, device=pixels.device))
    allowed = torch.where(limit, 0.1 * _MOST_SATURATED, _MOST_SATURATED) * pixels.shape[-1]
    saturated = piled_up & (at_highest > allowed) & (at_highest > 3)
    if bool(saturated.any()):
        k = int(saturated.nonzero()[0])
        share = 100 * float(at_highest[k]) / pixels.shape[-1]
        raise InputError(
            f"{source}: {_name(first + k, names)} is saturated: {share:.2g} % of its pixels are at its maximum "
            f"{float(highest[k]):g}, expected at most 1 % (0.1 % at an integer's limit); leave it out "
            f"({int(saturated.sum())} such images of {len(pixels)} looked at)"
        )


def _check_copies(images: Tensor, names: Sequence[str], source: str) -> None:
    seen: dict[bytes, int] = {}
    for k, image in enumerate(images):
        digest = hashlib.blake2b(image.contiguous().cpu().numpy().tobytes(), digest_size=16).digest()
        other = seen.setdefault(digest, k)
        if other != k:
            raise InputError(
                f"{source}: {_name(k, names)} is a copy of {_name(other, names)}, expected different images; remove one"
            )


def _outliers(what: str, values: Tensor, scale: float, source: str) -> tuple[str, ...]:
    """A warning for values off the median by 10 robust standard deviations and by half of an image's contrast."""
    median = values.median()
    off = (values - median).abs()
    far = (off > 10 * 1.4826 * off.median()) & (off > 0.5 * scale)
    if not bool(far.any()):
        return ()
    which = [int(k) + 1 for k in far.nonzero()[:, 0]]
    listed = ", ".join(map(str, which[:10])) + (", ..." if len(which) > 10 else "")
    return (f"{source}: the {what} of {len(which)} images (median {float(median):.4g}) stands far out: image {listed}",)
