"""Image stacks in TIFF."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.data import InputError
from common.io.files import require_file
from common.io.particle_file import require_square

_MOST_COMPRESSION = 1000


def read_tiff(path: str | os.PathLike[str], *, square: bool = True) -> tuple[Tensor, tuple[str, ...]]:
    """Read the pages of a TIFF as images, which must be square unless `square` is False.

    Returns
    -------
    Images (n, d, d) float32, and notes. A TIFF does not say the pixel size reliably, so it is not asked.

    Raises
    ------
    InputError : damaged, truncated, pages of different sizes, colours, or images that are not square.
    """
    file = require_file(path)
    with _open(file) as tif:
        shape, _ = _check(file, tif, square)
        images = np.empty(shape, dtype=np.float32)
        for k, image in enumerate(_pages(tif)):
            images[k] = image
        notes = _resolution(file.name, tif)
    return torch.from_numpy(images), notes


def tiff_shape(path: str | os.PathLike[str]) -> tuple[tuple[int, int, int], str]:
    """(n, y, x) and the type of the values of a TIFF stack, from its tags; errors as `read_tiff`."""
    file = require_file(path)
    with _open(file) as tif:
        shape, dtype = _check(file, tif)
    return shape, str(dtype)


class _Complaints(logging.Handler):
    """What tifffile only logs, such as a chain of pages that breaks off: for us these are errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _open(file: Path) -> Iterator[tifffile.TiffFile]:
    complaints, log = _Complaints(), logging.getLogger("tifffile")
    log.addHandler(complaints)
    what: object = None
    try:
        with tifffile.TiffFile(file) as tif:
            yield tif
    except InputError:
        raise
    except Exception as error:  # what a damaged TIFF raises has no common class
        what = error
    finally:
        log.removeHandler(complaints)
    if what is None and complaints.messages:
        what = complaints.messages[0]
    if what is not None:
        raise InputError(
            f"{file}: damaged or truncated: {' '.join(str(what).split())[:160]}; expected a whole TIFF; copy it again"
        )


def _pages(tif: tifffile.TiffFile) -> Iterator[NDArray]:
    """The images one after the other; ImageJ puts a whole stack behind one page."""
    if len(tif.pages) == 1:
        series = tif.series[0].asarray()
        yield from series.reshape(-1, *series.shape[-2:])
    else:
        for page in tif.pages:
            yield page.asarray()


def _check(file: Path, tif: tifffile.TiffFile, square: bool = True) -> tuple[tuple[int, int, int], np.dtype]:
    """(n, y, x) and type, once the data are known to lie in the file: tifffile fills gaps with 0."""
    length, n = file.stat().st_size, len(tif.pages)
    first = tif.pages.first
    shapes = list(dict.fromkeys(page.shape for page in tif.pages))
    if len(shapes) > 1:
        sizes = ", ".join(" x ".join(map(str, shape)) for shape in shapes[:4])
        raise InputError(f"{file}: pages of different sizes ({sizes}), expected one size")
    if first.samplesperpixel != 1 or first.dtype is None or first.dtype.kind not in "iuf" or len(first.shape) != 2:
        raise InputError(f"{file}: the pages hold {first.dtype} of shape {first.shape}, expected grey images")
    height, width = int(first.shape[0]), int(first.shape[1])
    if n == 1:
        n = math.prod(tif.series[0].shape) // max(1, height * width)
    size = n * height * width * first.dtype.itemsize
    parts = [part for page in tif.pages for part in zip(page.dataoffsets, page.databytecounts, strict=True)]
    inside = 0 < size <= length * _MOST_COMPRESSION and bool(parts)
    inside = inside and all(offset > 0 and count > 0 and offset + count <= length for offset, count in parts)
    if first.compression == 1:  # none
        inside = inside and first.dataoffsets[0] + size <= length
    if not inside:
        raise InputError(
            f"{file}: truncated: {length} bytes do not hold {n} images of {width} x {height} {first.dtype}; "
            "copy the file again"
        )
    if square:
        require_square(file, (n, height, width))
    return (n, height, width), first.dtype


def _resolution(name: str, tif: tifffile.TiffFile) -> tuple[str, ...]:
    """What the resolution tag says, as a note: most programs leave a screen's 72 dots per inch there."""
    tags = tif.pages.first.tags
    unit = int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 1
    if "XResolution" not in tags or unit not in (2, 3):
        return ()
    dots, per = tags["XResolution"].value
    if not dots or not per:
        return ()
    angstrom = (2.54e8 if unit == 2 else 1e8) * per / dots
    return (f"{name}: the resolution tag says {angstrom:.4g} angstrom a pixel; not used",)
