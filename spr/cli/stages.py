"""``spr abinitio``, ``spr refine``, ``spr refine-atoms``: the stages of the pipeline alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.cli.program import Parser
from common.data import InputError, Poses
from common.io import ParticleFile, read_xyz
from common.iteration import Observer
from spr.cli.outputs import Result
from spr.cli.work import add_run_arguments, load_pipeline, run_work

FUNCTIONS = {"abinitio": "find_volume", "refine": "refine_volume", "refine-atoms": "refine_atoms"}


def add_arguments(parser: Parser, name: str) -> None:
    add_run_arguments(parser, load_pipeline().Settings, poses=name != "abinitio")
    if name == "refine-atoms":
        parser.usage = "%(prog)s PARTICLES --atoms FILE [--out RUN] [--pixel-size A] [--config FILE] [settings]"
        parser.add_argument("--atoms", metavar="FILE", type=Path, required=True, help="the atoms, XYZ (angstrom)")


def run(arguments: argparse.Namespace, name: str) -> int:
    pipeline = load_pipeline()
    if not hasattr(pipeline, FUNCTIONS[name]):
        raise InputError(f"{name} is not there yet; spr reconstruct does all stages in a row")
    atoms = read_xyz(arguments.atoms) if name == "refine-atoms" else None

    def compute(particles: ParticleFile, settings: Any, observers: Sequence[Observer]) -> Result:
        stack = particles.stack
        if name == "abinitio":
            return pipeline.find_volume(stack, settings, observers=observers)
        poses = _poses(particles)
        if atoms is None:
            return pipeline.refine_volume(stack, poses, settings, observers=observers)
        return pipeline.refine_atoms(stack, atoms, poses, settings, observers=observers)

    extra = [arguments.atoms] if atoms is not None else []
    return run_work(arguments, name, pipeline.Settings, compute, extra_inputs=extra)


def _poses(particles: ParticleFile) -> Poses:
    if particles.poses is None:
        raise InputError(f"{particles.files[0]}: has no poses, expected angles for each image; run spr abinitio first")
    device = particles.stack.images.device
    return Poses(particles.poses.rotations.to(device), particles.poses.shifts.to(device))
