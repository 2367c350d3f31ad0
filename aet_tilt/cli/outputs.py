"""What a run on a tilt series writes: maps, atoms, aligned images, tables, the record and the report."""

from __future__ import annotations

import csv
import io
import shlex
import sys
import time
from collections.abc import Mapping

import torch

from aet_tilt.pipeline import Reconstruction
from common.data import Poses, Volume
from common.io import atomic_write, write_cif, write_volume, write_xyz
from common.io.run_folder import RunFolder
from common.io.tilt_series import TiltFile, write_aligned
from common.report import (
    AtomSites,
    FourierShellCorrelation,
    InputFile,
    Inputs,
    Map,
    ReportData,
    write_report,
)


def write_outputs(folder: RunFolder, found: TiltFile, result: Reconstruction, *, seconds: Mapping[str, float]) -> None:
    """Write every file of a run, each whole or not at all; ``run.json`` says "finished" only after all others."""
    curve = None
    if result.maps is not None:
        maps = {"volume": result.maps.volume, "half1": result.maps.halves[0], "half2": result.maps.halves[1]}
        for name, volume in maps.items():
            write_volume(folder.file(f"{name}.mrc"), Volume(volume.values.float().cpu(), volume.voxel_size))
        fsc = result.maps.fsc
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("frequency_per_angstrom", "correlation", "coefficients"))
        for frequency, correlation, count in zip(fsc.frequencies, fsc.correlation, fsc.counts, strict=True):
            writer.writerow((f"{float(frequency):.6f}", f"{float(correlation):.6f}", int(count)))
        with atomic_write(folder.file("fsc.csv"), "w") as file:
            file.write(text.getvalue())
        curve = FourierShellCorrelation(fsc.frequencies.cpu(), {"half maps": fsc.correlation.cpu()}, fsc.resolution())
    if result.atoms is not None:
        write_xyz(folder.file("atoms.xyz"), result.atoms)
        write_cif(folder.file("atoms.cif"), result.atoms)
    kind = result.stack.images.dtype
    poses = Poses(result.poses.rotations.to("cpu", kind), result.poses.shifts.to("cpu", kind))
    write_aligned(folder.path, result.stack.to("cpu"), poses)
    record, stack, atoms = folder.record, found.stack, result.atoms
    notes = (*found.notes, *result.notes)
    verdict = "no atoms" if atoms is None else f"{len(atoms)} atoms ({atoms.get_chemical_formula()}) found"
    data = ReportData(
        title=found.files[0].name,
        verdict=verdict,
        outcome="doubtful" if result.warnings else "determined",
        warnings=result.warnings,
        notes=notes,
        command=shlex.join(["aet-tilt", *sys.argv[1:]]),
        date=time.strftime("%Y-%m-%d"),
        inputs=Inputs(
            tuple(InputFile(str(name), digest) for name, digest in record["inputs"].items()),
            len(stack),
            stack.box_size,
            stack.pixel_size,
        ),
        settings=record["settings"],
        versions=record["versions"],
        seconds=seconds,
        fsc=curve,
        rotations=poses.rotations,
        volume=None
        if result.maps is None
        else Map(result.maps.volume.values.float().cpu(), result.maps.volume.voxel_size),
        atoms=None
        if atoms is None
        else AtomSites(
            positions=torch.as_tensor(atoms.positions),
            symbols=tuple(atoms.get_chemical_symbols()),
            heights=torch.as_tensor(atoms.arrays["peak_height"]),
            b_factors=torch.as_tensor(atoms.arrays["b_factor"]),
            sigmas=torch.as_tensor(atoms.arrays["position_sigma"]),
            bounds=torch.as_tensor(atoms.arrays["position_bound"]),
        ),
    )
    write_report(folder.file("report.html"), data)
    folder.finish(metrics=result.metrics, warnings=result.warnings, notes=notes, timing=seconds)
