"""Every tomographic method on one simulated tilt series whose volume is known, with ASTRA's beside them if installed.

    python tests/benchmarks/accuracy/tilt_methods.py [--counts 50] [--images 51]

The images are those of Gaussian atoms, without any projector, with Poisson noise. ASTRA (``pip install .[bench]``)
solves slice by slice with its linear projector on the CPU; its held-out R1 is taken with this suite's projector, as all
others are. All of this suite's but filtered back-projection are given the support that the suite finds; discrete
tomography is given the lattice that the atoms were moved away from, and five of the images.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from aet_tilt.reconstruction.discrete import fill_lattice, lattice_problem, lattice_sites
from aet_tilt.reconstruction.methods import (
    Method,
    ReconstructionSettings,
    choose_method,
    find_support,
    held_out,
    reconstruct_values,
)
from aet_tilt.reconstruction.problem import Problem, make_problem, r_factor
from aet_tilt.reconstruction.real_space import RealSpaceSettings
from common.atoms.peaks import find_peaks
from common.data import ImageStack, InputError, Poses, Volume
from common.resolution import fourier_shell_correlation

COLUMNS = (
    "method", "volume correlation", "mean FSC", "held-out R1", "atoms right", "false", "RMSD before refinement, pm",
    "CPU s",
)  # fmt: skip
BOX, PIXEL, WIDTH = 65, 0.4, 0.4  # odd, so that ASTRA's origin (the middle) is this suite's (pixel d // 2)
ASTRA = {"FBP": 1, "SIRT": 100, "CGLS": 10}
FCC = torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]) * 4.08
FEW = 5
PASSES = {"art": 3, "sart": 5, "sirt": 100, "cgls": 8}


@dataclass(frozen=True)
class Case:
    """truth : (d, d, d). atoms : (n, 3), angstrom. problem : images with counting noise."""

    truth: Tensor
    atoms: Tensor
    problem: Problem


def simulate(n_images: int = 51, most: float = 70.0, counts: float = 50.0, seed: int = 0) -> Case:
    """A ball of fcc gold, atoms moved by 0.15 angstrom on each axis, at tilts to +-``most`` degrees.

    counts : of the brightest pixel.
    """
    generator = torch.Generator().manual_seed(seed)
    n = torch.arange(-6, 7)
    grid = torch.stack(torch.meshgrid(n, n, n, indexing="ij"), -1).reshape(-1, 3)
    atoms = grid[grid.sum(-1) % 2 == 0] * (4.08 / 2)
    atoms = atoms[atoms.norm(dim=-1) < 8.0]
    atoms = atoms + 0.15 * torch.randn(atoms.shape, generator=generator)
    poses = Poses.from_tilt_angles(torch.linspace(-most, most, n_images))
    axis = (torch.arange(BOX) - BOX // 2) * PIXEL

    def profile(x: Tensor) -> Tensor:
        return torch.exp(-((axis - x[..., None]) ** 2) / (2 * WIDTH**2))

    x, y, z = (profile(atoms[:, i]) for i in range(3))
    seen = torch.einsum("nij,aj->nai", poses.rotations, atoms)
    clean = torch.einsum("nay,nax->nyx", profile(seen[..., 1]), profile(seen[..., 0])) * WIDTH * math.sqrt(2 * math.pi)
    scale = counts / clean.max()
    images = torch.poisson(clean * scale, generator=generator) / scale
    problem = find_support(make_problem(ImageStack(images, PIXEL), poses), ReconstructionSettings())
    return Case(torch.einsum("az,ay,ax->zyx", z, y, x), atoms, problem)


@dataclass(frozen=True)
class Score:
    """correlation, fsc : of the volume with the truth. r1 : of images left out. right, false : traced atoms within 0.7
    angstrom of a true one, and others. rmsd : pm, of the former. seconds : CPU time of one reconstruction."""

    correlation: float
    fsc: float
    r1: float
    right: int
    false: int
    rmsd: float
    seconds: float


def score(case: Case, solve: Callable[[Problem], Tensor]) -> Score:
    """How well a method does, of one reconstruction of all images and one without every seventh."""
    before = time.process_time()
    values = solve(case.problem)
    seconds = time.process_time() - before
    pair = torch.stack((values.flatten(), case.truth.flatten()))
    fsc = fourier_shell_correlation(Volume(values, PIXEL), Volume(case.truth, PIXEL)).correlation[1:]
    out = held_out(len(case.problem.operator), 7)
    kept = torch.ones(len(case.problem.operator), dtype=torch.bool)
    kept[out] = False
    rest = solve(case.problem.subset(kept.nonzero().flatten()))
    left_out = case.problem.subset(out)
    r1 = r_factor(left_out.operator.project(rest), left_out.images)
    try:
        traced = find_peaks(Volume(values, PIXEL), ("Au",)).positions
    except InputError:  # a volume without atoms
        traced = np.empty((0, 3))
    pairs = torch.cdist(torch.as_tensor(traced), case.atoms.double())
    nearest = pairs.min(1).values if len(traced) else torch.empty(0)
    near = nearest[nearest < 0.7]
    rmsd = 100 * float(near.square().mean().sqrt()) if len(near) else math.nan
    correlation = float(torch.corrcoef(pair)[0, 1])
    return Score(correlation, float(fsc.mean()), r1, len(near), len(traced) - len(near), rmsd, seconds)


def with_astra(astra: ModuleType, problem: Problem, name: str, iterations: int) -> Tensor:
    """ASTRA's FBP, SIRT or CGLS of each slice, on the CPU."""
    rotations = problem.operator.poses.rotations
    # ASTRA's second axis runs up where z runs down the rows, so its angles are the negative ones
    angles = -torch.atan2(rotations[:, 0, 2], rotations[:, 0, 0]).double().numpy()
    volume = astra.create_vol_geom(BOX, BOX)
    rays = astra.create_proj_geom("parallel", 1.0, BOX, angles)
    projector = astra.create_projector("linear", rays, volume)
    slices = []
    for row in range(BOX):
        data = astra.data2d.create("-sino", rays, np.ascontiguousarray(problem.images[:, row].numpy()) / PIXEL)
        result = astra.data2d.create("-vol", volume)
        settings = astra.astra_dict(name)
        settings |= {"ProjectorId": projector, "ProjectionDataId": data, "ReconstructionDataId": result}
        if name == "SIRT":
            settings["option"] = {"MinConstraint": 0.0}
        algorithm = astra.algorithm.create(settings)
        astra.algorithm.run(algorithm, iterations)
        # CGLS divides nothing by nothing where a row is empty
        slices.append(torch.from_numpy(astra.data2d.get(result)).nan_to_num())
        astra.algorithm.delete(algorithm)
        astra.data2d.delete([data, result])
    return torch.stack(slices, 1)


