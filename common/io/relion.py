"""RELION particle files: 3.0 (one table) and 3.1 to 5 (data_optics and data_particles)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.data import ImageStack, InputError, Optics, Poses
from common.io.files import find_beside
from common.io.particle_file import (
    ImageLocation,
    ParticleFile,
    check_microscope,
    gather_images,
    header_pixel_sizes,
    make_optics,
    settle_pixel_size,
)
from common.io.star import StarFile, StarTable, numbers, read_star
from common.rotations import euler_to_matrix

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")
_DEFOCUS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
_NOT_MODELLED = ("rlnBeamTiltX", "rlnBeamTiltY", "rlnCtfDataAreCtfPremultiplied")


def read_relion(
    path: str | os.PathLike[str],
    *,
    pixel_size: float | None = None,
    voltage_kv: float | None = None,
    spherical_aberration_mm: float | None = None,
    allow_outside: bool = False,
) -> ParticleFile:
    """Read a RELION particle STAR file and its image stacks; parameters and errors as `read_particles`."""
    star = read_star(path)
    columns = ParticleColumns.read(star)
    names = columns.particles.strings("rlnImageName")
    named = image_locations(columns, allow_outside=allow_outside)
    images, headers, notes = gather_images(str(star.path), named)
    _check_sizes(columns, images.shape[-1])
    stated, silent = header_pixel_sizes(headers, pixel_size)
    table_size = table_pixel_size(columns)
    size, size_notes = settle_pixel_size(str(star.path), pixel_size, [("the STAR file", table_size), *stated])
    optics, optics_notes = _read_optics(columns, voltage_kv, spherical_aberration_mm)
    stack = ImageStack(images, size, optics)
    files = (star.path, *(header.path for header in headers))
    notes = (*star.notes, *notes, *silent, *size_notes, *optics_notes, *_remarks(columns))
    return ParticleFile(stack, _read_poses(columns, size), names, star, files, notes)


def particle_tables(star: StarFile) -> tuple[StarTable, StarTable | None]:
    """The table of particles (the one with rlnImageName) and the table of optics groups, if there is one."""
    optics = star.table("optics")
    found = [t for t in star.tables if "rlnImageName" in t and t.name != "optics"]
    if not found:
        held = ", ".join(f"data_{table.name} ({len(table)} rows)" for table in star.tables)
        raise InputError(f"{star.path}: no table has the column rlnImageName, expected data_particles; it holds {held}")
    if len(found) > 1:
        raise InputError(f"{star.path}: {len(found)} tables have the column rlnImageName, expected one")
    if not len(found[0]):
        raise InputError(f"{star.path}: data_{found[0].name} has no rows, expected one for each image")
    return found[0], optics


def _group_rows(star: StarFile, particles: StarTable, optics: StarTable | None) -> Tensor | None:
    """For each particle the row of its optics group; None without groups."""
    if optics is None:
        return None
    for table in (particles, optics):
        if "rlnOpticsGroup" not in table:
            raise InputError(f"{star.path}: data_{table.name} lacks the column rlnOpticsGroup, needed with data_optics")
    known = {int(v): k for k, v in enumerate(numbers(star, optics, "rlnOpticsGroup"))}
    rows = []
    for row, group in enumerate(numbers(star, particles, "rlnOpticsGroup")):
        if int(group) not in known or group != int(group):
            raise InputError(
                f"{star.path}: {particles.where(row)}: optics group {float(group):g} is not in data_optics, "
                f"expected one of {sorted(known)}"
            )
        rows.append(known[int(group)])
    return torch.tensor(rows)


@dataclass(frozen=True)
class ParticleColumns:
    """The columns of a particle STAR file, one value per particle: from its optics group or, failing that, its row.

    groups : (n,) the row of each particle's group in `optics`; None without groups (RELION 3.0).
    """

    star: StarFile
    particles: StarTable
    optics: StarTable | None
    groups: Tensor | None

    @classmethod
    def read(cls, star: StarFile) -> ParticleColumns:
        particles, optics = particle_tables(star)
        return cls(star, particles, optics, _group_rows(star, particles, optics))

    def has(self, column: str) -> bool:
        return column in self.particles or (self.optics is not None and column in self.optics)

    def get(self, column: str) -> Tensor | None:
        """(n,) float64, or None where neither table has the column."""
        if self.optics is not None and self.groups is not None and column in self.optics:
            return numbers(self.star, self.optics, column)[self.groups]
        return numbers(self.star, self.particles, column) if column in self.particles else None


def image_locations(columns: ParticleColumns, *, allow_outside: bool = False) -> list[ImageLocation]:
    """Where each particle's image stands; errors as `read_particles`."""
    found: dict[str, Path] = {}
    locations = []
    for row, name in enumerate(columns.particles.strings("rlnImageName")):
        where = f"{columns.star.path}: {columns.particles.where(row)}"
        index, stack = _parse_image_name(where, name)
        if stack not in found:
            found[stack] = find_beside(stack, columns.star.path, where, allow_outside=allow_outside)
        locations.append((found[stack], index, where))
    return locations


def table_pixel_size(columns: ParticleColumns) -> float | None:
    """Pixel size of the images by the STAR's own columns, angstrom; None where it has none."""
    values = columns.get("rlnImagePixelSize")
    if values is None and columns.optics is None:
        values = columns.get("rlnPixelSize")
        detector, magnification = columns.get("rlnDetectorPixelSize"), columns.get("rlnMagnification")
        if values is None and detector is not None and magnification is not None:
            values = 1e4 * detector / magnification  # micrometre to angstrom
    if values is None:
        return None
    low, high = float(values.min()), float(values.max())
    if high - low > 1e-4 * abs(high):
        raise InputError(
            f"{columns.star.path}: pixel sizes from {low:g} to {high:g} angstrom, expected one; rescale the images"
        )
    return low


