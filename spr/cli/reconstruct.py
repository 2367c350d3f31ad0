"""``spr reconstruct``: particle images to atoms with error bars."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from common.cli.program import Parser
from common.io import ParticleFile
from common.io.run_folder import RunFolder
from common.iteration import Observer
from spr import pipeline
from spr.classes_3d import ClassifiedStructures, ReconstructSettings, reconstruct_classes
from spr.cli.outputs import Result, write_outputs
from spr.cli.structures import write_structures
from spr.cli.work import add_run_arguments, run_work


def add_arguments(parser: Parser, name: str) -> None:
    add_run_arguments(parser, ReconstructSettings)
    parser.usage = "%(prog)s PARTICLES [--classes K|auto] [--out RUN] [--pixel-size A] [--config FILE] [settings]"


def run(arguments: argparse.Namespace, name: str) -> int:
    return run_work(arguments, name, ReconstructSettings, _reconstruct, write=_write)


def _reconstruct(
    particles: ParticleFile, settings: ReconstructSettings, observers: Sequence[Observer]
) -> Result | ClassifiedStructures:
    if settings.classes == 1:
        return pipeline.reconstruct(particles.stack, settings, observers=observers)
    return reconstruct_classes(particles.stack, settings, observers=observers)


def _write(
    folder: RunFolder,
    particles: ParticleFile,
    result: Result | ClassifiedStructures,
    *,
    extra_warnings: Sequence[str] = (),
    seconds: Mapping[str, float],
) -> None:
    if isinstance(result, ClassifiedStructures):
        write_structures(folder, particles, result, extra_warnings=extra_warnings, seconds=seconds)
    else:
        write_outputs(folder, particles, result, extra_warnings=extra_warnings, seconds=seconds)
