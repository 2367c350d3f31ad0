"""Image stacks in TIFF."""

from __future__ import annotations

import math
import os

import numpy as np
import tifffile
import torch
from torch import Tensor

from common.data import InputError
from common.io.files import require_file
from common.io.particle_file import require_square

_MOST_COMPRESSION = 1000


def read_tiff(path: str | os.PathLike[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Read the pages of a TIFF as images.

    Returns
    -------
    Images (n, d, d) float32, and notes. A TIFF does not say the pixel size reliably, so it is not asked.

    Raises
    ------
    InputError : damaged, truncated, pages of different sizes, colours, or images that are not square.
    """
    file = require_file(path)
    try:
        with tifffile.TiffFile(file) as tif:
            shape = _check(file, tif)
            images = np.asarray(tif.series[0].asarray(), dtype=np.float32).reshape(shape)
            notes = _resolution(file.name, tif)
    except InputError:
        raise
    except Exception as error:  # what a damaged TIFF raises has no common class
        raise _damaged(file, error) from None
    return torch.from_numpy(images), notes


def tiff_shape(path: str | os.PathLike[str]) -> tuple[tuple[int, int, int], str]:
    """(n, y, x) and the type of the values of a TIFF stack, from its tags; errors as `read_tiff`."""
    file = require_file(path)
    try:
        with tifffile.TiffFile(file) as tif:
            return _check(file, tif), str(tif.series[0].dtype)
    except InputError:
        raise
    except Exception as error:
        raise _damaged(file, error) from None


def _damaged(file: os.PathLike[str], error: Exception) -> InputError:
    return InputError(f"{file}: cannot be read as TIFF: {' '.join(str(error).split())[:160]}; write it again")


def _check(file: os.PathLike[str], tif: tifffile.TiffFile) -> tuple[int, int, int]:
    """(n, y, x), once the data are known to lie inside the file: tifffile would fill what is missing with zeros."""
    if len(tif.series) != 1:
        sizes = ", ".join(" x ".join(map(str, series.shape)) for series in tif.series[:4])
        raise InputError(f"{file}: {len(tif.series)} series of pages ({sizes}), expected pages of one size")
    series, length = tif.series[0], os.stat(file).st_size
    if series.keyframe.samplesperpixel != 1 or series.dtype is None or series.dtype.kind not in "iuf":
        raise InputError(f"{file}: the pages hold {series.dtype} of shape {series.shape}, expected grey images")
    size = math.prod(series.shape) * series.dtype.itemsize
    if len(series.shape) < 2:
        raise InputError(f"{file}: the pages have shape {series.shape}, expected (n, y, x)")
    shape = (math.prod(series.shape[:-2]), int(series.shape[-2]), int(series.shape[-1]))
    if series.dataoffset is not None:
        inside = series.dataoffset + size <= length
    else:
        inside = size <= length * _MOST_COMPRESSION and all(
            page is not None and _page_inside(page, length) for page in series.pages
        )
    if not inside or size == 0:
        raise InputError(
            f"{file}: truncated: {length} bytes do not hold {shape[0]} images of {shape[2]} x {shape[1]} "
            f"{series.dtype}; copy the file again"
        )
    require_square(require_file(file), shape)
    return shape


def _page_inside(page: tifffile.TiffPage | tifffile.TiffFrame, length: int) -> bool:
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    return bool(parts) and all(offset > 0 and count > 0 and offset + count <= length for offset, count in parts)


def _resolution(name: str, tif: tifffile.TiffFile) -> tuple[str, ...]:
    """What the resolution tag says, as a note: most programs leave a screen's 72 dots per inch there."""
    tags = tif.pages[0].tags  # type: ignore[union-attr]
    unit = tags["ResolutionUnit"].value if "ResolutionUnit" in tags else 1
    if "XResolution" not in tags or int(unit) not in (2, 3):
        return ()
    dots, per = tags["XResolution"].value
    if not dots or not per:
        return ()
    angstrom = (2.54e8 if int(unit) == 2 else 1e8) * per / dots
    return (f"{name}: the resolution tag says {angstrom:.4g} angstrom a pixel; not used",)
