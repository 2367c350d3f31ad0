"""``aet-tilt analyse``: atoms to coordination, grains, defects and strain."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path

from common.atoms.analysis import AnalysisSettings, analyse
from common.cli.program import Parser
from common.cli.runs import Clock, keep_inputs, summarise
from common.cli.settings import add_settings, read_settings
from common.io import read_atoms, sha256
from common.io.run_folder import RunFolder
from common.report import ReportData, write_report
from common.report.results import atom_sites, write_atoms


def add_arguments(parser: Parser, name: str) -> None:
    parser.add_argument("atoms", metavar="ATOMS", type=Path, help="the atoms, .xyz or .cif (angstrom)")
    parser.add_argument("--out", metavar="RUN", type=Path, help="folder of the run (default: ATOMS_run beside it)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings from a TOML file or a run.json")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in RUN")
    add_settings(parser, AnalysisSettings)


def run(arguments: argparse.Namespace, name: str) -> int:
    settings: AnalysisSettings = read_settings({"": AnalysisSettings}, arguments, arguments.config)[""]
    source: Path = arguments.atoms
    out = arguments.out or source.with_name(f"{source.stem}_run")
    clock = Clock()
    given = read_atoms(source)
    keep_inputs(out, [source])
    opened = RunFolder.open(
        out,
        inputs={os.path.relpath(source): sha256(source)},
        settings=asdict(settings),
        command=name,
        overwrite=arguments.overwrite,
    )
    with opened as folder:
        if folder.is_complete:
            print(f"{out}: this run has ended ({folder.status}); --overwrite begins anew")
            summarise(folder)
            return 0
        with folder.computing(source):
            atoms, findings = analyse(given, settings)
        write_atoms(folder.path, atoms, findings)
        metrics = {"atoms": float(len(atoms)), **findings.metrics()}
        seconds = clock.seconds()
        grains = len(findings.grains.lattices)
        page = ReportData(
            title=source.name,
            verdict=f"{len(atoms)} atoms ({atoms.get_chemical_formula()}) in {grains} grains.",
            outcome="determined",
            command=shlex.join(["aet-tilt", *sys.argv[1:]]),
            date=time.strftime("%Y-%m-%d"),
            settings=folder.record["settings"],
            versions=folder.record["versions"],
            seconds=seconds,
            atoms=atom_sites(atoms),
            findings=findings,
        )
        write_report(folder.file("report.html"), page)
        folder.finish(metrics=metrics, timing=seconds)
        summarise(folder)
    return 0
