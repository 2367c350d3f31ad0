"""``spr simulate``: atoms to particle images whose truth is known."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from common.cli.program import Parser
from common.cli.runs import refuse_to_replace
from common.cli.settings import add_settings, read_settings
from common.data import ImageStack
from common.io import ParticleFile, atomic_write, read_xyz, write_images, write_particles_star, write_xyz
from common.io.checkpoint import make_folder
from common.io.relion import ANGLES, ORIGINS
from common.io.star import StarTable, read_star, write_star
from common.simulation import Imaging, simulate_images
from common.specimens import gold_cluster

OUTPUTS = ("particles.mrcs", "truth.star", "particles.star", "truth.xyz", "simulation.json")


@dataclass(frozen=True)
class SimulationSettings:
    """What is simulated.

    n_atoms : of a random gold cluster without symmetry, where no --atoms are given.
    n_images : in random orientations.
    box_size : pixels.
    pixel_size : angstrom.
    model : projection (Gaussian atoms), phase_object (exit wave and lens), or multislice (abTEM).
    snr : of projections: variance of the signal in the particle's disc over that of the noise; none for no noise.
    dose : electrons/angstrom^2 of the other models; none for no noise.
    shift_sigma : angstrom, rms of the particle's position on each axis.
    carbon_thickness : angstrom of amorphous carbon behind the particle.
    voltage_kv : kV, not of projections.
    spherical_aberration_mm : mm, not of projections.
    defocus_range : angstrom, lowest and highest, positive = underfocus; not of projections.
    defocus_error : angstrom, added to the defocus that the STAR file states.
    focal_spread : angstrom, rms.
    seed : of all randomness.
    """

    n_atoms: int = 68
    n_images: int = 939
    box_size: int = 80
    pixel_size: float = 0.35
    model: Literal["projection", "phase_object", "multislice"] = "projection"
    snr: float | None = 1.0
    dose: float | None = 800.0
    shift_sigma: float = 0.7
    carbon_thickness: float = 0.0
    voltage_kv: float = 300.0
    spherical_aberration_mm: float = -0.013
    defocus_range: tuple[float, float] = (-110.0, -50.0)
    defocus_error: float = 0.0
    focal_spread: float = 50.0
    seed: int = 1


def add_arguments(parser: Parser, name: str) -> None:
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help=f"gets {', '.join(OUTPUTS)}")
    parser.add_argument("--atoms", metavar="FILE", type=Path, help="the particle, XYZ (default: a gold cluster)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings from a TOML file")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier simulation")
    add_settings(parser, SimulationSettings)


def run(arguments: argparse.Namespace, name: str) -> int:
    settings: SimulationSettings = read_settings({"": SimulationSettings}, arguments, arguments.config)[""]
    out: Path = arguments.out
    refuse_to_replace(out, OUTPUTS, overwrite=arguments.overwrite)
    make_folder(out)
    generator = torch.Generator().manual_seed(settings.seed)
    atoms = read_xyz(arguments.atoms) if arguments.atoms else gold_cluster(settings.n_atoms, generator=generator)
    counts = settings.model != "projection"
    data = simulate_images(
        atoms,
        settings.n_images,
        box_size=settings.box_size,
        pixel_size=settings.pixel_size,
        model=settings.model,
        snr=None if counts else settings.snr,
        dose=settings.dose if counts else None,
        imaging=Imaging(
            voltage_kv=settings.voltage_kv,
            spherical_aberration_mm=settings.spherical_aberration_mm,
            defocus_range=settings.defocus_range,
            focal_spread=settings.focal_spread,
        ),
        shift_sigma=settings.shift_sigma,
        carbon_thickness=settings.carbon_thickness,
        generator=generator,
    )
    write_images(out / "particles.mrcs", data.stack.images, data.stack.pixel_size)
    names = tuple(f"{k:06d}@particles.mrcs" for k in range(1, len(data.stack) + 1))
    stack = _stated(data.stack, settings.defocus_error)
    particles = ParticleFile(stack, None, names, None, (out / "particles.mrcs",), ())
    write_particles_star(out / "truth.star", particles, data.poses)
    tables = (_without_poses(table) for table in read_star(out / "truth.star").tables)
    write_star(out / "particles.star", tuple(tables))
    write_xyz(out / "truth.xyz", data.atoms)
    with atomic_write(out / "simulation.json", "w") as file:
        file.write(json.dumps(asdict(settings), indent=2) + "\n")
    print(f"{len(data.stack)} images of {len(data.atoms)} atoms: {out / 'particles.star'}")
    return 0


def _stated(stack: ImageStack, error: float) -> ImageStack:
    """The stack as its file describes it: with a defocus that is off."""
    if stack.optics is None:
        return stack
    defocus = stack.optics.defocus + torch.tensor([error, error, 0.0])
    return replace(stack, optics=replace(stack.optics, defocus=defocus))


def _without_poses(table: StarTable) -> StarTable:
    kept = [k for k, column in enumerate(table.columns) if column not in (*ANGLES, *ORIGINS)]
    rows = tuple(tuple(row[k] for k in kept) for row in table.rows)
    return StarTable(table.name, tuple(table.columns[k] for k in kept), rows, (), table.looped)
