"""``spr simulate --movie``: a liquid-cell movie whose truth is known."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from common.cli.program import Parser
from common.cli.runs import refuse_to_replace
from common.cli.settings import add_settings, read_settings
from common.io import atomic_write, write_images, write_xyz
from common.io.checkpoint import make_folder
from common.io.files import write_csv
from common.rotations import matrix_to_euler
from common.simulation_movie import MovieSimulation, MovieTruth, draw_truth, simulate_movie

OUTPUTS = ("movie.mrc", "truth.csv", "simulation.json")


def add_arguments(parser: Parser, name: str) -> None:
    files = ", ".join((*OUTPUTS, "particle_001.xyz ..."))
    parser.add_argument("--movie", action="store_true", help="a movie of tumbling particles, not single images")
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help=f"gets {files}")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings from a TOML file")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier simulation")
    add_settings(parser, MovieSimulation)


def run(arguments: argparse.Namespace, name: str) -> int:
    settings: MovieSimulation = read_settings({"": MovieSimulation}, arguments, arguments.config)[""]
    out: Path = arguments.out
    refuse_to_replace(out, OUTPUTS, overwrite=arguments.overwrite)
    generator = torch.Generator().manual_seed(settings.seed)
    truth = draw_truth(settings, generator)
    make_folder(out)
    frames = torch.empty(settings.n_frames, settings.frame_size, settings.frame_size)
    for t, frame in enumerate(simulate_movie(settings, truth, generator)):
        frames[t] = frame
    write_images(out / "movie.mrc", frames, settings.pixel_size)
    write_csv(out / "truth.csv", _table(truth))
    for k, atoms in enumerate(truth.atoms, start=1):
        write_xyz(out / f"particle_{k:03d}.xyz", atoms)
    with atomic_write(out / "simulation.json", "w") as file:
        file.write(json.dumps(asdict(settings), indent=2) + "\n")
    sizes = " and ".join(str(len(atoms)) for atoms in truth.atoms)
    print(f"{settings.n_frames} frames of particles of {sizes} atoms: {out / 'movie.mrc'}")
    return 0


def _table(truth: MovieTruth) -> list[tuple[object, ...]]:
    """Centres (angstrom from the first pixel), Euler angles (RELION) and defocus of every particle in every frame."""
    rows: list[tuple[object, ...]] = [("frame", "particle", "x", "y", "rot", "tilt", "psi", "defocus")]
    angles = matrix_to_euler(truth.rotations)
    for t in range(len(truth.centres)):
        for p in range(truth.centres.shape[1]):
            numbers = (*truth.centres[t, p].tolist(), *angles[t, p].tolist(), float(truth.defocus[t]))
            rows.append((t + 1, p + 1, *(f"{number:.4f}" for number in numbers)))
    return rows
