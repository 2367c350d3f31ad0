"""The command ``aet-tilt``: each subcommand is a module with ``add_arguments`` and ``run(arguments) -> status``."""

from __future__ import annotations

import importlib
import signal
import sys

from common.cli.program import Parser, run_program
from common.cli.runs import how_to_resume, require_one_process
from common.cli.settings import nearest
from common.data import InputError
from common.io.run_record import package_version

COMMANDS = {
    "reconstruct": ("reconstruct", "tilt series -> atoms with species and error bars, volume, angles, report"),
    "align": ("reconstruct", "tilt series -> shifts, aligned images"),
    "reconstruct-volume": ("reconstruct", "tilt series -> aligned images, volume"),
    "trace": ("trace", "volume -> atoms"),
    "refine-atoms": ("reconstruct", "atoms, tilt series with poses -> atoms with error bars"),
    "analyse": ("analyse", "atoms -> coordination, grains, defects, strain, report"),
    "simulate": ("simulate", "atoms, or a twinned crystal -> tilt series whose truth is known"),
    "info": ("info", "what a tilt series holds and what would be assumed"),
    "doctor": ("info", "check the installation: versions, device, memory, disk, extras"),
}
RUNS = ("reconstruct", "align", "reconstruct-volume", "refine-atoms")  # commands that resume, and share processes
USAGE = """usage: aet-tilt COMMAND ... [--help] [--version]

Atomic electron tomography from tilt series.

commands:
{commands}

`aet-tilt COMMAND --help` says what a command takes. Lengths are in angstrom, angles in degrees. A stopped or killed
run goes on when the same command is given again. Several processes:
`torchrun --nproc-per-node N -m aet_tilt reconstruct ...`"""


def main(arguments: list[str] | None = None) -> int:
    """Run ``aet-tilt`` and return its exit status: 0, 1 for a bug, 2 for bad input, 130 when interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    if arguments is None:  # a batch system's notice is taken like Ctrl-C: save, say how to go on, leave
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    return run_program("aet-tilt", lambda: _dispatch(given), to_resume=lambda: how_to_resume("aet-tilt", given, RUNS))


def _dispatch(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(USAGE.format(commands="\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())))
        return 0
    if given[0] == "--version":
        print(f"aet-tilt (nanospr) {package_version('nanospr')}")
        return 0
    name = given[0]
    if name not in COMMANDS:
        raise InputError(f"{name!r} is not a command; {nearest(name, list(COMMANDS))}")
    if name not in RUNS:
        require_one_process(f"aet-tilt {name}")
    module = importlib.import_module(f"aet_tilt.cli.{COMMANDS[name][0]}")
    parser = Parser(prog=f"aet-tilt {name}", description=COMMANDS[name][1])
    module.add_arguments(parser, name)
    return module.run(parser.parse_all(given[1:]), name)
