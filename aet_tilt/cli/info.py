"""``aet-tilt info TILTS`` and ``aet-tilt doctor``."""

from __future__ import annotations

import argparse
from pathlib import Path

from aet_tilt.cli.work import InputSettings, read_input
from common.cli.doctor import examine, report_findings
from common.cli.program import Parser
from common.cli.settings import add_settings, read_settings
from common.data import InputError


def add_arguments(parser: Parser, name: str) -> None:
    if name == "info":
        parser.add_argument("tilts", metavar="TILTS", type=Path, help="a tilt series")
        add_settings(parser, InputSettings, section="input")
    else:
        help_text = "where runs would go (default: here)"
        parser.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", default=Path("."), help=help_text)


def run(arguments: argparse.Namespace, name: str) -> int:
    if name == "doctor":
        if not arguments.folder.is_dir():
            raise InputError(f"{arguments.folder}: is not a folder; give the one where runs would go")
        return report_findings(examine(arguments.folder))
    found = read_input(arguments.tilts, read_settings({"input": InputSettings}, arguments, None)["input"])
    stack = found.stack
    print(f"images: {len(stack)} of {stack.box_size} x {stack.box_size} pixels of {stack.pixel_size:g} A")
    if found.tilt_angles is not None:
        print(f"angles: {float(found.tilt_angles.min()):g} to {float(found.tilt_angles.max()):g} degrees")
    for note in found.notes:
        print(f"note: {note}")
    print(f"next: aet-tilt reconstruct {arguments.tilts}")
    return 0
