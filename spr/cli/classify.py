"""``spr classify``: particle images to classes of like views."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from common.cli.program import Parser
from common.data import InputError, Poses
from common.io import ParticleFile, write_images, write_particles_star
from common.io.files import write_csv
from common.io.run_folder import RunFolder
from common.iteration import Observer
from common.report import ClassAverages, write_report
from spr.class_images import RingCorrelation
from spr.class_labels import FrameOrder
from spr.class_pipeline import ClassifiedImages, ClassifySettings, ClassTable, find_classes
from spr.cli.outputs import report_data
from spr.cli.work import add_run_arguments, run_work
from spr.result import Reconstruction


def add_arguments(parser: Parser, name: str) -> None:
    add_run_arguments(parser, ClassifySettings)
    parser.usage = "%(prog)s PARTICLES [--classes K|auto] [--out RUN] [--pixel-size A] [--config FILE] [settings]"


def run(arguments: argparse.Namespace, name: str) -> int:
    return run_work(arguments, name, ClassifySettings, _classify, write=write_classes)


def _classify(particles: ParticleFile, settings: ClassifySettings, observers: Sequence[Observer]) -> ClassifiedImages:
    frames = frame_order(particles.image_names) if settings.in_time else None
    return find_classes(particles.stack, settings, frames=frames, observers=observers)


def frame_order(image_names: Sequence[str]) -> FrameOrder:
    """The order in time from names such as ``000012@movie.mrcs``: frames of each stack by their number in it.

    Raises
    ------
    InputError : a name without a number, or one that comes twice.
    """
    numbers, paths = [], []
    for row, name in enumerate(image_names, start=1):
        number, _, path = name.partition("@")
        if not path or not number.isdigit():
            raise InputError(f"image {row} is {name!r}, expected NUMBER@STACK to know its time: leave out --in-time")
        numbers.append(int(number))
        paths.append(path)
    known = {path: k for k, path in enumerate(dict.fromkeys(paths))}
    try:
        return FrameOrder.of_frames(torch.tensor(numbers), torch.tensor([known[path] for path in paths]))
    except ValueError:
        twice = next(name for name in image_names if list(image_names).count(name) > 1)
        raise InputError(f"{twice} comes twice, expected every frame once with --in-time") from None


def write_classes(
    folder: RunFolder,
    particles: ParticleFile,
    result: ClassifiedImages,
    *,
    extra_warnings: Sequence[str] = (),
    seconds: Mapping[str, float],
) -> None:
    """Write every file of a classification; parameters and errors as for `spr.cli.outputs.write_outputs`."""
    write_images(folder.file("class_averages.mrcs"), result.averages.cpu(), result.pixel_size)
    poses = Poses(result.poses.rotations.cpu(), result.poses.shifts.cpu())
    columns = {name: values.cpu() for name, values in result.columns.items()}
    write_particles_star(folder.file("classes.star"), particles, poses, columns)
    _write_table(folder.file("classes.csv"), result.table)
    if result.frc is not None:
        _write_frc(folder.file("frc.csv"), result.frc)
    warnings = tuple(dict.fromkeys((*folder.record["warnings"], *extra_warnings, *result.warnings)))
    determined = not bool(result.table.rejected.all())
    shown = Reconstruction(determined, result.verdict, result.warnings, result.metrics)
    data = report_data(folder, particles, shown, warnings=warnings, seconds=seconds)
    table = result.table
    classes = ClassAverages(
        result.averages.cpu(), result.pixel_size, table.images, table.correlation, table.resolution, table.rejected
    )
    write_report(folder.file("report.html"), replace(data, classes=classes))
    folder.finish(
        metrics=result.metrics, warnings=warnings, notes=particles.notes, determined=determined, timing=seconds
    )


def _write_table(path: Path, table: ClassTable) -> None:
    names = ("class", "images", "nats_per_image", "ring_correlation", "resolution_angstrom", "rejected")
    columns = (table.images, table.nats, table.correlation, table.resolution, table.rejected)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    body = [
        (k, n, f"{nats:.3f}", f"{c:.4f}", f"{r:.3f}", int(bad)) for k, (n, nats, c, r, bad) in enumerate(rows, start=1)
    ]
    write_csv(path, [names, *body])


def _write_frc(path: Path, frc: RingCorrelation) -> None:
    """The ring correlation of every class: class, frequency (1/angstrom), correlation, independent coefficients."""
    rows: list[tuple[object, ...]] = [("class", "frequency_per_angstrom", "correlation", "coefficients")]
    frequencies, counts = frc.frequencies.tolist(), frc.coefficients.tolist()
    for k, curve in enumerate(frc.correlation.tolist(), start=1):
        for frequency, value, count in zip(frequencies, curve, counts, strict=True):
            rows.append((k, f"{frequency:.6f}", f"{value:.6f}", f"{count:.1f}"))
    write_csv(path, rows)
