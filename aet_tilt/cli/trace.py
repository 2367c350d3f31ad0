"""``aet-tilt trace``: a volume to atoms."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.atoms.peaks import PeakSettings, find_peaks
from common.cli.program import Parser
from common.cli.settings import add_settings, read_settings
from common.io import read_volume, write_cif, write_xyz


def add_arguments(parser: Parser, name: str) -> None:
    parser.add_argument("volume", metavar="VOLUME", type=Path, help="an .mrc map")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the atoms, .xyz or .cif (default: VOLUME with .xyz)")
    parser.add_argument("--voxel-size", metavar="A", type=float, help="angstrom; wins over the file")
    parser.add_argument("--element", metavar="EL", default="", help="chemical symbol; helps to tell atoms apart")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings from a TOML file")
    add_settings(parser, PeakSettings)


def run(arguments: argparse.Namespace, name: str) -> int:
    settings = read_settings({"": PeakSettings}, arguments, arguments.config)[""]
    elements = (arguments.element,) if arguments.element else ()
    atoms = find_peaks(read_volume(arguments.volume, voxel_size=arguments.voxel_size), elements, settings)
    out = arguments.out or arguments.volume.with_suffix(".xyz")
    (write_cif if out.suffix == ".cif" else write_xyz)(out, atoms)
    print(f"{len(atoms)} atoms: {out}")
    return 0
