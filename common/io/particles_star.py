"""Writing poses as a RELION 3.1 particle file, in the order of the input and with all its columns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from common.data import ImageStack, InputError, Poses
from common.io.particle_file import ParticleFile
from common.io.relion import ANGLES, ORIGINS, ParticleColumns, particle_tables
from common.io.star import StarTable, write_star
from common.rotations import matrix_to_euler

_OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
_NO_EXTRA: Mapping[str, Tensor] = {}


def write_particles_star(
    path: str | os.PathLike[str],
    particle_file: ParticleFile,
    poses: Poses,
    extra_columns: Mapping[str, Tensor] = _NO_EXTRA,
) -> None:
    """Write the particles with their poses as RELION 3.1 reads them, whole or not at all.

    Parameters
    ----------
    path : the .star file to write.
    particle_file : as read; every column of a STAR input is kept, whether it was written by RELION 3.0 or later.
    poses : n poses; written as rlnAngleRot/Tilt/Psi in degrees and rlnOriginX/YAngst = -shift in angstrom.
    extra_columns : name without underscore -> (n,) numbers; a column of the input of that name is replaced.

    Raises
    ------
    InputError : a number of poses or values other than the number of images, values that are not finite, or a folder
        that cannot be written.
    """
    n = len(particle_file.stack)
    if len(poses) != n:
        raise InputError(f"{path}: {len(poses)} poses for {n} images, expected one each")
    particles, optics, others = _source_tables(particle_file)
    particles = particles.with_column("rlnImageName", particle_file.image_names)
    if optics is not None and particle_file.source is not None:
        optics = _settled_optics(particle_file.stack, ParticleColumns.read(particle_file.source), optics)
    optics, groups = _optics_table(particle_file.stack, particles, optics)
    if groups is not None:
        particles = particles.with_column("rlnOpticsGroup", [str(group) for group in groups])
    written = {
        **_defocus_columns(particle_file),
        **_pose_columns(particles, poses, particle_file.stack.pixel_size),
        **extra_columns,
    }
    for name, values in written.items():
        particles = particles.with_column(name, _format(path, name, values, n))
    write_star(path, (optics, *others, particles))


def _source_tables(particle_file: ParticleFile) -> tuple[StarTable, StarTable | None, tuple[StarTable, ...]]:
    if particle_file.source is None:
        rows = tuple((name,) for name in particle_file.image_names)
        return StarTable("particles", ("rlnImageName",), rows), None, ()
    particles, optics = particle_tables(particle_file.source)
    others = tuple(t for t in particle_file.source.tables if t is not particles and t is not optics)
    return StarTable("particles", particles.columns, particles.rows), optics, others


def _optics_table(
    stack: ImageStack, particles: StarTable, optics: StarTable | None
) -> tuple[StarTable, list[int] | None]:
    """The optics table, made where the input has none, and the group of each particle where it was made."""
    groups: list[int] | None = None
    if optics is None:
        keys = _optics_of_rows(stack, particles)
        distinct = list(dict.fromkeys(keys))
        groups = [distinct.index(key) + 1 for key in keys]
        rows = tuple((str(k), f"opticsGroup{k}", *key) for k, key in enumerate(distinct, start=1))
        names = _OPTICS if rows and len(rows[0]) == 5 else ()
        optics = StarTable("optics", ("rlnOpticsGroup", "rlnOpticsGroupName", *names), rows)
    sizes = optics.strings("rlnImagePixelSize") if "rlnImagePixelSize" in optics else ()
    if not sizes or any(float(size) != stack.pixel_size for size in sizes):
        optics = optics.with_column("rlnImagePixelSize", [f"{stack.pixel_size:.6f}"] * len(optics))
    for name, value in (("rlnImageSize", str(stack.box_size)), ("rlnImageDimensionality", "2")):
        if name not in optics:
            optics = optics.with_column(name, [value] * len(optics))
    return optics, groups


def _settled_optics(stack: ImageStack, columns: ParticleColumns, optics: StarTable) -> StarTable:
    """The input's optics groups, with the voltage and Cs that were used where the user gave others."""
    if stack.optics is None or columns.groups is None:
        return optics
    used = (stack.optics.voltage_kv, stack.optics.spherical_aberration_mm, stack.optics.amplitude_contrast)
    for name, values in zip(_OPTICS, used, strict=True):
        stated = columns.get(name)
        if stated is not None and torch.allclose(stated, values.double().cpu(), rtol=1e-5, atol=1e-9):
            continue
        before = optics.strings(name) if name in optics else ("0",) * len(optics)
        first = {int(group): float(value) for group, value in zip(columns.groups, values, strict=True)}
        optics = optics.with_column(name, [f"{first[k]:.7g}" if k in first else v for k, v in enumerate(before)])
    return optics


def _optics_of_rows(stack: ImageStack, particles: StarTable) -> list[tuple[str, ...]]:
    """Voltage, Cs and amplitude contrast of each particle as text; empty where nothing is known of them."""
    if stack.optics is not None:
        o = stack.optics
        columns = (o.voltage_kv, o.spherical_aberration_mm, o.amplitude_contrast)
        return [tuple(f"{float(v):.7g}" for v in row) for row in zip(*columns, strict=True)]
    if all(name in particles for name in _OPTICS):
        return list(zip(*(particles.strings(name) for name in _OPTICS), strict=True))
    return [()] * len(stack)


def _defocus_columns(particle_file: ParticleFile) -> dict[str, Tensor]:
    """Defocus for an input whose own columns do not hold it (cryoSPARC)."""
    optics = particle_file.stack.optics
    if optics is None or particle_file.source is not None:
        return {}
    names = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
    return {name: optics.defocus[:, k] for k, name in enumerate(names)}


def _pose_columns(particles: StarTable, poses: Poses, pixel_size: float) -> dict[str, Tensor]:
    angles = matrix_to_euler(poses.rotations.detach().cpu().double())
    origins = -poses.shifts.detach().cpu().double() + 0.0  # + 0.0 turns -0 into 0
    columns = {name: angles[:, k] for k, name in enumerate(ANGLES)}
    columns |= {name: origins[:, k] for k, name in enumerate(ORIGINS)}
    for k, name in enumerate(("rlnOriginX", "rlnOriginY")):
        if name in particles:  # RELION 3.0, pixels: kept, but never stale
            columns[name] = origins[:, k] / pixel_size
    return columns


def _format(path: str | os.PathLike[str], name: str, values: Tensor, n: int) -> list[str]:
    values = torch.as_tensor(values).detach().cpu()
    if values.shape != (n,):
        raise InputError(f"{Path(path)}: {name} has shape {tuple(values.shape)}, expected ({n},)")
    if not values.dtype.is_floating_point:
        return [str(int(v)) for v in values]
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        k = int(bad[0])
        raise InputError(f"{Path(path)}: {name} of image {k + 1} is {float(values[k])}, expected a finite number")
    digits = ".6f" if name in ANGLES or name.startswith("rlnOrigin") else ".7g"
    return [format(float(v), digits) for v in values]
