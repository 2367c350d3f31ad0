"""What a run writes: maps, atoms, poses, tables, the record and the report."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import ase
import torch
from torch import Tensor

from common.atoms.analysis import Findings
from common.atoms.verification import MultisliceCheck
from common.data import Poses, Volume
from common.io import ParticleFile, write_particles_star
from common.io.metrics import read_metrics
from common.io.run_folder import RunFolder
from common.report import (
    ImageExamples,
    ImageScores,
    Inputs,
    Metric,
    ReportData,
    Starts,
    write_report,
)
from common.report.results import (
    atom_sites,
    fsc_curve,
    input_files,
    multislice_scores,
    shown_map,
    write_atoms,
    write_maps,
    write_multislice,
)
from common.resolution import FSC


class Result(Protocol):
    """What a pipeline returns; anything it did not make is None or empty.

    determined : whether the run stands by its atoms.
    verdict : the result in one sentence.
    warnings : sentences; why, when the structure is not determined.
    metrics : name (with its unit) -> number.
    atoms : per-atom arrays "peak_height", "b_factor" (angstrom^2), "position_sigma" (angstrom).
    image_columns : RELION column name -> (n,) numbers, in the order of the input.
    starts, examples, scores, multislice, findings : sections of the report.
    """

    @property
    def determined(self) -> bool: ...
    @property
    def verdict(self) -> str: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def volume(self) -> Volume | None: ...
    @property
    def half1(self) -> Volume | None: ...
    @property
    def half2(self) -> Volume | None: ...
    @property
    def mask(self) -> Volume | None: ...
    @property
    def fsc(self) -> FSC | None: ...
    @property
    def atoms(self) -> ase.Atoms | None: ...
    @property
    def poses(self) -> Poses | None: ...
    @property
    def image_columns(self) -> Mapping[str, Tensor]: ...
    @property
    def starts(self) -> Starts | None: ...
    @property
    def examples(self) -> ImageExamples | None: ...
    @property
    def scores(self) -> ImageScores | None: ...
    @property
    def multislice(self) -> MultisliceCheck | None: ...
    @property
    def findings(self) -> Findings | None: ...


def write_outputs(
    folder: RunFolder,
    particles: ParticleFile,
    result: Result,
    *,
    extra_warnings: Sequence[str] = (),
    seconds: Mapping[str, float],
) -> None:
    """Write every file of a run, each whole or not at all; ``run.json`` says "finished" only after all others.

    Parameters
    ----------
    extra_warnings : what the check of the input found.
    seconds : CPU seconds by stage, with "cpu_seconds" and "wall_seconds" of the whole.

    Raises
    ------
    InputError : the disk is full or the folder not writable.
    """
    maps = {"volume": result.volume, "half1": result.half1, "half2": result.half2, "mask": result.mask}
    write_maps(folder.path, maps, result.fsc)
    if result.atoms is not None:
        write_atoms(folder.path, result.atoms, result.findings)
    if result.poses is not None:
        poses = Poses(result.poses.rotations.cpu(), result.poses.shifts.cpu())
        columns = {name: values.cpu() for name, values in result.image_columns.items()}
        write_particles_star(folder.file("particles.star"), particles, poses, columns)
    if result.multislice is not None:
        write_multislice(folder.file("multislice.csv"), result.multislice)
    warnings = tuple(dict.fromkeys((*folder.record["warnings"], *extra_warnings, *result.warnings)))
    data = report_data(folder, particles, result, warnings=warnings, seconds=seconds)
    write_report(folder.file("report.html"), data)
    folder.finish(
        metrics=result.metrics,
        warnings=warnings,
        notes=particles.notes,
        determined=result.determined,
        timing=seconds,
    )


def report_data(
    folder: RunFolder,
    particles: ParticleFile,
    result: Result,
    *,
    warnings: tuple[str, ...],
    seconds: Mapping[str, float],
) -> ReportData:
    """What the report of a run shows."""
    record, stack = folder.record, particles.stack
    optics = None if stack.optics is None else stack.optics.to("cpu")
    return ReportData(
        title=particles.files[0].name,
        verdict=result.verdict,
        outcome="not determined" if not result.determined else "doubtful" if result.warnings else "determined",
        warnings=warnings,
        notes=particles.notes,
        command=shlex.join(["spr", *sys.argv[1:]]),
        date=time.strftime("%Y-%m-%d"),
        inputs=Inputs(
            input_files(record["inputs"]),
            len(stack),
            stack.box_size,
            stack.pixel_size,
            optics,
        ),
        settings=record["settings"],
        versions=record["versions"],
        seconds=seconds,
        fsc=fsc_curve(result.fsc, result.metrics.get("resolution_fsc_0.143_angstrom")),
        rotations=None if result.poses is None else result.poses.rotations.cpu(),
        starts=result.starts,
        metrics=_metrics(folder.file("metrics.csv")),
        volume=shown_map(result.volume),
        examples=result.examples,
        scores=result.scores,
        multislice=None if result.multislice is None else multislice_scores(result.multislice),
        atoms=atom_sites(result.atoms),
        findings=result.findings,
    )


def _metrics(path: Path) -> tuple[Metric, ...]:
    """The lines of the convergence plots: every metric of every loop that took more than one step."""
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for (loop, iteration), values in read_metrics(path).items():
        for name, value in values.items():
            lines.setdefault((loop, name), []).append((iteration, value))
    return tuple(
        Metric(name, torch.tensor([i for i, _ in points]), torch.tensor([v for _, v in points]), run=loop)
        for (loop, name), points in lines.items()
        if len(points) > 2
    )
