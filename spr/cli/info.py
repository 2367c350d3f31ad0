"""``spr info FILE`` and ``spr doctor``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from common.cli.doctor import examine, memory_gib, report_findings
from common.cli.program import Parser
from common.data import InputError
from common.io import peek, read_volume, read_xyz
from common.io.mrc import read_header

# Bytes in memory for each byte of float32 images: the stack itself, its spectra, and the work on a batch.
_COPIES = 6


def add_arguments(parser: Parser, name: str) -> None:
    if name == "info":
        parser.add_argument("file", metavar="FILE", type=Path, help="particle images, a volume (.mrc), or atoms (.xyz)")
    else:
        help_text = "where runs would go (default: here)"
        parser.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", default=Path("."), help=help_text)


def run(arguments: argparse.Namespace, name: str) -> int:
    if name == "doctor":
        return _doctor(arguments.folder)
    for key, value in describe(arguments.file):
        print(f"{key + ':':23}{value}")
    return 0


def _doctor(folder: Path) -> int:
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder; give the one where runs would go")
    return report_findings(examine(folder))


def describe(file: Path) -> list[tuple[str, str]]:
    """What a file holds, line by line.

    Raises
    ------
    InputError : the file is missing, damaged or of no known format.
    """
    if file.suffix.lower() == ".xyz":
        atoms = read_xyz(file)
        arrays = sorted(set(atoms.arrays) - {"numbers", "positions"})
        return [("atoms", f"{len(atoms)}, {atoms.get_chemical_formula()}"), ("per atom", ", ".join(arrays) or "-")]
    if file.suffix.lower() in (".mrc", ".map") and _is_volume(file):
        volume = read_volume(file)
        low, high = float(volume.values.min()), float(volume.values.max())
        size = volume.box_size
        return [
            ("volume", f"{size} x {size} x {size} voxels of {volume.voxel_size:.4g} A, values {low:.4g} to {high:.4g}"),
            ("next", f"spr trace {file}"),
        ]
    return _describe_particles(file, peek(file))


def _is_volume(file: Path) -> bool:
    depth, height, width = read_header(file).shape
    return depth == height == width


def _describe_particles(file: Path, found: dict[str, Any]) -> list[tuple[str, str]]:
    n, box, pixel = found["images"], found["box_size"], found["pixel_size"]
    lines = [
        ("format", f"{found['format']}, {found['total_bytes'] / 2**20:.1f} MiB"),
        ("images", f"{n} of {box} x {box} pixels, {found['dtype']}"),
        ("pixel size", "not stated: give --pixel-size (angstrom)" if pixel is None else f"{pixel:g} A"),
    ]
    if found["optics"] is None:
        lines.append(("optics", "none: the images are taken as plain projections"))
    else:
        units = {"voltage_kv": "kV", "spherical_aberration_mm": "mm", "amplitude_contrast": ""}
        for name, (low, high) in found["optics"].items():
            value = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            label = name.removesuffix("_kv").removesuffix("_mm").replace("_", " ")
            lines.append((label, f"{value} {units.get(name, 'A')}".rstrip()))
    poses = "yes: spr refine and spr refine-atoms can start from them" if found["has_poses"] else "none"
    lines.append(("poses", poses))
    lines += [("note", note) for note in found["notes"]]
    command = f"spr reconstruct {file}" + (" --pixel-size A" if pixel is None else "")
    lines += [("next", command), ("memory", _memory(n, box)), ("time", _time(n, box)), ("device", _device())]
    return lines


def _memory(n: int, box: int) -> str:
    needed = (n * box**2 * _COPIES * 4 + 2**29) / 2**30
    have = memory_gib()
    return f"about {needed:.1f} GiB" + ("" if have is None else f" of {have:.1f} GiB here")


def _time(n: int, box: int) -> str:
    """From runs on 939 images of 80 x 80 pixels: 60 to 250 s on one core, by signal-to-noise ratio."""
    scale = n * box**2 / (939 * 80**2)
    low, high = (max(0.5, (30 + seconds * scale) / 60) for seconds in (30, 220))
    return f"about {low:.0f} to {high:.0f} CPU minutes; more when the starts do not agree at once"


def _device() -> str:
    return "a GPU (--device auto takes it)" if torch.cuda.is_available() else "CPU"
