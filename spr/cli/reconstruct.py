"""``spr reconstruct``: particle images to atoms with error bars."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.cli.program import Parser
from common.io import ParticleFile
from common.iteration import Observer
from spr import pipeline
from spr.cli.outputs import Result
from spr.cli.work import add_run_arguments, run_work


def add_arguments(parser: Parser, name: str) -> None:
    add_run_arguments(parser, pipeline.Settings)


def run(arguments: argparse.Namespace, name: str) -> int:
    return run_work(arguments, name, pipeline.Settings, _reconstruct)


def _reconstruct(particles: ParticleFile, settings: pipeline.Settings, observers: Sequence[Observer]) -> Result:
    return pipeline.reconstruct(particles.stack, settings, observers=observers)
