import math

import numpy as np
import pytest
from ase import Atoms
from ase.cluster import Icosahedron, Octahedron
from scipy.spatial.transform import Rotation

from common.atoms.comparison import compare, same_structure
from common.data import InputError


def packing(n, rng, nearest=2.6):
    """A compact ball of hard spheres without any symmetry."""
    radius = 0.62 * nearest * n ** (1 / 3) * 1.15
    places = np.empty((0, 3))
    while len(places) < n:
        trial = rng.uniform(-radius, radius, 3)
        free = not len(places) or np.linalg.norm(places - trial, axis=1).min() > nearest
        if np.linalg.norm(trial) < radius and free:
            places = np.vstack([places, trial])
    return places


def icosahedron_with_adatoms():
    outer = Icosahedron("Au", 4).positions[[60, 65, 70, 75, 80, 85, 90, 95, 100, 110, 120, 130, 140]]
    return np.vstack([Icosahedron("Au", 3).positions, outer])


def atoms_at(positions):
    return Atoms(f"X{len(positions)}", positions=positions)


def copied(positions, rng, *, missing=0.0, false=0.0, sigma=0.0, mirrored=False):
    """A rotated, shifted, permuted copy with lost, invented and displaced atoms; the rotation; how many are true."""
    n = len(positions)
    rotation = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    kept = positions[rng.permutation(n)[: round(n * (1 - missing))]]
    kept = kept + rng.normal(size=kept.shape) * sigma
    invented = rng.normal(size=(round(n * false), 3))
    radius = np.linalg.norm(positions, axis=1).max() * rng.random(len(invented)) ** (1 / 3)
    invented *= (radius / np.linalg.norm(invented, axis=1))[:, None]
    copy = rng.permutation(np.vstack([kept, invented]))
    return (-copy if mirrored else copy) @ rotation.T + rng.normal(size=3) * 5, rotation, len(kept)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_moved_copy_lies_on_its_original(seed, mirrored):
    rng = np.random.default_rng(seed)
    reference = packing(68, rng)
    copy, rotation, _ = copied(reference, rng, mirrored=mirrored)
    result = compare(atoms_at(copy), atoms_at(reference))
    assert (result.recall, result.precision, result.mirrored) == (1.0, 1.0, mirrored)
    assert result.rmsd_pm < 1e-6
    np.testing.assert_allclose(result.rotation, rotation.T, atol=1e-9)
    assert np.linalg.det(result.rotation) == pytest.approx(1)
    moved = result.moved(atoms_at(copy)).positions
    np.testing.assert_allclose(moved[result.pairs[:, 0]], reference[result.pairs[:, 1]], atol=1e-8)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("n", [20, 68, 150])
def test_a_fifth_missing_and_a_fifth_false(n, mirrored):
    rng = np.random.default_rng(n)
    reference = packing(n, rng)
    copy, _, true = copied(reference, rng, missing=0.2, false=0.2, sigma=0.1, mirrored=mirrored)
    result = compare(atoms_at(copy), atoms_at(reference))
    assert result.mirrored == mirrored
    assert true <= result.matched <= true + 2
    assert result.recall == result.matched / n
    assert result.precision == result.matched / len(copy)
    assert result.matched_other_hand < 0.8 * result.matched


def test_rmsd_is_that_of_the_displacements():
    rng = np.random.default_rng(5)
    reference = packing(200, rng)
    copy, _, _ = copied(reference, rng, sigma=0.05)
    # six of 600 degrees of freedom go into the rigid fit
    expected = 100 * 0.05 * math.sqrt(3 * (1 - 6 / 600))
    assert compare(atoms_at(copy), atoms_at(reference)).rmsd_pm == pytest.approx(expected, rel=0.07)


@pytest.mark.parametrize("mirrored", [False, True])
def test_pseudo_symmetric_placements_yield_to_the_true_one(mirrored):
    # The icosahedral core fits in 60 orientations and both hands; only the 13 adatoms tell them apart.
    rng = np.random.default_rng(3)
    reference = icosahedron_with_adatoms()
    for _ in range(3):
        copy, _, true = copied(reference, rng, missing=0.1, false=0.1, sigma=0.08, mirrored=mirrored)
        result = compare(atoms_at(copy), atoms_at(reference))
        assert result.matched >= true
        assert result.mirrored == mirrored
        assert result.matched > result.matched_other_hand >= 45


def test_hand_of_an_achiral_cluster_is_kept_and_said_to_be_open():
    result = compare(Icosahedron("Au", 3), Icosahedron("Au", 3))
    assert not result.mirrored
    assert result.matched_other_hand == result.matched == 55


def test_crystal_piece_with_symmetry_broken_by_displacements_alone():
    rng = np.random.default_rng(8)
    reference = Octahedron("Au", 8, 1).positions
    reference = reference + rng.normal(size=reference.shape) * 0.1
    copy, _, true = copied(reference, rng, missing=0.1, false=0.1, sigma=0.05)
    result = compare(atoms_at(copy), atoms_at(reference))
    assert result.matched >= true == round(0.9 * len(reference))
    assert result.rmsd_pm < 12


def test_mirror_can_be_forbidden():
    rng = np.random.default_rng(1)
    reference = packing(68, rng)
    result = compare(atoms_at(-reference), atoms_at(reference), allow_mirror=False)
    assert not result.mirrored
    assert result.recall < 0.8
    assert math.isnan(result.rmsd_pm_other_hand)


def test_the_answer_repeats():
    rng = np.random.default_rng(2)
    a, b = atoms_at(packing(40, rng)), atoms_at(packing(40, rng))
    first, second = compare(a, b), compare(a, b)
    np.testing.assert_array_equal(first.pairs, second.pairs)
    np.testing.assert_array_equal(first.rotation, second.rotation)


def test_same_structure_tells_copies_from_strangers():
    rng = np.random.default_rng(4)
    reference = packing(68, rng)
    copy, _, _ = copied(reference, rng, sigma=0.05, mirrored=True)
    fraction, rmsd = same_structure(atoms_at(copy), atoms_at(reference))
    assert fraction == 1.0
    assert rmsd < 12
    assert same_structure(atoms_at(packing(68, rng)), atoms_at(reference))[0] < 0.45


def test_a_part_is_not_the_whole():
    rng = np.random.default_rng(6)
    reference = packing(60, rng)
    assert same_structure(atoms_at(reference[:30]), atoms_at(reference))[0] == pytest.approx(0.5, abs=0.02)


def test_flat_clusters_can_be_compared():
    flat = np.array([[0, 0, 0], [3, 0, 0], [0, 4, 0], [5, 5, 0], [-3, 2, 0]], dtype=float)
    copy, _, _ = copied(flat, np.random.default_rng(0))
    assert compare(atoms_at(copy), atoms_at(flat)).recall == 1.0


def test_lists_that_cannot_be_laid_on_each_other_are_named():
    good = Icosahedron("Au", 2)
    with pytest.raises(InputError, match="the atom list has 2 atoms"):
        compare(good[:2], good)
    with pytest.raises(InputError, match="the reference has 0 atoms"):
        compare(good, Atoms())
    with pytest.raises(InputError, match="on one line"):
        compare(Atoms("X4", positions=[[0, 0, 3 * i] for i in range(4)]), good)
    with pytest.raises(InputError, match="tolerance is 0"):
        compare(good, good, tolerance=0.0)
    broken = good.copy()
    broken.positions[3, 1] = np.nan
    with pytest.raises(InputError, match="atom 4 is at"):
        compare(broken, good)
