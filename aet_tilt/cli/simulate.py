"""``aet-tilt simulate``: atoms to a tilt series whose truth is known."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from common.cli.program import Parser
from common.cli.runs import refuse_to_replace
from common.cli.settings import add_settings, read_settings
from common.data import InputError
from common.io import atomic_write, read_xyz, write_images, write_xyz
from common.io.checkpoint import make_folder
from common.io.files import write_csv
from common.io.tilt_angles import write_euler, write_tilt_angles
from common.rotations import tilt_angles_of
from common.simulation_tilts import AnnularImaging, box_of, simulate_tilts
from common.specimens import twinned_crystal

OUTPUTS = ("tilts.mrc", "tilts.tlt", "foci.txt", "truth.xyz", "truth_euler.txt", "truth_shifts.csv", "simulation.json")


@dataclass(frozen=True)
class SimulationSettings:
    """What is simulated.

    n_atoms : of a twinned crystal, where no --atoms are given.
    element : of it, a chemical symbol.
    lattice_constant : of it, angstrom.
    n_images : at equal steps of the tilt, >= 3.
    tilt_range : degrees, first and last.
    box_size : pixels; 0: as large as the particle needs.
    pixel_size : angstrom.
    shift_sigma : angstrom, rms of the particle's place on each axis.
    angle_sigma : degrees, rms by which a tilt is off from what the file says.
    foci : angstrom along the beam; every tilt is taken at each of them in turn (with --imaging.opening).
    noise : draw counts; else what is expected.
    imaging : how atoms become counts.
    seed : of all randomness.
    """

    n_atoms: int = 400
    element: str = "Au"
    lattice_constant: float = 4.08
    n_images: int = 41
    tilt_range: tuple[float, float] = (-70.0, 70.0)
    box_size: int = 0
    pixel_size: float = 0.4
    shift_sigma: float = 0.3
    angle_sigma: float = 0.0
    foci: tuple[float, ...] = ()
    noise: bool = True
    imaging: AnnularImaging = field(default_factory=AnnularImaging)
    seed: int = 1


def add_arguments(parser: Parser, name: str) -> None:
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help=f"gets {', '.join(OUTPUTS)}")
    parser.add_argument("--atoms", metavar="FILE", type=Path, help="the particle, XYZ (default: a twinned crystal)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings from a TOML file")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier simulation")
    add_settings(parser, SimulationSettings)


def run(arguments: argparse.Namespace, name: str) -> int:
    settings: SimulationSettings = read_settings({"": SimulationSettings}, arguments, arguments.config)[""]
    out: Path = arguments.out
    if settings.n_images < 3:
        raise InputError(f"{settings.n_images} images were asked for, expected at least 3")
    if not settings.pixel_size > 0:
        raise InputError(f"the pixel size is {settings.pixel_size}, expected a positive number, in angstrom")
    refuse_to_replace(out, OUTPUTS, overwrite=arguments.overwrite)
    generator = torch.Generator().manual_seed(settings.seed)
    if arguments.atoms:
        atoms = read_xyz(arguments.atoms)
        atoms.positions -= (atoms.positions.min(0) + atoms.positions.max(0)) / 2
    else:
        atoms = twinned_crystal(
            settings.n_atoms,
            element=settings.element,
            lattice_constant=settings.lattice_constant,
            generator=generator,
        )
    angles = torch.linspace(*settings.tilt_range, settings.n_images)
    pixel_size, shift_sigma = settings.pixel_size, settings.shift_sigma
    data = simulate_tilts(
        atoms,
        angles,
        box_size=settings.box_size or box_of(atoms, pixel_size=pixel_size, shift_sigma=shift_sigma),
        pixel_size=pixel_size,
        imaging=settings.imaging,
        shift_sigma=shift_sigma,
        angle_sigma=settings.angle_sigma,
        foci=settings.foci,
        noise=settings.noise,
        generator=generator,
    )
    make_folder(out)
    write_images(out / "tilts.mrc", data.stack.images, data.stack.pixel_size)
    write_tilt_angles(out / "tilts.tlt", tilt_angles_of(data.nominal.rotations))
    if data.stack.focus is not None:
        with atomic_write(out / "foci.txt", "w") as file:
            file.writelines(f"{focus:.3f}\n" for focus in data.stack.focus.heights.tolist())
    write_xyz(out / "truth.xyz", data.atoms)
    write_euler(out / "truth_euler.txt", data.poses.rotations)
    shifts = [(k, f"{x:.6f}", f"{y:.6f}") for k, (x, y) in enumerate(data.poses.shifts.tolist(), start=1)]
    write_csv(out / "truth_shifts.csv", [("image", "x_angstrom", "y_angstrom"), *shifts])
    with atomic_write(out / "simulation.json", "w") as file:
        file.write(json.dumps(asdict(settings), indent=2) + "\n")
    print(f"{len(data.stack)} images of {len(data.atoms)} atoms: {out / 'tilts.mrc'}")
    return 0
