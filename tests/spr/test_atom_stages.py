"""Atoms from images of which many are in a pose that only nearly fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.cluster import Icosahedron

from common.atoms.comparison import compare
from common.atoms.fisher import fisher
from common.atoms.pseudo_symmetry import pseudo_symmetries
from common.atoms.refinement import refine_atoms
from common.atoms.symmetry_breaking import seen_through
from common.rotations import geodesic_distance
from common.simulation import simulate_images
from spr.atom_stages import settle_poses, settle_symmetry
from spr.map_stages import look_at
from spr.settings import Settings


def centred(atoms: Atoms) -> Atoms:
    moved = Atoms(atoms.symbols, atoms.positions)
    moved.positions += 0.05 * np.random.default_rng(1).standard_normal(moved.positions.shape)
    moved.positions -= moved.positions.mean(0)
    return moved


def test_images_turned_by_an_operation_of_the_lattice_find_their_pose() -> None:
    lattice = bulk("Au", cubic=True) * (4, 4, 4)
    from_corner = np.linalg.norm(lattice.positions - np.array([7.2, 8.3, 9.0]), axis=1)
    truth = centred(lattice[np.argsort(from_corner)[:33]])
    assert len(pseudo_symmetries(torch.as_tensor(truth.positions))) == 1
    data = simulate_images(
        truth, 100, box_size=48, model="projection", snr=1.0, generator=torch.Generator().manual_seed(2)
    )
    settings = Settings()
    seen = look_at(data.stack, settings)
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    right = data.poses[seen.fitted]
    turned = torch.arange(len(right.rotations)) % 10 < 4
    rotations = torch.where(turned[:, None, None], right.rotations.double() @ quarter, right.rotations.double())
    stack, _, noise = seen.part(seen.fitted)
    mixed = refine_atoms(stack, noise, data.atoms, replace(right, rotations=rotations.to(right.rotations)))
    model, _, changed = settle_poses(seen, mixed, settings, ())
    assert changed
    apart = geodesic_distance(model.poses.rotations, right.rotations.double())
    assert (apart < 5).double().mean() > 0.9
    assert compare(mixed.to_ase(), data.atoms).rmsd_pm > 2 * compare(model.to_ase(), data.atoms).rmsd_pm


def test_an_atom_that_hides_behind_the_symmetry_of_the_others_is_found() -> None:
    cluster = Icosahedron("Au", 2)
    outward = cluster.positions[np.argsort(cluster.positions @ np.array([1.0, 0.4, 0.2]))[-3:]].mean(0)
    outward *= 1 + 2.2 / np.linalg.norm(outward)
    truth = centred(cluster + Atoms("Au", [outward]))
    data = simulate_images(
        truth, 150, box_size=48, model="projection", snr=2.0, generator=torch.Generator().manual_seed(3)
    )
    settings = Settings()
    seen = look_at(data.stack, settings)
    stack, _, noise = seen.part(seen.fitted)
    without = data.atoms[:13]
    operations = pseudo_symmetries(torch.as_tensor(without.positions))
    right = refine_atoms(stack, noise, without, data.poses[seen.fitted])
    drawn = torch.randint(len(operations), (len(stack),), generator=torch.Generator().manual_seed(4))
    wrong = seen_through(right.parameters, operations.matrices[drawn], right.positions.mean(0))
    model = refine_atoms(stack, noise, without, replace(right.poses, rotations=wrong.rotations, shifts=wrong.shifts))
    found, broken = settle_symmetry(seen, model, settings, ())
    assert broken is not None
    assert broken.believed
    match = compare(found.to_ase(), data.atoms)
    assert len(found.positions) == len(match.pairs) == 14
    assert found.position_sigma is not None


def test_atoms_of_a_symmetric_particle_do_not_follow_the_noise_of_their_images() -> None:
    truth = Icosahedron("Au", 2)
    data = simulate_images(
        truth, 100, box_size=40, model="projection", snr=1.0, generator=torch.Generator().manual_seed(5)
    )
    settings = Settings()
    seen = look_at(data.stack, settings)
    stack, _, noise = seen.part(seen.fitted)
    model = fisher(stack, noise, refine_atoms(stack, noise, data.atoms, data.poses[seen.fitted]))
    even, broken = settle_symmetry(seen, model, settings, ())
    assert broken is not None
    assert not broken.believed
    before, after = (compare(one.to_ase(), data.atoms).rmsd_pm for one in (model, even))
    assert after < 0.5 * before
    assert even.position_sigma is model.position_sigma