def from_few(problem: Problem) -> Tensor:
    """The volume of Gaussian atoms on those sites of the lattice that discrete tomography fills."""
    rows = torch.linspace(0, len(problem.operator) - 1, FEW).round().long()
    sites = lattice_sites(FCC, torch.zeros(3), 10.0)
    few = lattice_problem(ImageStack(problem.images[rows], PIXEL), problem.operator.poses[rows], sites, WIDTH)
    found = fill_lattice(few)
    axis = (torch.arange(BOX) - BOX // 2) * PIXEL
    filled = sites[found.occupancies > 0.5]
    x, y, z = (torch.exp(-((axis - filled[:, i : i + 1]) ** 2) / (2 * WIDTH**2)) for i in range(3))
    return found.height / (WIDTH * math.sqrt(2 * math.pi)) * torch.einsum("az,ay,ax->zyx", z, y, x)


def measure(n_images: int = 51, counts: float = 50.0) -> list[tuple[str, ...]]:
    """The rows of the table: every method of this suite, the one that auto takes, and ASTRA's."""
    case = simulate(n_images, counts=counts)
    rows = []

    def add(name: str, solve: Callable[[Problem], Tensor]) -> None:
        s = score(case, solve)
        atoms = (f"{s.right} of {len(case.atoms)}", f"{s.false}", f"{s.rmsd:.1f}")
        rows.append((name, f"{s.correlation:.3f}", f"{s.fsc:.3f}", f"{s.r1:.3f}", *atoms, f"{s.seconds:.1f}"))
        print("| " + " | ".join(rows[-1]) + " |", flush=True)

    for method in get_args(Method):
        rays = RealSpaceSettings(iterations=PASSES.get(method, 1), relaxation=0.5 if method in ("art", "sart") else 1.0)
        settings = ReconstructionSettings(real_space=rays)
        add(method, lambda p, m=method, s=settings: reconstruct_values(p, m, s))
    choice = choose_method(case.problem)
    add(f"auto: {choice.method}", lambda p: reconstruct_values(p, choice.method, choice.settings))
    add(f"discrete, {FEW} images", from_few)
    try:
        import astra
    except ImportError:
        return rows
    for name, iterations in ASTRA.items():
        add(f"ASTRA {name}", lambda p, n=name, i=iterations: with_astra(astra, p, n, i))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=float, default=50.0, help="of the brightest pixel")
    parser.add_argument("--images", type=int, default=51, help="number of tilts")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| " + " | ".join(COLUMNS) + " |\n| " + " | ".join(["---"] * len(COLUMNS)) + " |")
    measure(given.images, given.counts)


if __name__ == "__main__":
    main()
