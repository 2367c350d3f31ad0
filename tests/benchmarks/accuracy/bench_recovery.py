"""The whole command on data whose truth is known: atoms, poses, time, and the best that any method could do."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.cluster import Icosahedron

from common.atoms.comparison import Comparison, compare
from common.atoms.fisher import fisher
from common.atoms.refinement import refine_atoms
from common.data import Poses
from common.io import read_particles, read_xyz, write_xyz
from common.noise import estimate_noise


@dataclass(frozen=True)
class Case:
    """simulation : options of `spr simulate`. particle : its atoms; None: a gold cluster without symmetry."""

    simulation: tuple[str, ...]
    particle: Callable[[], Atoms] | None = None


def fcc_gold() -> Atoms:
    """A block of the crystal around a point that is no centre of any of its symmetries."""
    block = bulk("Au", cubic=True) * (8, 8, 8)
    block.positions -= block.positions.mean(0) + np.array([0.7, 0.3, 0.9])
    return block


def crystal_ball() -> Atoms:
    """The 70 atoms of a crystal nearest to a point: turned by the lattice, nearly all of them lie on others."""
    block = fcc_gold()
    return block[np.argsort(np.linalg.norm(block.positions, axis=1))[:70]]


def needle() -> Atoms:
    """A rod of the crystal, 18 angstrom long and 7 thick."""
    block = fcc_gold()
    across, along = np.linalg.norm(block.positions[:, :2], axis=1), np.abs(block.positions[:, 2])
    return block[(across < 3.6) & (along < 9.0)]


def icosahedron_and_one() -> Atoms:
    """An icosahedron of 55 atoms, and one more on a face of it."""
    cluster = Icosahedron("Au", 3)
    face = cluster.positions[np.argsort(cluster.positions @ np.array([1.0, 0.4, 0.2]))[-3:]].mean(0)
    return cluster + Atoms("Au", [face * (1 + 2.2 / np.linalg.norm(face))])


def displaced(atoms: Atoms) -> Atoms:
    """Every coordinate moved by 0.05 angstrom, rms: no particle is perfect."""
    moved = Atoms(atoms.symbols, atoms.positions)
    moved.positions += 0.05 * np.random.default_rng(1).standard_normal(moved.positions.shape)
    return moved


PHASE = ("--model", "phase_object", "--carbon-thickness", "20")
CASES = {
    "projections, SNR 1": Case(("--snr", "1")),
    "projections, SNR 0.2": Case(("--snr", "0.2")),
    "phase objects on carbon, 800 e/A^2": Case((*PHASE, "--dose", "800")),
    "phase objects on carbon, 200 e/A^2": Case((*PHASE, "--dose", "200")),
    "a ball of a crystal, SNR 0.5": Case(("--snr", "0.5"), crystal_ball),
    "a needle, SNR 0.5": Case(("--snr", "0.5", "--box-size", "108"), needle),
    "an icosahedron and an atom, SNR 0.5": Case(("--snr", "0.5"), icosahedron_and_one),
}
COLUMNS = (
    "data",
    "seed",
    "status",
    "atoms right",
    "false",
    "RMSD, pm",
    "bound, pm",
    "ratio",
    "error / sigma, rms",
    "median pose error, degrees",
    "CPU s",
)


@dataclass(frozen=True)
class Outcome:
    """One run against its truth.

    matched, false : atoms within 0.5 angstrom of the truth; the others. rmsd_pm, bound_pm : pm, 3D. pulls : rms of true
    errors over sigmas. pose_error : degrees, median. cpu_seconds : of all processes of the run.
    """

    status: str
    matched: int
    false: int
    n_atoms: int
    rmsd_pm: float
    bound_pm: float
    pulls: float
    pose_error: float
    cpu_seconds: float


def run_case(folder: Path, case: Case, seed: int, n_images: int) -> Outcome:
    """Simulate, reconstruct and score."""
    data, out = folder / f"data-{seed}", folder / f"run-{seed}"
    simulation = ["--seed", str(seed), "--n-images", str(n_images), "--overwrite", *case.simulation]
    if case.particle is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_xyz(folder / "particle.xyz", displaced(case.particle()))
        simulation += ["--atoms", str(folder / "particle.xyz")]
    _spr(["simulate", "--out", str(data), *simulation])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["reconstruct", str(data / "particles.star"), "--element", "Au", "--seed", str(seed)]
    _spr([*command, "--out", str(out), "--overwrite", "--threads", "1", "--device", "cpu"])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return score(data, out, cpu)


def _spr(arguments: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    call = [sys.executable, "-c", "import sys; from spr.cli import main; sys.exit(main())", *arguments]
    done = subprocess.run(call, env=environment, check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"spr {' '.join(arguments)} ended with status {done.returncode}")


def score(data: Path, out: Path, cpu_seconds: float) -> Outcome:
    """Hold a run folder against the truth beside its data."""
    truth, true_particles = read_xyz(data / "truth.xyz"), read_particles(data / "truth.star")
    status = json.loads((out / "run.json").read_text())["status"]
    if true_particles.poses is None:
        raise ValueError(f"{data}: the truth has no poses")
    noise = estimate_noise(true_particles.stack)
    best = fisher(true_particles.stack, noise, refine_atoms(true_particles.stack, noise, truth, true_particles.poses))
    bound = float(best.cramer_rao_pm or np.nan)
    if not (out / "atoms.xyz").exists():
        return Outcome(status, 0, 0, len(truth), np.nan, bound, np.nan, np.nan, cpu_seconds)
    found = read_xyz(out / "atoms.xyz")
    placed = compare(found, truth)
    sigma = found.arrays["position_sigma"][placed.pairs[:, 0]]
    pulls = float(np.sqrt(np.mean(placed.distances**2 / (3 * sigma**2))))
    star = out / "particles.star"
    poses = read_poses(star, data) if star.exists() else None
    error = np.nan if poses is None else pose_error(poses, true_particles.poses, placed)
    return Outcome(
        status,
        placed.matched,
        len(found) - placed.matched,
        len(truth),
        placed.rmsd_pm,
        bound,
        pulls,
        error,
        cpu_seconds,
    )


def read_poses(star: Path, data: Path) -> Poses | None:
    """The poses of a run; its table names the images beside the data."""
    beside = data / "found.star"
    beside.write_bytes(star.read_bytes())
    return read_particles(beside).poses


def pose_error(found: Poses, true: Poses, placed: Comparison) -> float:
    """Median angle in degrees between found and true orientations, after laying the atoms on the truth."""
    rotations = found.rotations.double() @ torch.from_numpy(placed.rotation.T)
    if placed.mirrored:  # the image of a mirrored particle is that of the particle seen through the image plane
        rotations = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)) @ rotations
    trace = torch.einsum("nij,nij->n", rotations, true.rotations.double())
    return float(torch.rad2deg(torch.arccos(((trace - 1) / 2).clamp(-1, 1))).median())


def row(name: str, seed: int, o: Outcome) -> tuple[str, ...]:
    """A line of the table."""

    def number(value: float, digits: int = 2) -> str:
        return "-" if np.isnan(value) else f"{value:.{digits}f}"

    return (
        name,
        str(seed),
        o.status,
        f"{o.matched} of {o.n_atoms}",
        str(o.false),
        number(o.rmsd_pm),
        number(o.bound_pm),
        number(o.rmsd_pm / o.bound_pm),
        number(o.pulls),
        number(o.pose_error),
        number(o.cpu_seconds, 0),
    )
