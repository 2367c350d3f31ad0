"""The command ``aet-tilt``."""

from __future__ import annotations

import sys
from pathlib import Path

from common.cli.doctor import examine, report_findings
from common.cli.program import run_program
from common.data import InputError
from common.io.run_record import package_version

USAGE = """usage: aet-tilt COMMAND ... [--help] [--version]

Atomic electron tomography from tilt series.

commands:
  reconstruct  not there yet
  doctor       check the installation: versions, device, memory, disk, extras"""


def main(arguments: list[str] | None = None) -> int:
    """Run ``aet-tilt`` and return its exit status: 0, or 2 for what cannot be done."""
    given = sys.argv[1:] if arguments is None else arguments
    return run_program("aet-tilt", lambda: _dispatch(given))


def _dispatch(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if given[0] == "--version":
        print(f"aet-tilt (nanospr) {package_version('nanospr')}")
        return 0
    if given[0] == "doctor":
        return report_findings(examine(Path(".")))
    if given[0] == "reconstruct":
        raise InputError("reconstruct is not there yet: this version takes no tilt series; spr takes single particles")
    raise InputError(f"{given[0]!r} is not a command, expected reconstruct or doctor")
