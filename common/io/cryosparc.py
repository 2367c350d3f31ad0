"""cryoSPARC particle files (.cs): a NumPy structured array, read without pickle and held against the file's length.

Convention: the pose is a rotation vector v whose matrix exp([v]x) is the transpose of RELION's A: A = exp(-[v]x), and
the shift is RELION's origin in pixels of the alignment; as in pyem (D. Asarnow et al., doi:10.5281/zenodo.3576630).
"""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.data import ImageStack, InputError, Optics, Poses
from common.io.files import find_beside, require_file
from common.io.particle_file import (
    ImageLocation,
    ParticleFile,
    check_microscope,
    gather_images,
    header_pixel_sizes,
    make_optics,
    settle_pixel_size,
)
from common.rotations import rotation_from_vector

_LONGEST_HEADER = 65536


def read_cs_table(path: str | os.PathLike[str]) -> NDArray:
    """The structured array of a .cs file.

    Raises
    ------
    InputError : not a .npy file, Python objects inside (they would be unpickled), no named fields, or a length that
        does not fit the header; nothing is allocated before that is known.
    """
    file = require_file(path)
    with file.open("rb") as handle:
        try:
            version = np.lib.format.read_magic(handle)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            with warnings.catch_warnings(action="ignore"):  # a damaged header may be odd Python text
                shape, _, dtype = read(handle, max_header_size=_LONGEST_HEADER)
        except Exception as error:  # the header is Python text: what a damaged one raises has no common class
            what = " ".join(str(error).split())[:120]
            raise InputError(f"{file}: not a cryoSPARC file ({what}), expected a NumPy structured array") from None
        if dtype.hasobject:
            raise InputError(f"{file}: holds Python objects (a pickle), which are never read; export it from cryoSPARC")
        if dtype.names is None or len(shape) != 1:
            raise InputError(f"{file}: holds a plain array of shape {shape}, expected cryoSPARC's table of particles")
        expected, length = handle.tell() + shape[0] * dtype.itemsize, file.stat().st_size
        if length != expected:
            kind = "truncated" if length < expected else "too long"
            raise InputError(f"{file}: {kind}: {length} bytes, expected {expected} for {shape[0]} rows; copy it again")
        return np.frombuffer(handle.read(shape[0] * dtype.itemsize), dtype=dtype, count=shape[0])


def read_cryosparc(
    path: str | os.PathLike[str],
    *,
    pixel_size: float | None = None,
    voltage_kv: float | None = None,
    spherical_aberration_mm: float | None = None,
    allow_outside: bool = False,
) -> ParticleFile:
    """Read a cryoSPARC particle file and its image stacks; parameters and errors as `read_particles`."""
    file = Path(path)
    table = read_cs_table(file)
    named = particle_stacks(file, table, allow_outside=allow_outside)
    images, headers, notes = gather_images(str(file), named)
    stated, silent = header_pixel_sizes(headers, pixel_size)
    size, size_notes = settle_pixel_size(str(file), pixel_size, [("blob/psize_A", _psize(file, table)), *stated])
    optics, optics_notes = _optics(file, table, voltage_kv, spherical_aberration_mm)
    paths = [_text(value) for value in table["blob/path"]]
    image_names = tuple(f"{index + 1:06d}@{stack}" for (_, index, _), stack in zip(named, paths, strict=True))
    return ParticleFile(
        ImageStack(images, size, optics),
        _poses(file, table, size),
        image_names,
        None,
        (file, *(header.path for header in headers)),
        (*notes, *silent, *size_notes, *optics_notes),
    )


def particle_stacks(file: Path, table: NDArray, *, allow_outside: bool = False) -> list[ImageLocation]:
    """Where each particle's image stands; errors as `read_particles`."""
    names = table.dtype.names or ()
    for field in ("blob/path", "blob/idx"):
        if field not in names:
            raise InputError(f"{file}: has no field {field}, expected particles; it has {', '.join(names)[:200]}")
    if not len(table):
        raise InputError(f"{file}: has no rows, expected one for each image")
    index = _column(file, table, "blob/idx").long()
    found: dict[str, Path] = {}
    locations = []
    for row, value in enumerate(table["blob/path"]):
        where, stack = f"{file}: row {row + 1}", _text(value)
        if index[row] < 0:
            raise InputError(f"{where}: blob/idx is {int(index[row])}, expected 0 or more")
        if stack not in found:
            found[stack] = find_beside(stack, file, where, allow_outside=allow_outside)
        locations.append((found[stack], int(index[row]), where))
    return locations


