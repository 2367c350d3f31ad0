"""What a file holds, from its headers alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.io.cryosparc import particle_stacks, read_cs_table, table_numbers
from common.io.files import require_file
from common.io.microscopy import READERS, read_microscopy
from common.io.mrc import MrcHeader
from common.io.particle_file import open_stacks
from common.io.particles import MRC_SUFFIXES, TIFF_SUFFIXES, unknown_format
from common.io.relion import ANGLES, ParticleColumns, image_locations, table_pixel_size
from common.io.star import read_star
from common.io.tiff import tiff_shape


def peek(path: str | os.PathLike[str], *, allow_outside: bool = False) -> dict[str, Any]:
    """Say what a particle file holds without reading its images.

    Parameters
    ----------
    path, allow_outside : as for `read_particles`.

    Returns
    -------
    format, path, file_bytes, images (their number), box_size (px), dtype, pixel_size (angstrom or None),
    optics (name -> (lowest, highest) of what the file has, None for nothing; without "defocus_u" the images are taken
    as plain projections), has_poses, columns, stacks (the files with the
    images), total_bytes (of all of them), notes. Microscopes' own files are the exception: their images are read.

    Raises
    ------
    InputError : as `read_particles`, as far as headers can tell.
    """
    file = require_file(path)
    suffix = file.suffix.lower()
    if suffix == ".star":
        found = _peek_star(file, allow_outside)
    elif suffix in MRC_SUFFIXES:
        headers = list(open_stacks(str(file), [(file, 0, str(file))]).values())
        found = _from_stacks(headers) | {"format": "MRC", "images": headers[0].shape[0]}
    elif suffix == ".cs":
        found = _peek_cs(file, allow_outside)
    elif suffix in TIFF_SUFFIXES:
        shape, dtype = tiff_shape(file)
        found = {"format": "TIFF", "images": shape[0], "box_size": shape[2], "dtype": dtype, "pixel_size": None}
    elif suffix in READERS:
        images, size, notes = read_microscopy(file)
        found = {"format": suffix[1:], "images": len(images), "box_size": images.shape[-1], "dtype": "float32"}
        found |= {"pixel_size": size, "notes": notes}
    else:
        raise unknown_format(file)
    stacks = [Path(stack) for stack in found.get("stacks", ())]
    size = file.stat().st_size
    total = size + sum(stack.stat().st_size for stack in stacks if stack != file)
    blank = {"optics": None, "has_poses": False, "columns": (), "stacks": (file,), "notes": ()}
    return {"path": file, "file_bytes": size, "total_bytes": total} | blank | found


def _from_stacks(headers: Sequence[MrcHeader]) -> dict[str, Any]:
    first = headers[0]
    return {
        "box_size": first.shape[-1],
        "dtype": first.dtype.name,
        "pixel_size": first.pixel_size,
        "stacks": tuple(header.path for header in headers),
        "notes": tuple(note for header in headers for note in header.notes),
    }


def _ranges(columns: dict[str, torch.Tensor | None]) -> dict[str, tuple[float, float]] | None:
    held = {name: (float(v.min()), float(v.max())) for name, v in columns.items() if v is not None}
    return held or None


def _peek_star(file: Path, allow_outside: bool) -> dict[str, Any]:
    columns = ParticleColumns.read(read_star(file))
    locations = image_locations(columns, allow_outside=allow_outside)
    found = _from_stacks(list(open_stacks(str(file), locations).values()))
    stated = table_pixel_size(columns)
    if stated is not None:
        found["pixel_size"] = stated
    names = {
        "voltage_kv": "rlnVoltage",
        "spherical_aberration_mm": "rlnSphericalAberration",
        "amplitude_contrast": "rlnAmplitudeContrast",
        "defocus_u": "rlnDefocusU",
        "defocus_v": "rlnDefocusV",
    }
    return found | {
        "format": "RELION 3.0 STAR" if columns.optics is None else "RELION 3.1 STAR",
        "images": len(locations),
        "optics": _ranges({key: columns.get(name) for key, name in names.items()}),
        "has_poses": all(columns.has(name) for name in ANGLES),
        "columns": columns.particles.columns,
        "notes": (*columns.star.notes, *found["notes"]),
    }


def _peek_cs(file: Path, allow_outside: bool) -> dict[str, Any]:
    table = read_cs_table(file)
    locations = particle_stacks(file, table, allow_outside=allow_outside)
    found = _from_stacks(list(open_stacks(str(file), locations).values()))
    stated = table_numbers(file, table, "blob/psize_A")
    if stated is not None:
        found["pixel_size"] = float(f"{float(stated.min()):.7g}")
    names = {
        "voltage_kv": "ctf/accel_kv",
        "spherical_aberration_mm": "ctf/cs_mm",
        "amplitude_contrast": "ctf/amp_contrast",
        "defocus_u": "ctf/df1_A",
        "defocus_v": "ctf/df2_A",
    }
    return found | {
        "format": "cryoSPARC",
        "images": len(table),
        "optics": _ranges({key: table_numbers(file, table, name) for key, name in names.items()}),
        "has_poses": "alignments3D/pose" in (table.dtype.names or ()),
        "columns": tuple(table.dtype.names or ()),
    }
