"""Grey-scale pictures as text: tensors to PNG to ``data:`` addresses, without an imaging library."""

from __future__ import annotations

import base64
import math
import struct
import zlib

import torch
from torch import Tensor


def grey_png(values: Tensor, low: float, high: float) -> bytes:
    """Encode an image as an 8-bit grey PNG, ``low`` black and ``high`` white; row 0 is the top row.

    Parameters
    ----------
    values : (h, w); what lies outside [low, high] is clipped, NaN is black.

    References
    ----------
    PNG specification, W3C (2003), ISO/IEC 15948.
    """
    span = high - low if high > low else 1.0
    grey = ((values.detach().to("cpu", torch.float64) - low) / span).nan_to_num(0.0, 1.0, 0.0).clamp(0, 1)
    rows = (grey * 255).round().to(torch.uint8).numpy()
    height, width = rows.shape
    raw = b"".join(b"\x00" + row.tobytes() for row in rows)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def data_address(png: bytes) -> str:
    """The PNG as a ``data:`` address, so that the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def grey_window(values: Tensor, fraction: float = 0.005) -> tuple[float, float]:
    """Black and white levels: the ``fraction`` and ``1 - fraction`` quantiles of the finite values."""
    finite = values.detach().to("cpu", torch.float64).flatten()
    finite = finite[torch.isfinite(finite)].sort().values
    if finite.numel() == 0:
        return 0.0, 1.0
    last = finite.numel() - 1
    return float(finite[int(fraction * last)]), float(finite[math.ceil((1 - fraction) * last)])


def smooth(images: Tensor, sigma: float) -> Tensor:
    """Gaussian-filtered images (..., d, d), ``sigma`` in pixels, periodic at the borders: for the eye only."""
    images = images.detach().to("cpu", torch.float64).nan_to_num(0.0, 0.0, 0.0)
    fy = torch.fft.fftfreq(images.shape[-2], dtype=torch.float64)[:, None]
    fx = torch.fft.rfftfreq(images.shape[-1], dtype=torch.float64)[None, :]
    window = torch.exp(-2 * (math.pi * sigma) ** 2 * (fx**2 + fy**2))
    return torch.fft.irfft2(torch.fft.rfft2(images) * window, s=images.shape[-2:])


def central_slices(volume: Tensor) -> dict[str, Tensor]:
    """Slices through the origin (voxel ``n // 2``) of a volume (z, y, x), by the axes of their rows and columns."""
    z, y, x = (n // 2 for n in volume.shape)
    return {"yx": volume[z], "zx": volume[:, y], "zy": volume[:, :, x]}


def projections(volume: Tensor) -> dict[str, Tensor]:
    """Sums of a volume (z, y, x) along its axes, by the axes of their rows and columns."""
    return {"yx": volume.sum(0), "zx": volume.sum(1), "zy": volume.sum(2)}


def pick_examples(scores: Tensor, each: int = 3) -> tuple[Tensor, tuple[str, ...]]:
    """Choose the best, median and worst images.

    Parameters
    ----------
    scores : (n,) higher is better; images whose score is not finite are not chosen.
    each : how many of each group; fewer when there are not enough images.

    Returns
    -------
    Indices (k,), best first, no image twice, and the group of each: "best", "median" or "worst".
    """
    known = torch.isfinite(scores).nonzero().flatten()
    order = known[scores[known].argsort(descending=True, stable=True)]
    n = len(order)
    each = min(each, n // 3) if n >= 3 else 0
    if each == 0:
        return order, ("best",) * n
    middle = (n - each) // 2
    index = torch.cat((order[:each], order[middle : middle + each], order[n - each :]))
    return index, ("best",) * each + ("median",) * each + ("worst",) * each
