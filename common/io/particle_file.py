"""What a particle file of any format is read into, and the checks that all formats share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from common.data import ImageStack, InputError, Optics, Poses
from common.io.mrc import MrcHeader, map_sections, read_header
from common.io.star import StarFile

ImageLocation: TypeAlias = tuple[Path, int, str]
"""The stack an image stands in, its index there from 0, and what a message calls its row."""

FINEST_PIXEL, COARSEST_PIXEL = 0.05, 50.0


@dataclass(frozen=True)
class ParticleFile:
    """A stack of particle images as it was read.

    stack : the images, float32, in the order of the file.
    poses : where the file has them, otherwise None.
    image_names : ``000001@file.mrcs`` for each image, 1-based, as the file names it.
    source : the STAR tables, so that every input column can be written back; None for other formats.
    files : every file that was read.
    notes : what was assumed or odd, in words.
    """

    stack: ImageStack
    poses: Poses | None
    image_names: tuple[str, ...]
    source: StarFile | None
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def check_pixel_size(where: str, value: float) -> float:
    """A pixel size in angstrom that a microscope can have.

    Raises
    ------
    InputError : not a positive number, or outside 0.05 to 50 angstrom (nanometres or metres, most likely).
    """
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{where}: the pixel size is {value}, expected a positive number of angstrom")
    if value < FINEST_PIXEL:
        hint = f"it looks like nanometres: give {value * 10:g}" if value * 10 >= FINEST_PIXEL else "check the unit"
        raise InputError(
            f"{where}: the pixel size is {value:g} angstrom, expected {FINEST_PIXEL:g} to {COARSEST_PIXEL:g}; {hint}"
        )
    if value > COARSEST_PIXEL:
        raise InputError(
            f"{where}: the pixel size is {value:g} angstrom, expected {FINEST_PIXEL:g} to {COARSEST_PIXEL:g}; "
            "check the unit (1 nm = 10 angstrom)"
        )
    return float(value)


def _factor_ten(a: float, b: float) -> bool:
    return abs(max(a, b) / min(a, b) / 10 - 1) < 0.02


def settle_pixel_size(
    where: str, given: float | None, stated: Sequence[tuple[str, float | None]]
) -> tuple[float, tuple[str, ...]]:
    """The pixel size, from what the user gave and what the files say.

    Parameters
    ----------
    given : angstrom, wins over every file; None when the user gave nothing.
    stated : (who says it, angstrom or None), the most trusted first.

    Returns
    -------
    The pixel size in angstrom, and notes.

    Raises
    ------
    InputError : nobody states it, it is impossible, the files disagree by more than 1 %, or what was given is ten times
        more or less than what every file says (nanometres for angstrom).
    """
    known = [(who, value) for who, value in stated if value is not None]
    if given is not None:
        check_pixel_size("--pixel-size", given)
        others = [(who, value) for who, value in known if value > 0 and abs(given / value - 1) > 0.01]
        if others and len(others) == len(known) and all(_factor_ten(given, value) for _, value in others):
            who, value = others[0]
            raise InputError(
                f"{where}: --pixel-size is {given:g} angstrom but {who} says {value:g}, ten times "
                f"{'less' if value < given else 'more'}: it looks like nanometres for angstrom; correct one of them"
            )
        return float(given), tuple(f"pixel size {given:g} angstrom as given; {w} says {v:g}" for w, v in others)
    if not known:
        raise InputError(f"{where}: the file does not say the pixel size, expected angstrom; give --pixel-size")
    first_who, first = known[0]
    check_pixel_size(f"{where}: {first_who}", first)
    for who, value in known[1:]:
        if not (value > 0 and abs(first / value - 1) <= 0.01):
            ten = value > 0 and _factor_ten(first, value)
            raise InputError(
                f"{where}: {first_who} says a pixel size of {first:g} angstrom but {who} says {value:g}, expected "
                f"agreement within 1 %{' (it looks like nanometres for angstrom)' if ten else ''}; give --pixel-size"
            )
    return first, ()


def open_stacks(where: str, named: Sequence[ImageLocation]) -> dict[Path, MrcHeader]:
    """Headers of the MRC files in which images are named, in the order they first appear; no image is read.

    Raises
    ------
    InputError : a damaged stack, an index past its end, stacks of different sizes, images that are not square.
    """
    headers: dict[Path, MrcHeader] = {}
    for path, index, row in named:
        if path not in headers:
            headers[path] = read_header(path)
            require_square(path, headers[path].shape)
        if not 0 <= index < headers[path].shape[0]:
            raise InputError(
                f"{row}: image {index + 1} of {path.name}, which holds {headers[path].shape[0]} images; "
                "correct the row or give the right stack"
            )
    sizes = {header.shape[1:]: path for path, header in headers.items()}
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise InputError(
            f"{where}: images of different sizes: {a[1]} x {a[0]} in {first.name}, {b[1]} x {b[0]} in {second.name}; "
            "expected one box size"
        )
    return headers


def gather_images(where: str, named: Sequence[ImageLocation]) -> tuple[Tensor, tuple[MrcHeader, ...], tuple[str, ...]]:
    """Read sections of MRC files in the order they are named.

    Parameters
    ----------
    where : the file that names them, for messages.
    named : at least one image.

    Returns
    -------
    Images (n, d, d) float32; the headers of the stacks in the order they first appear; notes. Errors as `open_stacks`.
    """
    headers = open_stacks(where, named)
    rows: dict[Path, list[int]] = {path: [] for path in headers}
    for k, (path, _, _) in enumerate(named):
        rows[path].append(k)
    images = np.empty((len(named), *next(iter(headers.values())).shape[1:]), dtype=np.float32)
    for path, header in headers.items():
        sections = map_sections(header)
        for k in rows[path]:
            images[k] = sections[named[k][1]]
    notes = tuple(note for header in headers.values() for note in header.notes)
    return torch.from_numpy(images), tuple(headers.values()), notes


def require_square(path: Path, shape: tuple[int, ...]) -> None:
    """Refuse images that are not square, by their sizes."""
    if shape[-1] != shape[-2]:
        raise InputError(f"{path}: the images are {shape[-1]} x {shape[-2]} pixels, expected square ones; crop them")


def header_pixel_sizes(
    headers: Sequence[MrcHeader], given: float | None
) -> tuple[list[tuple[str, float | None]], tuple[str, ...]]:
    """What MRC headers say of the pixel size, each distinct answer once, and a note for those that do not say.

    A header whose pixel size is impossible is an error, unless the user `given` another.
    """
    stated: dict[float | None, str] = {}
    for header in headers:
        try:
            stated.setdefault(header.pixel_size, f"the header of {header.path.name}")
        except InputError:
            if given is None:
                raise
            stated.setdefault(None, f"the header of {header.path.name}")
    silent = stated.get(None)
    notes = () if silent is None else (f"{silent} does not say the pixel size",)
    return [(who, value) for value, who in stated.items()], notes


def check_microscope(where: str, voltage_kv: float, spherical_aberration_mm: float) -> None:
    """Refuse a voltage or Cs that no microscope has: a wrong unit, most likely."""
    if not (math.isfinite(voltage_kv) and 10 <= voltage_kv <= 3000):
        volts = " (volts for kilovolts?)" if voltage_kv > 3000 else ""
        raise InputError(f"{where}: the voltage is {voltage_kv:g} kV, expected 10 to 3000{volts}")
    if not (math.isfinite(spherical_aberration_mm) and abs(spherical_aberration_mm) <= 20):
        raise InputError(
            f"{where}: Cs is {spherical_aberration_mm:g} mm, expected -20 to 20 (micrometres for millimetres?)"
        )


def make_optics(voltage_kv: Tensor, cs_mm: Tensor, amplitude_contrast: Tensor, defocus: Tensor) -> Optics:
    """Optics in float32 from what particle files hold; focal spread and convergence, which they do not, are 0."""
    zero = torch.zeros(len(defocus))
    return Optics(voltage_kv.float(), cs_mm.float(), amplitude_contrast.float(), defocus.float(), zero, zero.clone())
