import numpy as np
from ase import Atoms
from ase.cluster import Octahedron
from scipy.spatial import cKDTree

from common.atoms.defects import find_vacancies, surface_atoms
from common.atoms.geometry import coordination_numbers
from common.atoms.grains import find_grains
from common.atoms.local_structure import local_structure


def test_vacancies_are_found_and_none_is_false(twinned, twinned_structure):
    assert len(twinned.removed) > 20
    found = find_vacancies(twinned.atoms, twinned_structure[1])
    assert cKDTree(twinned.gone).query(found.positions)[0].max() < 0.6
    assert cKDTree(found.positions).query(twinned.removed)[0].max() < 0.6


def test_a_whole_particle_has_no_vacancy(make_specimen):
    for kind in ("single", "twin", "twist"):
        atoms = make_specimen(12.0, kind=kind, angle=14, noise=0.15, seed=1).atoms
        assert len(find_vacancies(atoms, find_grains(atoms, local_structure(atoms))).positions) == 0


def test_surface_of_an_octahedron_is_what_has_fewer_neighbours():
    atoms = Octahedron("Au", 8, 2)
    atoms.rattle(0.05, seed=0)
    np.testing.assert_array_equal(surface_atoms(atoms), coordination_numbers(atoms) < 12)


def test_a_hole_inside_is_no_surface():
    atoms = Octahedron("Au", 9, 2)
    centre = int(np.linalg.norm(atoms.positions - atoms.positions.mean(0), axis=1).argmin())
    hole = atoms.positions[centre]
    del atoms[centre]
    atoms.rattle(0.05, seed=0)
    beside = np.linalg.norm(atoms.positions - hole, axis=1) < 3.3
    assert beside.sum() == 12
    assert not surface_atoms(atoms)[beside].any()


def test_few_or_flat_atoms_are_all_surface():
    assert surface_atoms(Atoms("X3", positions=np.eye(3))).all()
    flat = np.random.default_rng(0).uniform(0, 9, (20, 3)) * np.array([1, 1, 0])
    assert surface_atoms(Atoms("X20", positions=flat)).all()
