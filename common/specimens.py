"""Specimens to simulate: a gold cluster without symmetry, a twinned crystal, and amorphous carbon under them."""

from __future__ import annotations

import math

import ase
import numpy as np
import torch
from ase.data import atomic_numbers
from scipy.spatial import cKDTree
from torch import Tensor

from common.data import InputError
from common.rotations import random_rotations

# Gold in the second-moment approximation: F. Cleri, V. Rosato, Phys. Rev. B 48, 22 (1993), eV. The length is 4.5 % over
# theirs (2.884), which contracts surfaces too much: contacts come out at 2.7-2.95, as in real clusters.
REPULSION, BINDING, RANGE_REPULSION, RANGE_BINDING, CONTACT = 0.2061, 1.790, 10.229, 4.036, 3.014
BOLTZMANN = 8.617333e-5  # eV / K
CARBON_DENSITY = 2.0 / 12.011 * 0.602214  # atoms per cubic angstrom at 2 g/cm^3
CARBON_DISTANCE = 1.3  # closest approach, angstrom


def _gupta_energy(positions: Tensor) -> Tensor:
    n = len(positions)
    first, second = torch.triu_indices(n, n, 1)
    distance = (positions[first] - positions[second]).norm(dim=1) / CONTACT - 1
    repulsion = 2 * REPULSION * torch.exp(-RANGE_REPULSION * distance)
    bonds = BINDING**2 * torch.exp(-2 * RANGE_BINDING * distance)
    density = positions.new_zeros(n).index_add(0, first, bonds).index_add(0, second, bonds)
    return repulsion.sum() - torch.sqrt(density).sum()


def _forces(positions: Tensor) -> Tensor:
    with torch.enable_grad():
        x = positions.detach().requires_grad_(True)
        return -torch.autograd.grad(_gupta_energy(x), x)[0]


def _spread_apart(positions: Tensor, distance: float) -> Tensor:
    for _ in range(200):
        difference = positions[:, None] - positions
        length = difference.norm(dim=-1).clamp(min=1e-3)
        push = (distance - length).clamp(min=0).fill_diagonal_(0)
        if not bool(push.any()):
            break
        positions = positions + 0.25 * (push[..., None] * difference / length[..., None]).sum(1)
    return positions


def gold_cluster(n_atoms: int = 68, *, generator: torch.Generator) -> ase.Atoms:
    """A compact gold cluster without symmetry: random spheres, annealed briefly and quenched.

    Parameters
    ----------
    n_atoms : at least 2.

    Returns
    -------
    Atoms about the origin, angstrom; nearest neighbours 2.65 to 3 apart.

    Raises
    ------
    InputError : fewer than 2 atoms.
    """
    if n_atoms < 2:
        raise InputError(f"a cluster of {n_atoms} atoms was asked for, expected at least 2")
    device = generator.device
    radius = 0.95 * (3 * 17.0 * n_atoms / (4 * math.pi)) ** (1 / 3)  # 17 cubic angstrom an atom
    direction = torch.randn(n_atoms, 3, generator=generator, dtype=torch.float64, device=device)
    length = radius * torch.rand(n_atoms, 1, generator=generator, dtype=torch.float64, device=device) ** (1 / 3)
    x = _spread_apart(direction / direction.norm(dim=1, keepdim=True) * length, 2.6)
    # Langevin dynamics from 900 K down; mass and time only set how fast, so both are 1 in eV and angstrom
    velocity, step, steps = torch.zeros_like(x), 0.05, 500
    force = _forces(x)
    for i in range(steps):
        kick = math.sqrt(2 * 0.5 * step * BOLTZMANN * 900 * (1 - i / steps))
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device)
        velocity = (velocity + step * force.clamp(-5, 5)) * (1 - 0.5 * step) + kick * noise
        x = x + step * velocity
        force = _forces(x)
    x = x.requires_grad_(True)
    quench = torch.optim.LBFGS([x], max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        quench.zero_grad()
        energy = _gupta_energy(x)
        energy.backward()
        return energy

    with torch.enable_grad():
        quench.step(closure)
    centred = (x - x.mean(0)).detach().cpu().numpy()
    return ase.Atoms(f"Au{n_atoms}", positions=centred)


def amorphous_carbon(width: float, thickness: float, *, generator: torch.Generator) -> Tensor:
    """Random carbon atoms in a slab, no two closer than 1.3 A, at 2 g/cm^3.

    Parameters
    ----------
    width : of the square slab, periodic in x and y, angstrom.
    thickness : angstrom.

    Returns
    -------
    (n, 3) positions, float64; x and y in [-width / 2, width / 2), z in [0, thickness).
    """
    n = round(CARBON_DENSITY * width * width * thickness)
    size = torch.tensor([width, width, thickness], dtype=torch.float64)
    period = [width, width, 4 * thickness]  # so far above the slab that z does not wrap

    def draw(count: int) -> np.ndarray:
        uniform = torch.rand(count, 3, generator=generator, dtype=torch.float64, device=generator.device).cpu()
        return (uniform * size).numpy()

    positions = draw(n)
    for _ in range(100):
        pairs = cKDTree(positions % period, boxsize=period).query_pairs(CARBON_DISTANCE, output_type="ndarray")
        if len(pairs) == 0:
            break
        moved = np.unique(pairs[:, 1])
        positions[moved] = draw(len(moved))
    return torch.from_numpy(positions) - torch.tensor([width / 2, width / 2, 0.0], dtype=torch.float64)


def twinned_crystal(
    n_atoms: int = 400, *, element: str = "Au", lattice_constant: float = 4.08, generator: torch.Generator
) -> ase.Atoms:
    """A ball of face-centred cubic crystal with one twin plane near its middle, turned at random.

    Parameters
    ----------
    n_atoms : at least 2.
    lattice_constant : angstrom, > 0.

    Returns
    -------
    Atoms about the origin, angstrom.

    Raises
    ------
    InputError : a parameter out of its range, or an unknown element.
    """
    if n_atoms < 2:
        raise InputError(f"a crystal of {n_atoms} atoms was asked for, expected at least 2")
    if not lattice_constant > 0:
        raise InputError(f"the lattice constant is {lattice_constant}, expected a positive number, in angstrom")
    if atomic_numbers.get(element, 0) < 1:
        raise InputError(f"the element is {element!r}, expected a chemical symbol such as Au")
    contact = lattice_constant / math.sqrt(2)
    reach = math.ceil((3 * n_atoms) ** (1 / 3)) + 3
    k = torch.arange(-reach, reach + 1, dtype=torch.float64)
    i, j, layer = torch.meshgrid(k, k, k, indexing="ij")
    stacked = layer.abs() % 3 / 3  # A B C ... away from the twin plane on either side
    x = contact * (i + j / 2 + 1.5 * stacked)
    y = contact * math.sqrt(3) / 2 * (j + stacked)
    sites = torch.stack((x, y, layer * lattice_constant / math.sqrt(3)), -1).reshape(-1, 3)
    middle = torch.rand(3, generator=generator, dtype=torch.float64, device=generator.device).cpu() * contact / 2
    nearest = (sites - middle).norm(dim=1).argsort()[:n_atoms]
    turned = sites[nearest] @ random_rotations(1, generator=generator, dtype=torch.float64)[0].cpu().T
    return ase.Atoms(f"{element}{n_atoms}", positions=(turned - turned.mean(0)).numpy())
