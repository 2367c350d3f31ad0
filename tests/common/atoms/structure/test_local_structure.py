import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.cluster import Icosahedron

from common.atoms.crystals import SHELLS
from common.atoms.local_structure import local_structure
from common.data import InputError


def ball(crystal: Atoms, radius: float) -> Atoms:
    block = crystal * (9, 9, 9)
    x = block.positions - block.positions.mean(0)
    return Atoms(f"X{int((np.linalg.norm(x, axis=1) < radius).sum())}", x[np.linalg.norm(x, axis=1) < radius])


@pytest.mark.parametrize(("name", "element"), [("fcc", "Au"), ("hcp", "Co"), ("bcc", "W")])
def test_atoms_inside_are_named_at_15_pm_noise(name, element):
    atoms = ball(bulk(element), 10.5)
    inner = np.linalg.norm(atoms.positions, axis=1) < 6.5
    right, total = 0, 0
    for seed in range(3):
        noisy = atoms.copy()
        noisy.rattle(0.15, seed=seed)
        right += int((local_structure(noisy).names[inner] == name).sum())
        total += int(inner.sum())
    assert right >= 0.97 * total


def test_centre_of_an_icosahedron_is_found_at_15_pm_noise():
    atoms = Icosahedron("Au", 3)
    centre = int(np.linalg.norm(atoms.positions - atoms.positions.mean(0), axis=1).argmin())
    found = 0
    for seed in range(10):
        noisy = atoms.copy()
        noisy.rattle(0.15, seed=seed)
        found += local_structure(noisy).names[centre] == "ico"
    assert found == 10


def test_an_atom_beside_a_vacancy_keeps_its_structure():
    atoms = ball(bulk("Au"), 10.5)
    centre = int(np.linalg.norm(atoms.positions, axis=1).argmin())
    hole = atoms.positions[centre]
    del atoms[centre]
    beside = np.linalg.norm(atoms.positions - hole, axis=1) < 3.2
    assert beside.sum() == 12
    assert (local_structure(atoms).names[beside] == "fcc").all()


def test_rotations_lay_the_shell_on_the_neighbours():
    atoms = ball(bulk("Au"), 8.0)
    atoms.rotate(33, (1, 2, 3))
    structure = local_structure(atoms)
    for atom in np.flatnonzero(structure.names == "fcc")[:5]:
        vectors = atoms.positions - atoms.positions[atom]
        length = np.linalg.norm(vectors, axis=1)
        seen = vectors[(length > 0.1) & (length < 3.2)]
        ideal = SHELLS["fcc"].points @ structure.rotations[atom].T * 4.08 / np.sqrt(2)
        assert np.linalg.norm(seen[:, None] - ideal, axis=2).min(1).max() < 1e-6


def test_few_atoms_have_no_structure():
    for n in (0, 1, 3, 8):
        positions = np.arange(3 * n).reshape(n, 3) * 2.5
        assert (local_structure(Atoms(f"X{n}" if n else "", positions=positions)).names == "other").all()


def test_a_tolerance_out_of_range_is_named():
    with pytest.raises(InputError, match=r"tolerance is 0\.9"):
        local_structure(bulk("Au"), tolerance=0.9)
