import math

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.cluster import Icosahedron, Octahedron

from common.atoms.geometry import (
    coordination_numbers,
    first_shell_cutoff,
    nearest_neighbour_distances,
    pair_distance_histogram,
    pair_distances,
)
from common.data import InputError


def test_distances_of_a_right_triangle():
    atoms = Atoms("X3", positions=[[0, 0, 0], [3, 0, 0], [0, 4, 0]])
    np.testing.assert_allclose(pair_distances(atoms), [3, 4, 5])
    np.testing.assert_allclose(pair_distances(atoms, longest=4.5), [3, 4])
    np.testing.assert_allclose(nearest_neighbour_distances(atoms), [3, 3, 4])


def test_each_pair_is_counted_once():
    atoms = Octahedron("Au", 4)
    n = len(atoms)
    assert len(pair_distances(atoms)) == n * (n - 1) // 2
    edges, counts = pair_distance_histogram(atoms, bin_width=0.1, longest=30.0)
    assert counts.sum() == n * (n - 1) // 2
    assert len(edges) == len(counts) + 1
    assert edges[-1] == pytest.approx(30.0)


def test_fcc_histogram_peaks_at_the_bond_length():
    atoms = Octahedron("Au", 5)
    edges, counts = pair_distance_histogram(atoms, bin_width=0.1, longest=3.5)
    bond = bulk("Au").cell.lengths()[0]
    filled = np.flatnonzero(counts)
    assert len(filled) == 1
    assert edges[filled[0]] <= bond <= edges[filled[0] + 1]


def test_octahedral_piece_of_fcc_has_the_coordination_of_its_sites():
    # A truncated octahedron of 38 atoms: 6 inside (12 neighbours), 8 facet centres (9), 24 corners (6).
    counts = np.bincount(coordination_numbers(Octahedron("Au", 4, 1)), minlength=13)
    assert (counts[12], counts[9], counts[6]) == (6, 8, 24)


def test_icosahedron_of_55_has_13_inner_atoms_with_12_neighbours():
    atoms = Icosahedron("Au", 3)
    assert (coordination_numbers(atoms) == 12).sum() == 13


def test_coordination_survives_displaced_atoms():
    atoms = Icosahedron("Au", 3)
    true = coordination_numbers(atoms)
    atoms.rattle(0.12, seed=1)
    np.testing.assert_array_equal(coordination_numbers(atoms), true)


def test_first_minimum_lies_between_the_shells_of_fcc():
    atoms = Octahedron("Au", 6, 1)
    bond = nearest_neighbour_distances(atoms).min()
    assert 1.1 * bond < first_shell_cutoff(atoms) < math.sqrt(2) * bond


def test_given_cutoff_is_obeyed():
    atoms = Atoms("X3", positions=[[0, 0, 0], [3, 0, 0], [7, 0, 0]])
    np.testing.assert_array_equal(coordination_numbers(atoms, cutoff=3.5), [1, 1, 0])


def test_none_and_one_atom_have_no_neighbours():
    assert pair_distances(Atoms()).shape == (0,)
    assert coordination_numbers(Atoms()).shape == (0,)
    one = Atoms("X", positions=[[1, 2, 3]])
    assert nearest_neighbour_distances(one).tolist() == [math.inf]
    assert coordination_numbers(one).tolist() == [0]


def test_bad_numbers_are_named():
    with pytest.raises(InputError, match="atom 2 is at"):
        pair_distances(Atoms("X2", positions=[[0, 0, 0], [np.nan, 0, 0]]))
    with pytest.raises(InputError, match=r"cutoff is -1"):
        coordination_numbers(Octahedron("Au", 4), cutoff=-1.0)
    with pytest.raises(InputError, match="bin width"):
        pair_distance_histogram(Octahedron("Au", 4), bin_width=0.0)
