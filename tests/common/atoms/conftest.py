"""Small simulated data sets with their truth, and a start that is off as a first trace is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import ase
import numpy as np
import pytest
import torch

from common.data import ImageStack, Poses
from common.noise import NoiseModel, estimate_noise
from common.rotations import rotation_from_vector
from common.simulation import SimulatedData, gold_cluster, simulate_images


@dataclass(frozen=True)
class SmallSet:
    """Images of 20 gold atoms, on the device of the tests.

    ``stack.optics`` is what a file would say: defocus 30 angstrom off, no focal spread.
    """

    truth: SimulatedData
    stack: ImageStack
    noise: NoiseModel
    atoms: ase.Atoms
    poses: Poses


def small_set(model: str, seed: int, n_images: int = 60, *, device: torch.device | str = "cpu") -> SmallSet:
    generator = torch.Generator().manual_seed(seed)
    atoms = gold_cluster(20, generator=generator)
    projection = model == "projection"
    noise = {"snr": 1.0} if projection else {"dose": 1500.0}
    truth = simulate_images(
        atoms,
        n_images,
        box_size=40 if projection else 48,
        model=model,
        shift_sigma=0.35,
        generator=generator,
        **noise,
    )
    stack = truth.stack
    if stack.optics is not None:
        moved = stack.optics.defocus + torch.tensor([30.0, 30.0, 0.0])
        unknown = torch.zeros_like(stack.optics.focal_spread)
        stack = replace(stack, optics=replace(stack.optics, defocus=moved, focal_spread=unknown))
    stack = stack.to(device)
    start = truth.atoms.copy()
    start.positions += 0.1 / math.sqrt(3) * torch.randn(20, 3, generator=generator).numpy()
    turn = rotation_from_vector(torch.randn(n_images, 3, generator=generator).double() * math.radians(5))
    shift = 0.15 * torch.randn(n_images, 2, generator=generator)
    poses = Poses(turn @ truth.poses.rotations.double(), (truth.poses.shifts + shift).double())
    return SmallSet(truth, stack, estimate_noise(stack, radius=6.0), start, poses)


def rigid_errors(found: torch.Tensor, truth: np.ndarray) -> np.ndarray:
    """(n, 3) what is left between two lists of atoms in the same order after the best rotation and translation."""
    found = found.cpu()
    a, b = found.numpy() - found.numpy().mean(0), truth - truth.mean(0)
    u, _, vt = np.linalg.svd(b.T @ a)
    rotation = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    return np.asarray(a @ rotation.T - b)


@pytest.fixture(scope="session")
def projections(device: torch.device) -> SmallSet:
    return small_set("projection", 1, device=device)


@pytest.fixture(scope="session")
def phase_objects(device: torch.device) -> SmallSet:
    return small_set("phase_object", 1, device=device)


@pytest.fixture(scope="session")
def make_set():
    return small_set


@pytest.fixture(scope="session")
def errors_of():
    return rigid_errors
