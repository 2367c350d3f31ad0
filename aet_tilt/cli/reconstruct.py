"""``aet-tilt reconstruct`` and its stages alone: ``align``, ``reconstruct-volume``, ``refine-atoms``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from aet_tilt import pipeline
from aet_tilt.cli.work import add_run_arguments, run_work
from aet_tilt.result import Reconstruction
from common.cli.program import Parser
from common.io import read_atoms
from common.io.tilt_series import TiltFile
from common.iteration import Observer

STAGES = {
    "reconstruct": pipeline.reconstruct,
    "align": pipeline.align_series,
    "reconstruct-volume": pipeline.reconstruct_volume,
}


def add_arguments(parser: Parser, name: str) -> None:
    add_run_arguments(parser)
    if name == "refine-atoms":
        parser.usage = "%(prog)s TILTS --atoms FILE [--angles FILE] [--out RUN] [settings]"
        held = "the atoms, .xyz or .cif, in the frame of the images (angstrom)"
        parser.add_argument("--atoms", metavar="FILE", type=Path, required=True, help=held)


def run(arguments: argparse.Namespace, name: str) -> int:
    if name in STAGES:
        return run_work(
            arguments,
            name,
            lambda found, settings, observers: STAGES[name](found.stack, found.poses, settings, observers=observers),
        )
    atoms = read_atoms(arguments.atoms)

    def refine(found: TiltFile, settings: pipeline.Settings, observers: Sequence[Observer]) -> Reconstruction:
        return pipeline.refine_atoms(found.stack, found.poses, atoms, settings, observers=observers)

    return run_work(arguments, name, refine, extra_inputs=[arguments.atoms])
