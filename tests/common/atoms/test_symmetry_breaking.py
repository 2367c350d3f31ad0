"""Particles that nearly map onto themselves: their operations, and what breaks them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.cluster import Icosahedron, Octahedron

from common.atoms.comparison import compare
from common.atoms.fisher import fisher
from common.atoms.model import AtomicModel
from common.atoms.pseudo_symmetry import Operations, pseudo_symmetries
from common.atoms.refinement import RefinementSettings, refine_atoms
from common.atoms.symmetry_breaking import acted, acted_back, break_symmetry, seen_through, symmetrised
from common.noise import NoiseModel, estimate_noise
from common.simulation import SimulatedData, simulate_images
from common.specimens import gold_cluster


def displaced(atoms: Atoms, rms: float, seed: int) -> Atoms:
    """Centred, every coordinate moved by ``rms`` angstrom."""
    moved = atoms.copy()
    moved.positions += rms * np.random.default_rng(seed).standard_normal(moved.positions.shape)
    moved.positions -= moved.positions.mean(0)
    return moved


@pytest.mark.parametrize(
    ("atoms", "order"),
    [
        (Icosahedron("Au", 2), 120),
        (Octahedron("Au", 4, cutoff=1), 48),
        (gold_cluster(30, generator=torch.Generator().manual_seed(1)), 1),
    ],
    ids=["icosahedron", "octahedron", "random"],
)
def test_group_is_found_through_displacements(atoms: Atoms, order: int) -> None:
    positions = torch.as_tensor(displaced(atoms, 0.05, 1).positions)
    operations = pseudo_symmetries(positions)
    assert len(operations) == order
    # the group is closed: the product of any two operations is one of them
    product = operations.matrices[:, None] @ operations.matrices[None]
    apart = (product[:, :, None] - operations.matrices).flatten(3).norm(dim=3).amin(2)
    assert float(apart.max()) < 0.15


def test_vacancy_leaves_the_operations_that_keep_it() -> None:
    atoms = Icosahedron("Au", 2)
    shell = int(np.argmax(np.linalg.norm(atoms.positions, axis=1)))
    del atoms[shell]
    assert len(pseudo_symmetries(torch.as_tensor(atoms.positions))) == 10  # five-fold axis and mirrors through it


def test_what_operations_do_has_its_adjoint() -> None:
    operations = pseudo_symmetries(torch.as_tensor(Octahedron("Au", 3).positions))
    n = operations.targets.shape[1]
    generator = torch.Generator().manual_seed(2)
    one = torch.randn(4 * n, generator=generator, dtype=torch.float64)
    many = torch.randn(len(operations), 4 * n, generator=generator, dtype=torch.float64)
    torch.testing.assert_close((acted(one, operations) * many).sum(), one @ acted_back(many, operations))


def mixed_up(rms: float, snr: float, n_images: int) -> tuple[SimulatedData, NoiseModel, Operations, AtomicModel]:
    """Images of a displaced icosahedron, refined from poses that each took a random one of its operations."""
    atoms = Icosahedron("Au", 2)
    generator = torch.Generator().manual_seed(3)
    truth = simulate_images(
        displaced(atoms, rms, 3),
        n_images,
        box_size=40,
        model="projection",
        snr=snr,
        shift_sigma=0.3,
        generator=generator,
    )
    noise = estimate_noise(truth.stack, radius=5.0)
    operations = pseudo_symmetries(torch.as_tensor(atoms.positions))
    settings = RefinementSettings()
    right = refine_atoms(truth.stack, noise, truth.atoms, truth.poses, settings)
    drawn = operations.matrices[torch.randint(len(operations), (n_images,), generator=generator)]
    wrong = seen_through(symmetrised(right.parameters, operations), drawn, right.positions.mean(0))
    mixed = right.to_ase()
    mixed.positions = wrong.positions.numpy()
    model = refine_atoms(
        truth.stack, noise, mixed, replace(truth.poses, rotations=wrong.rotations, shifts=wrong.shifts), settings
    )
    return truth, noise, operations, fisher(truth.stack, noise, model, settings)


def test_displacements_are_found_from_poses_known_up_to_the_group() -> None:
    truth, noise, _, model = mixed_up(0.08, 2.0, 150)
    operations = pseudo_symmetries(model.positions)
    assert len(operations) == 120
    assert compare(model.to_ase(), truth.atoms).rmsd_pm > 8  # the average over the group
    broken = break_symmetry(truth.stack, noise, model, operations)
    assert broken.believed
    match = compare(broken.model.to_ase(), truth.atoms)
    assert match.rmsd_pm < 1.5 * model.cramer_rao_pm
    sigma = broken.model.position_sigma[match.pairs[:, 0]].numpy()
    assert 0.6 < math.sqrt(np.mean((match.distances / sigma) ** 2) / 3) < 1.5


def test_a_symmetric_particle_is_left_symmetric() -> None:
    truth, noise, _, model = mixed_up(0.0, 1.0, 100)
    broken = break_symmetry(truth.stack, noise, model, pseudo_symmetries(model.positions))
    assert not broken.believed
    assert broken.spread < 0.1 * broken.limit
