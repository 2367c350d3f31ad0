"""Where the frames of a movie lie: one MRC or TIFF stack, one file for each frame, EER, or a microscope's own file.

A source knows its shape before anything is allocated, and reads any run of frames without reading the others.
"""

from __future__ import annotations

import glob
import importlib
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from common.data import InputError
from common.io.files import require_file
from common.io.microscopy import READERS
from common.io.mrc import map_sections, read_header
from common.io.tiff import _open as open_tiff

MRC, TIFF, EER = (".mrc", ".mrcs", ".map", ".st"), (".tif", ".tiff"), (".eer",)


@dataclass(frozen=True)
class FrameSource:
    """Frames on disk.

    shape : (n, y, x).
    dtype : of the values as stored.
    read : (first, stop) -> frames (stop - first, y, x) as stored.
    pixel_size : angstrom, or None where the file does not say.
    files : every file that is read.
    notes : what was odd, in words.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    read: Callable[[int, int], NDArray]
    pixel_size: float | None
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def open_source(path: str | os.PathLike[str]) -> FrameSource:
    """The frames of a movie: a file, or a pattern such as ``frames/*.tif`` that names one file for each frame.

    Raises
    ------
    InputError : no such file, an unknown kind, a damaged or truncated file, or frames of different sizes.
    """
    name = os.fspath(path)
    if glob.has_magic(name) and not Path(name).exists():
        return _open_pattern(name)
    return _open_file(require_file(path))


def _open_file(file: Path) -> FrameSource:
    suffix = file.suffix.lower()
    if suffix in MRC:
        header = read_header(file)
        data = map_sections(header)
        return FrameSource(header.shape, header.dtype, lambda a, b: data[a:b], header.pixel_size, (file,), header.notes)
    if suffix in TIFF + EER:
        return _open_tiff(file)
    if suffix in READERS:
        return _open_microscopy(file)
    known = ", ".join((*MRC, *TIFF, *EER, *READERS))
    raise InputError(f"{file}: {suffix or 'no suffix'} is not a movie that can be read, expected one of {known}")


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts frame_9 before frame_10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _open_pattern(pattern: str) -> FrameSource:
    """One file for each frame, in the natural order of their names."""
    files = tuple(Path(name) for name in sorted(glob.glob(pattern), key=natural_order))
    if not files:
        raise InputError(f"{pattern}: no file has a name like this; check the pattern (quote it in a shell)")
    first = _open_file(require_file(files[0]))
    for k, file in enumerate(files):
        each = first if k == 0 else _open_file(require_file(file))
        if each.shape != (1, *first.shape[1:]) or each.dtype != first.dtype:
            raise InputError(
                f"{file}: holds {_words(each)}, expected one frame of {first.shape[2]} x {first.shape[1]} "
                f"{first.dtype.name} as in {files[0].name}; leave it out of the pattern"
            )

    def read(start: int, stop: int) -> NDArray:
        return np.concatenate([_open_file(file).read(0, 1) for file in files[start:stop]])

    shape = (len(files), *first.shape[1:])
    return FrameSource(shape, first.dtype, read, first.pixel_size, files, (*_gaps(files), *first.notes))


def _words(source: FrameSource) -> str:
    n, height, width = source.shape
    return f"{n} frame{'s' * (n != 1)} of {width} x {height} {source.dtype.name}"


def _gaps(files: tuple[Path, ...]) -> tuple[str, ...]:
    """A note where the numbers at the ends of the names leave some out."""
    numbers = [int(found[-1]) for file in files if (found := re.findall(r"\d+", file.stem))]
    missing = numbers[-1] - numbers[0] + 1 - len(numbers) if len(numbers) == len(files) else 0
    return (f"{files[0].parent}: {missing} frame numbers are missing between the first and the last",) * (missing > 0)


def _open_tiff(file: Path) -> FrameSource:
    """TIFF and EER pages; the data of every page are known to lie in the file before any is read."""
    with open_tiff(file) as tif:
        first, pages = tif.pages.first, len(tif.pages)
        dtype, frame = first.dtype, first.shape
        shapes = {page.shape for page in tif.pages}
        parts = [p for page in tif.pages for p in zip(page.dataoffsets, page.databytecounts, strict=True)]
        plain, start = first.compression == 1, first.dataoffsets[0] if first.dataoffsets else 0
        n = pages if pages > 1 else math.prod(tif.series[0].shape) // max(1, math.prod(frame))
        byteorder = tif.byteorder
    if len(shapes) > 1 or len(frame) != 2 or dtype is None or dtype.kind not in "iufb":
        raise InputError(f"{file}: pages of {dtype} and shapes {sorted(shapes)[:3]}, expected grey frames of one size")
    length, size = file.stat().st_size, math.prod(frame) * dtype.itemsize
    if not parts or any(offset <= 0 or count <= 0 or offset + count > length for offset, count in parts):
        raise InputError(f"{file}: truncated: {length} bytes do not hold {n} frames of {frame[1]} x {frame[0]} {dtype}")
    if pages == 1 and n > 1:  # ImageJ writes a whole stack behind one page
        if not plain or start + n * size > length:
            raise InputError(f"{file}: truncated: {length} bytes, expected {start + n * size} for {n} frames")
        data = np.memmap(file, dtype.newbyteorder(byteorder), "r", offset=start, shape=(n, *frame))
        return FrameSource((n, frame[0], frame[1]), dtype, lambda a, b: data[a:b], None, (file,))

    def read(first_page: int, stop: int) -> NDArray:
        try:
            with tifffile.TiffFile(file) as tif:
                return np.stack([tif.pages[k].asarray() for k in range(first_page, stop)])
        except Exception as error:
            what = " ".join(str(error).split())[:160]
            raise InputError(f"{file}: frames {first_page + 1} to {stop} cannot be decoded: {what}") from None

    return FrameSource((n, frame[0], frame[1]), dtype, read, None, (file,))


def _open_microscopy(file: Path) -> FrameSource:
    """.dm3, .dm4, .emd and .ser through RosettaSciIO (an extra), frame by frame where its reader can."""
    try:
        reader = importlib.import_module(f"rsciio.{READERS[file.suffix.lower()]}")
    except ImportError:
        raise InputError(
            f"{file}: reading {file.suffix} needs RosettaSciIO, which is not installed; pip install nanospr[formats]"
        ) from None
    try:
        found = [signal for signal in reader.file_reader(str(file), lazy=True) if np.ndim(signal["data"]) in (2, 3)]
    except Exception as error:  # what a damaged file raises has no common class
        raise InputError(f"{file}: cannot be read: {' '.join(str(error).split())[:160]}; export it again") from None
    if not found:
        raise InputError(f"{file}: holds no frames, expected images (n, y, x)")
    signal = max(found, key=lambda each: math.prod(np.shape(each["data"])))
    data: Any = signal["data"]
    if np.dtype(data.dtype).kind not in "iuf":
        raise InputError(f"{file}: the frames hold {data.dtype}, expected real numbers")
    stacked = data if np.ndim(data) == 3 else data[None]
    axis = sorted(signal["axes"], key=lambda each: each.get("index_in_array", 0))[-1]
    scale = {"pm": 0.01, "nm": 10.0, "um": 1e4, "µm": 1e4, "a": 1.0, "å": 1.0}.get(str(axis.get("units", "")).lower())
    pixel = None if scale is None else float(f"{abs(float(axis['scale'])) * scale:.7g}")
    shape = (int(stacked.shape[0]), int(stacked.shape[1]), int(stacked.shape[2]))
    return FrameSource(shape, np.dtype(data.dtype), lambda a, b: np.asarray(stacked[a:b]), pixel, (file,))