def table_numbers(file: Path, table: NDArray, field: str) -> Tensor | None:
    """(n,) float64, or None where the table lacks the field."""
    return _column(file, table, field) if field in (table.dtype.names or ()) else None


def _text(value: bytes | str) -> str:
    """A path as cryoSPARC writes it, without the ">" that marks it as relative to the project."""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).lstrip(">")


def _column(file: Path, table: NDArray, field: str, shape: tuple[int, ...] = ()) -> Tensor:
    """A field as finite float64."""
    values = table[field]
    if values.dtype.kind not in "iufb" or values.shape[1:] != shape:
        raise InputError(f"{file}: {field} holds {values.dtype} of shape {values.shape[1:]}, expected numbers {shape}")
    numbers = torch.from_numpy(values.astype(np.float64))
    bad = (~torch.isfinite(numbers.reshape(len(numbers), -1)).all(-1)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise InputError(f"{file}: row {row + 1}: {field} is {values[row]}, expected finite numbers")
    return numbers


def _psize(file: Path, table: NDArray) -> float | None:
    if "blob/psize_A" not in (table.dtype.names or ()):
        return None
    sizes = _column(file, table, "blob/psize_A")
    low, high = float(sizes.min()), float(sizes.max())
    if high - low > 1e-4 * abs(high):
        raise InputError(f"{file}: blob/psize_A runs from {low:g} to {high:g} angstrom, expected one pixel size")
    return float(f"{low:.7g}")  # float32 in the file: 0.35, not 0.3499999940395355


def _optics(
    file: Path, table: NDArray, voltage_kv: float | None, cs_mm: float | None
) -> tuple[Optics | None, tuple[str, ...]]:
    names = table.dtype.names or ()
    if "ctf/df1_A" not in names:
        return None, (f"{file.name}: no defocus (ctf/df1_A): the images are taken as plain projections",)
    u, n = _column(file, table, "ctf/df1_A"), len(table)
    v = _column(file, table, "ctf/df2_A") if "ctf/df2_A" in names else u
    angle = _column(file, table, "ctf/df_angle_rad") if "ctf/df_angle_rad" in names else torch.zeros_like(u)
    notes: list[str] = []
    settled = []
    for field, given, option in (("ctf/accel_kv", voltage_kv, "--voltage"), ("ctf/cs_mm", cs_mm, "--cs")):
        stated = table_numbers(file, table, field)
        if given is not None:
            if stated is not None and bool((stated - given).abs().max() > 1e-5 * abs(given)):
                notes.append(f"{field} {given:g} as given; {file.name} says {float(stated[0]):g}")
            stated = torch.full((n,), float(given), dtype=torch.float64)
        if stated is None:
            raise InputError(f"{file}: has defocus but no {field}; give {option}")
        settled.append(stated)
    amplitude = _column(file, table, "ctf/amp_contrast") if "ctf/amp_contrast" in names else torch.zeros_like(u)
    if "ctf/amp_contrast" not in names:
        notes.append(f"{file.name}: no ctf/amp_contrast: taken as 0")
    for row in range(n):
        check_microscope(f"{file}: row {row + 1}", float(settled[0][row]), float(settled[1][row]))
    if "ctf/phase_shift_rad" in names and bool((_column(file, table, "ctf/phase_shift_rad") != 0).any()):
        raise InputError(f"{file}: ctf/phase_shift_rad is not 0: images taken with a phase plate cannot be used")
    defocus = torch.stack((u, v, angle * (180 / math.pi)), -1)
    return make_optics(settled[0], settled[1], amplitude, defocus), tuple(notes)


def _poses(file: Path, table: NDArray, pixel_size: float) -> Poses | None:
    """Poses where the file has them: A = exp(-[v]x), shift = -shift of cryoSPARC in pixels of the alignment."""
    names = table.dtype.names or ()
    if "alignments3D/pose" not in names:
        return None
    vectors = _column(file, table, "alignments3D/pose", (3,))
    rotations = rotation_from_vector(-vectors)
    if "alignments3D/shift" not in names:
        return Poses(rotations.float(), torch.zeros(len(table), 2))
    scale = torch.full((len(table),), pixel_size, dtype=torch.float64)
    if "alignments3D/psize_A" in names:
        scale = _column(file, table, "alignments3D/psize_A")
    shifts = -_column(file, table, "alignments3D/shift", (2,)) * scale[:, None]
    return Poses(rotations.float(), shifts.float())
