"""Particles whose structure is known: spheres of fcc, twinned, twisted, strained, with missing and noisy atoms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from ase import Atoms
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from common.atoms.grains import find_grains
from common.atoms.local_structure import local_structure

TILTED = Rotation.from_rotvec([0.3, -0.7, 0.4]).as_matrix()  # no axis of the crystals is an axis of the frame
LATTICE = 4.08


@dataclass(frozen=True)
class Specimen:
    """positions : (n, 3) with displacements and noise. perfect : (n, 3) without. upper : (n,) above the boundary.
    removed : (k, 3) places of missing atoms that had all twelve neighbours; gone : (m, 3) of all missing atoms.
    gradients : (n, 3, 3) of the displacement, d u_a / d x_b. normal : (3,) of the boundary."""

    positions: np.ndarray
    perfect: np.ndarray
    upper: np.ndarray
    removed: np.ndarray
    gone: np.ndarray
    gradients: np.ndarray
    normal: np.ndarray

    @property
    def atoms(self) -> Atoms:
        symbols = np.where(np.arange(len(self.positions)) % 3, "Au", "Pd")  # an alloy: species must not matter
        return Atoms(symbols.tolist(), positions=self.positions)


def bend(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A smooth displacement field of strains up to 2 per cent, and its gradient."""
    linear = np.array([[0.008, 0.004, 0.0], [0.002, -0.012, 0.003], [0.0, 0.005, 0.006]])
    u, gradient = x @ linear.T, np.tile(linear, (len(x), 1, 1))
    k = np.pi / 60
    for a, wave in enumerate(k * np.array([[1, 0, 0.5], [0, 1, 0], [0.3, 0.4, 1]])):
        u[:, a] += 0.01 / k * np.sin(x @ wave)
        gradient[:, a] += 0.01 * np.cos(x @ wave)[:, None] * wave / k
    return u, gradient


def make(radius, *, kind="single", angle=0.0, noise=0.0, missing=0.0, strained=False, seed=0) -> Specimen:
    generator = np.random.default_rng(seed)
    m = np.arange(-40, 41)
    m = m[np.abs(m) * LATTICE / 2 < 1.8 * radius]
    grid = np.stack(np.meshgrid(m, m, m), -1).reshape(-1, 3)
    x = grid[grid.sum(1) % 2 == 0] * LATTICE / 2
    z = np.ones(3) / np.sqrt(3)
    frame = np.stack((np.array([1, -1, 0]) / np.sqrt(2), np.cross(z, np.array([1, -1, 0]) / np.sqrt(2)), z))
    x = x @ frame.T
    layer = LATTICE / np.sqrt(3)
    if kind == "twin":
        top = x[x[:, 2] > layer - 0.1]
        mirrored = top * np.array([1, 1, -1]) + np.array([0, 0, 2 * layer])
        x = np.concatenate((top, mirrored[mirrored[:, 2] < layer - 0.1]))
    x = x[np.linalg.norm(x, axis=1) < radius]
    upper = x[:, 2] > layer - 0.1
    if kind == "twist":
        x[upper] = x[upper] @ Rotation.from_euler("z", angle, degrees=True).as_matrix().T
    perfect = x @ TILTED.T
    inner = cKDTree(perfect).query_ball_point(perfect, 1.2 * LATTICE / np.sqrt(2), return_length=True) == 13
    kept = generator.uniform(size=len(x)) >= missing
    u, gradients = bend(perfect) if strained else (np.zeros_like(perfect), np.zeros((len(x), 3, 3)))
    positions = perfect + u + generator.normal(0, noise, x.shape) if noise else perfect + u
    normal = TILTED @ np.array([0.0, 0.0, 1.0])
    lost = perfect + u
    return Specimen(
        positions[kept], perfect[kept], upper[kept], lost[~kept & inner], lost[~kept], gradients[kept], normal
    )


@pytest.fixture(scope="session")
def make_specimen():
    return make


@pytest.fixture(scope="session")
def twinned():
    """2,200 atoms, a twin, 1 to 2 per cent strain, 15 pm noise, 2 per cent of the atoms missing."""
    return make(21.0, kind="twin", noise=0.15, missing=0.02, strained=True, seed=3)


@pytest.fixture(scope="session")
def twinned_structure(twinned):
    structure = local_structure(twinned.atoms)
    return structure, find_grains(twinned.atoms, structure)
