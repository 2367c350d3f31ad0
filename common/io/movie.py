"""Movies longer than memory: frames are read in chunks, gain-corrected, and rid of defective pixels as they come."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, median_filter
from torch import Tensor

from common.data import InputError
from common.io.movie_sources import FrameSource, open_source

CHUNK_BYTES = 128 * 2**20  # of float32 frames
_SAMPLE = 200  # frames that defects are looked for in


@dataclass(frozen=True)
class Movie:
    """Frames on disk and how they become images.

    source : the frames as stored.
    pixel_size : angstrom.
    dose : electrons/angstrom^2 per frame, or None where it is not known.
    gain : (y, x) factor of every pixel, or None.
    defects : (m, 4) rows and columns of m defective pixels and of the good pixels that stand in for them, or None.
    sum_frames : stored frames that are added up to one.
    notes : what was assumed or found, in words.
    """

    source: FrameSource
    pixel_size: float
    dose: float | None = None
    gain: Tensor | None = None
    defects: Tensor | None = None
    sum_frames: int = 1
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.source.shape[0] // self.sum_frames

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(y, x), pixels."""
        return self.source.shape[1], self.source.shape[2]

    @property
    def files(self) -> tuple[Path, ...]:
        return self.source.files

    def frames(self, first: int, stop: int) -> Tensor:
        """Frames ``first`` to ``stop`` (excluded) as float32 (n, y, x), corrected.

        Raises
        ------
        InputError : a frame cannot be read or holds NaN or infinite values.
        """
        if not 0 <= first < stop <= len(self):
            raise ValueError(f"frames {first} to {stop} of a movie of {len(self)}")
        raw = np.array(self.source.read(first * self.sum_frames, stop * self.sum_frames), dtype=np.float32)
        images = torch.from_numpy(raw)
        if self.sum_frames > 1:
            images = images.view(stop - first, self.sum_frames, *self.frame_shape).sum(1)
        good = torch.isfinite(images.sum((1, 2)))
        if not bool(good.all()):
            bad = first + int((~good).nonzero()[0])
            raise InputError(f"{self.files[0]}: frame {bad + 1} holds NaN or infinite values; leave it out")
        if self.gain is not None:
            images = images * self.gain
        if self.defects is not None:
            y, x, from_y, from_x = self.defects.T
            images[:, y, x] = images[:, from_y, from_x]
        return images

    def chunks(self, size: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """All frames in order: (number of the first frame, frames (n, y, x)); 128 MiB at a time unless given."""
        size = size or max(1, CHUNK_BYTES // (4 * self.frame_shape[0] * self.frame_shape[1]))
        for first in range(0, len(self), size):
            yield first, self.frames(first, min(first + size, len(self)))


def read_movie(
    path: str | os.PathLike[str],
    *,
    pixel_size: float | None = None,
    dose: float | None = None,
    gain: str | os.PathLike[str] | None = None,
    gain_divides: bool = False,
    sum_frames: int = 1,
    find_defects: bool = True,
) -> Movie:
    """Open a movie; its frames stay on the disk.

    Parameters
    ----------
    path : .mrc (int8, uint8, int16, uint16, float16, float32), .tif stack, .eer, .dm4, .emd, or a pattern such as
        ``frames/*.tif`` of one file for each frame.
    pixel_size : angstrom; wins over the file.
    dose : electrons/angstrom^2 per stored frame.
    gain : an image of the same size; frames are multiplied by it (divided where ``gain_divides``); where it is 0 or not
        finite, the pixel is dead.
    sum_frames : add up so many stored frames to one (EER, counting cameras).
    find_defects : look for hot and dead pixels in a sample of the frames.

    Returns
    -------
    Movie.

    Raises
    ------
    InputError : the file cannot be used, the header and the file's length disagree, no pixel size is known, or the
        gain reference does not fit.
    """
    source = open_source(path)
    where = os.fspath(path)
    if sum_frames < 1 or source.shape[0] < sum_frames:
        raise InputError(f"{where}: {source.shape[0]} frames, {sum_frames} to be added up to each; give 1 or a few")
    for name, value, unit in (("pixel size", pixel_size, "angstrom"), ("dose", dose, "electrons/angstrom^2")):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{where}: the {name} is {value}, expected a positive number of {unit}")
    pixel = pixel_size or source.pixel_size
    if not pixel:
        raise InputError(f"{where}: the file does not say the pixel size; give --pixel-size in angstrom")
    notes = source.notes
    if pixel_size and source.pixel_size and abs(pixel_size / source.pixel_size - 1) > 0.01:
        notes += (f"{where}: the header says {source.pixel_size:g} angstrom a pixel; {pixel_size:g} was given",)
    left = source.shape[0] % sum_frames
    if left:
        notes += (f"{where}: the last {left} of {source.shape[0]} stored frames do not fill a sum and are left out",)
    movie = Movie(source, pixel, None if dose is None else dose * sum_frames, None, None, sum_frames, notes)
    if gain is not None:
        movie = _with_gain(movie, Path(gain), gain_divides)
    return _with_defects(movie) if find_defects else movie


def _with_gain(movie: Movie, path: Path, divides: bool) -> Movie:
    reference = open_source(path)
    if reference.shape != (1, *movie.frame_shape):
        n, height, width = reference.shape
        raise InputError(
            f"{path}: the gain reference is {n} x {width} x {height}, expected one image of "
            f"{movie.frame_shape[1]} x {movie.frame_shape[0]} as the frames"
        )
    values = torch.from_numpy(np.array(reference.read(0, 1)[0], dtype=np.float32))
    usable = torch.isfinite(values) & (values > 0)
    if float(usable.float().mean()) < 0.5:
        raise InputError(f"{path}: less than half of the gain reference is positive, expected factors near 1")
    factors = torch.where(usable, 1 / values if divides else values, 1.0)
    return replace(movie, gain=factors / factors[usable].mean(), defects=_stand_ins(~usable))


def _stand_ins(bad: Tensor) -> Tensor | None:
    """The nearest good pixel of every bad one (y, x), so that noise stays a pixel's: (m, 4), None for no bad."""
    if not bool(bad.any()):
        return None
    nearest = torch.from_numpy(distance_transform_edt(bad.numpy(), return_distances=False, return_indices=True)).long()
    rows, columns = bad.nonzero(as_tuple=True)
    return torch.stack((rows, columns, nearest[0, rows, columns], nearest[1, rows, columns]), 1)


def _with_defects(movie: Movie) -> Movie:
    """Mark pixels whose mean over a sample of frames stands out of their neighbours' by more than noise could."""
    n = len(movie)
    picked = sorted({round(k * (n - 1) / max(1, min(n, _SAMPLE) - 1)) for k in range(min(n, _SAMPLE))})
    total = torch.zeros(movie.frame_shape, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for k in picked:
        frame = movie.frames(k, k + 1)[0].double()
        total, squares = total + frame, squares + frame**2
    mean = total / len(picked)
    error = ((squares / len(picked) - mean**2).clamp(min=0) / len(picked)).sqrt()
    local = torch.from_numpy(median_filter(mean.numpy(), 5, mode="mirror"))
    typical = float(error.median())
    off = (mean - local).abs()
    spread = max(typical, 1.4826 * float(off.median()))
    scale = float(local.abs().median())
    bad = (off > 10 * spread) & (off > 0.4 * scale)
    if len(picked) >= 20:
        bad |= (error == 0) & (local > 5 * typical)  # a pixel that never changes
    if float(bad.double().mean()) > 0.02:  # then these are not defects but the scene
        return replace(movie, notes=(*movie.notes, "more than 2 % of the pixels stand out: none is replaced"))
    if movie.defects is not None:
        bad[movie.defects[:, 0], movie.defects[:, 1]] = True
    count = int(bad.sum())
    notes = (f"{count} hot or dead pixels are replaced by their nearest neighbours",) if count else ()
    return replace(movie, defects=_stand_ins(bad), notes=(*movie.notes, *notes))
