"""What `spr reconstruct --classes` writes: the run as a whole, and each class as a run folder of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from common.io import ParticleFile, write_particles_star
from common.io.files import write_csv
from common.io.relion import particle_tables
from common.io.run_folder import RunFolder
from common.io.star import StarFile, StarTable
from common.report import Structures, write_report
from spr.class_differences import Differences, rows_of
from spr.classes_3d import ClassifiedStructures
from spr.cli.outputs import report_data, write_outputs

_COLUMNS = (
    "first_class", "second_class", "atom_in_first", "atom_in_second", "distance_angstrom", "sigmas",
    "x_first", "y_first", "z_first", "x_second", "y_second", "z_second", "what",
)  # fmt: skip


def write_structures(
    folder: RunFolder,
    particles: ParticleFile,
    result: ClassifiedStructures,
    *,
    extra_warnings: Sequence[str] = (),
    seconds: Mapping[str, float],
) -> None:
    """Write every file of a run with classes; parameters and errors as for `spr.cli.outputs.write_outputs`.

    ``class_001``, ``class_002``, ... get what a run with one structure gets, for the images of the class.
    """
    whole = result.whole
    for k, (structure, rows) in enumerate(zip(result.structures, result.members, strict=True), start=1):
        with RunFolder.open(
            folder.path / f"class_{k:03d}",
            inputs=folder.record["inputs"],
            settings=folder.record["settings"],
            command=folder.record["command"],
            device=folder.record["device"],
        ) as own:
            if not own.is_complete:
                write_outputs(own, select_particles(particles, rows.cpu()), structure, seconds={})
    if whole.poses is not None:
        columns = {name: values.cpu() for name, values in whole.image_columns.items()}
        write_particles_star(folder.file("particles.star"), particles, whole.poses, columns)
    write_csv(folder.file("differences.csv"), differences_table(result.differences))
    warnings = tuple(dict.fromkeys((*folder.record["warnings"], *extra_warnings, *whole.warnings)))
    data = report_data(folder, particles, whole, warnings=warnings, seconds=seconds)
    data = replace(data, structures=structures_of(result), rotations=None)
    write_report(folder.file("report.html"), data)
    folder.finish(
        metrics=whole.metrics,
        warnings=warnings,
        notes=particles.notes,
        determined=whole.determined,
        timing=seconds,
    )


def select_particles(particles: ParticleFile, rows: torch.Tensor) -> ParticleFile:
    """The particle file with only the images ``rows``."""
    names = tuple(particles.image_names[i] for i in rows.tolist())
    source = particles.source
    if source is not None:
        own, _ = particle_tables(source)
        tables = tuple(_select(table, rows.tolist()) if table is own else table for table in source.tables)
        source = StarFile(source.path, tables, source.notes)
    poses = None if particles.poses is None else particles.poses[rows]
    return replace(particles, stack=particles.stack[rows], poses=poses, image_names=names, source=source)


def _select(table: StarTable, rows: Sequence[int]) -> StarTable:
    lines = tuple(table.lines[i] for i in rows) if table.lines else ()
    return replace(table, rows=tuple(table.rows[i] for i in rows), lines=lines)


def structures_of(result: ClassifiedStructures) -> Structures:
    """The classes and their differences as the report shows them."""
    table = []
    for k, (structure, rows) in enumerate(zip(result.structures, result.members, strict=True)):
        metrics = structure.metrics
        table.append(
            (
                len(rows),
                float(result.posterior[rows, k].mean()),
                float((result.posterior[rows, k] > 0.99).float().mean()),
                metrics.get("atoms", 0.0),
                metrics.get("position_sigma_median_pm", float("nan")),
                metrics.get("resolution_fsc_0.143_angstrom", float("nan")),
            )
        )
    pairs = tuple((one.first, one.second, tuple(rows_of(one))) for one in result.differences)
    mirrored = tuple(one.mirrored for one in result.differences)
    shared = tuple(len(one.pairs) for one in result.differences)
    return Structures(tuple(table), pairs, mirrored, shared)


def differences_table(compared: Sequence[Differences]) -> list[Sequence[object]]:
    """Every atom of every pair of classes; atoms counted from 1, in the order of the classes' atoms.xyz."""
    table: list[Sequence[object]] = [_COLUMNS]
    for one in compared:
        for row in rows_of(one, everything=True):
            places = [*(row.place_first or ("", "", "")), *(row.place_second or ("", "", ""))]
            shown = [f"{x:.4f}" if isinstance(x, float) else x for x in places]
            distance = "" if row.distance is None else f"{row.distance:.4f}"
            sigmas = "" if row.sigmas is None else f"{row.sigmas:.2f}"
            table.append(
                (one.first, one.second, row.atom_first or "", row.atom_second or "", distance, sigmas, *shown, row.what)
            )
    return table