def _check_sizes(columns: ParticleColumns, box_size: int) -> None:
    """Refuse tables that describe other images than the stacks hold."""
    for name, expected, what in (
        ("rlnImageSize", box_size, f"the stack's images are {box_size} px"),
        ("rlnImageDimensionality", 2, "only images (2) can be used"),
    ):
        values = columns.get(name)
        if values is not None and bool((values != expected).any()):
            row = int((values != expected).nonzero()[0])
            where = f"{columns.star.path}: {columns.particles.where(row)}"
            raise InputError(f"{where}: {name} is {float(values[row]):g}, but {what}")


def _parse_image_name(where: str, name: str) -> tuple[int, str]:
    """(index from 0, stack) of a name such as 000001@file.mrcs."""
    number, at, stack = name.partition("@")
    if not at:
        number, stack = "1", name
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        raise InputError(f"{where}: rlnImageName is {name!r}, expected a number before the @, as in 000001@file.mrcs")
    if int(number) == 0:
        raise InputError(f"{where}: rlnImageName is {name!r}, but images are counted from 1; correct the number")
    return int(number) - 1, stack


def _read_optics(
    columns: ParticleColumns, voltage_kv: float | None, cs_mm: float | None
) -> tuple[Optics | None, tuple[str, ...]]:
    path, n = columns.star.path, len(columns.particles)
    u = columns.get("rlnDefocusU")
    if u is None:
        return None, (f"{path.name}: no defocus columns: the images are taken as plain projections",)
    notes: list[str] = []
    v, angle = columns.get("rlnDefocusV"), columns.get("rlnDefocusAngle")
    if v is None:
        notes.append(f"{path.name}: no rlnDefocusV: taken as rlnDefocusU (no astigmatism)")
    voltage = _given_or_column(columns, "rlnVoltage", voltage_kv, "--voltage", "kV", notes)
    cs = _given_or_column(columns, "rlnSphericalAberration", cs_mm, "--cs", "mm", notes)
    amplitude = columns.get("rlnAmplitudeContrast")
    if amplitude is None:
        notes.append(f"{path.name}: no rlnAmplitudeContrast: taken as 0")
        amplitude = torch.zeros(n, dtype=torch.float64)
    low, high = float(amplitude.min()), float(amplitude.max())
    if low < 0 or high > 1:
        raise InputError(f"{path}: rlnAmplitudeContrast is {low:g} to {high:g}, expected 0 to 1")
    for k in range(n):
        check_microscope(f"{path}: {columns.particles.where(k)}", float(voltage[k]), float(cs[k]))
    phase = columns.get("rlnPhaseShift")
    if phase is not None and bool((phase != 0).any()):
        row = int((phase != 0).nonzero()[0])
        raise InputError(
            f"{path}: {columns.particles.where(row)}: rlnPhaseShift is {float(phase[row]):g}, expected 0: "
            "images taken with a phase plate cannot be used"
        )
    defocus = torch.stack((u, u if v is None else v, torch.zeros_like(u) if angle is None else angle), -1)
    return make_optics(voltage, cs, amplitude, defocus), tuple(notes)


def _given_or_column(
    columns: ParticleColumns, column: str, given: float | None, option: str, unit: str, notes: list[str]
) -> Tensor:
    """What the user gave, noted where the file says otherwise; else the column."""
    stated = columns.get(column)
    if given is None:
        if stated is None:
            raise InputError(f"{columns.star.path}: has defocus but no {column}, expected {unit}; give {option}")
        return stated
    if stated is not None and bool((stated != given).any()):
        says = float(stated[stated != given][0])
        notes.append(f"{column} {given:g} {unit} as given; the STAR file says {says:g}")
    return torch.full((len(columns.particles),), float(given), dtype=torch.float64)


def _read_poses(columns: ParticleColumns, pixel_size: float) -> Poses | None:
    """Poses where all three angles are there: rotation A of RELION, shift = -origin."""
    angles = [columns.get(column) for column in ANGLES]
    if any(angle is None for angle in angles):
        return None
    rotations = euler_to_matrix(torch.stack([a for a in angles if a is not None], -1))
    shifts = torch.zeros(len(columns.particles), 2, dtype=torch.float64)
    for k, (angstrom, pixels) in enumerate(zip(ORIGINS, ("rlnOriginX", "rlnOriginY"), strict=True)):
        origin, origin_pixels = columns.get(angstrom), columns.get(pixels)
        if origin is not None:
            shifts[:, k] = -origin
        elif origin_pixels is not None and columns.optics is None:
            shifts[:, k] = -origin_pixels * pixel_size
    return Poses(rotations.float(), shifts.float())


def _remarks(columns: ParticleColumns) -> tuple[str, ...]:
    notes = []
    for column in _NOT_MODELLED:
        values = columns.get(column)
        if values is not None and bool((values != 0).any()):
            notes.append(f"{columns.star.path.name}: {column} is not 0, which is not modelled")
    angles = [columns.get(column) for column in ANGLES]
    if len(columns.particles) > 1 and all(angle is not None and bool((angle == 0).all()) for angle in angles):
        notes.append(f"{columns.star.path.name}: all angles are 0, as in a file of unaligned particles")
    return tuple(notes)
