"""The command ``spr``: each subcommand is a module with ``add_arguments(parser)`` and ``run(arguments) -> status``."""

from __future__ import annotations

import importlib
import signal
import sys

from common.cli.program import Parser, run_program
from common.cli.runs import how_to_resume
from common.cli.settings import nearest
from common.data import InputError
from common.io.run_record import package_version

COMMANDS = {
    "reconstruct": ("reconstruct", "particle images -> atoms with error bars, volume, poses, report"),
    "abinitio": ("stages", "particle images -> volume and poses, from random starts"),
    "refine": ("stages", "particle images with poses -> better poses, half maps, volume"),
    "classify": ("classify", "particle images -> classes of like views and their averages"),
    "trace": ("trace", "volume -> atoms"),
    "refine-atoms": ("stages", "atoms and particle images with poses -> atoms with error bars"),
    "simulate": ("simulate", "atoms -> particle images, or with --movie a movie, whose truth is known"),
    "movie": ("movie", "liquid-cell movie -> the atoms of every particle that tumbles in it"),
    "track": ("movies", "movie -> motion, background, and the path of every particle"),
    "background": ("movies", "movie -> motion, graphene lattices and background spectrum"),
    "extract": ("movies", "movie -> one background-free image stack for each particle"),
    "info": ("info", "what a file holds, what would be done with it, time and memory it would take"),
    "doctor": ("info", "check the installation: versions, device, memory, disk, extras"),
}
RUNS = ("reconstruct", "abinitio", "refine", "refine-atoms", "classify", "movie")  # commands that resume
USAGE = """usage: spr COMMAND ... [--help] [--version]

From electron-microscope images of identical nanoparticles in unknown orientations to their atoms.

commands:
{commands}

`spr COMMAND --help` says what a command takes. Lengths are in angstrom, angles in degrees, doses in
electrons/angstrom^2. A stopped or killed run goes on when the same command is given again. Several processes:
`torchrun --nproc-per-node N -m spr reconstruct ...`"""


def main(arguments: list[str] | None = None) -> int:
    """Run ``spr`` and return its exit status: 0, 1 for a bug, 2 for bad input, 130 when interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    if arguments is None:  # a batch system's notice is taken like Ctrl-C: save, say how to go on, leave
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    return run_program("spr", lambda: _dispatch(given), to_resume=lambda: how_to_resume("spr", given, RUNS))


def _dispatch(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(USAGE.format(commands="\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())))
        return 0
    if given[0] == "--version":
        print(f"spr (nanospr) {package_version('nanospr')}")
        return 0
    name = given[0]
    if name not in COMMANDS:
        raise InputError(f"{name!r} is not a command; {nearest(name, list(COMMANDS))}")
    filmed = name == "simulate" and "--movie" in given[1:]
    module = importlib.import_module("spr.cli.simulate_movie" if filmed else f"spr.cli.{COMMANDS[name][0]}")
    parser = Parser(prog=f"spr {name}", description=COMMANDS[name][1])
    module.add_arguments(parser, name)
    return module.run(parser.parse_all(given[1:]), name)
