"""What a run on a tilt series writes: maps, atoms, aligned images, tables, the record and the report."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping

from aet_tilt.result import Reconstruction
from common.data import Poses
from common.io.aligned_series import write_aligned
from common.io.atoms import write_xyz
from common.io.run_folder import RunFolder
from common.io.tilt_series import TiltFile
from common.report import Inputs, ReportData, write_report
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


def write_outputs(folder: RunFolder, found: TiltFile, result: Reconstruction, *, seconds: Mapping[str, float]) -> None:
    """Write every file of a run, each whole or not at all; ``run.json`` says "finished" only after all others."""
    maps = result.maps
    if maps is not None:
        written = {"volume": maps.volume, "half1": maps.halves[0], "half2": maps.halves[1]}
        write_maps(folder.path, written, maps.fsc)
    if result.atoms is not None:
        write_atoms(folder.path, result.atoms, result.findings)
    if result.multislice is not None:
        write_multislice(folder.file("verification.csv"), result.multislice)
    if result.again is not None:
        write_xyz(folder.file("verification.xyz"), result.again)
    kind = result.stack.images.dtype
    poses = Poses(result.poses.rotations.to("cpu", kind), result.poses.shifts.to("cpu", kind))
    write_aligned(folder.path, result.stack.to("cpu"), poses)
    record, stack = folder.record, found.stack
    notes = (*found.notes, *result.notes)
    data = ReportData(
        title=found.files[0].name,
        verdict=result.verdict,
        outcome="doubtful" if result.warnings else "determined",
        warnings=result.warnings,
        notes=notes,
        command=shlex.join(["aet-tilt", *sys.argv[1:]]),
        date=time.strftime("%Y-%m-%d"),
        inputs=Inputs(input_files(record["inputs"]), len(stack), stack.box_size, stack.pixel_size),
        settings=record["settings"],
        versions=record["versions"],
        seconds=seconds,
        fsc=None if maps is None else fsc_curve(maps.fsc),
        rotations=poses.rotations,
        volume=None if maps is None else shown_map(maps.volume),
        multislice=None if result.multislice is None else multislice_scores(result.multislice),
        atoms=atom_sites(result.atoms),
        findings=result.findings,
    )
    write_report(folder.file("report.html"), data)
    folder.finish(metrics=result.metrics, warnings=result.warnings, notes=notes, timing=seconds)
