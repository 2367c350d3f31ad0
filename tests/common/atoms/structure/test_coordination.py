import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from common.atoms.bond_order import bond_order
from common.atoms.coordination import bonded_pairs, mean_bond_lengths, pair_distribution
from common.data import InputError


def test_bonds_go_both_ways_and_have_their_length(make_specimen):
    atoms = make_specimen(9.0).atoms
    bonds = bonded_pairs(atoms)
    pairs = {(int(i), int(j)) for i, j in bonds}
    assert pairs == {(j, i) for i, j in pairs}
    np.testing.assert_allclose(mean_bond_lengths(atoms, bonds), 4.08 / np.sqrt(2))


@pytest.mark.parametrize("shape", [(1.0, 1.0, 1.0), (0.6, 1.0, 1.7)])
def test_pair_distribution_of_a_gas_is_one_whatever_its_shape(shape):
    generator = np.random.default_rng(0)
    cell = np.stack(np.meshgrid(*[np.arange(-17, 17) + 0.5] * 3), -1).reshape(-1, 3) * 2.5
    x = cell + generator.uniform(-1.25, 1.25, cell.shape)  # one in each cell, anywhere in it
    x = x[np.linalg.norm(x / np.array(shape), axis=1) < 18]
    gas = pair_distribution(Atoms(f"X{len(x)}", positions=x), bin_width=0.5, longest=20.0)
    far = gas.values[gas.distances > 5]
    np.testing.assert_allclose(far, 1.0, atol=0.12)
    assert far.mean() == pytest.approx(1.0, abs=0.06)


def test_pair_distribution_counts_the_first_shell(make_specimen):
    atoms = make_specimen(16.0, noise=0.1).atoms
    found = pair_distribution(atoms, bin_width=0.05, longest=12.0)
    shell = found.distances < 3.4
    density = 4 / 4.08**3
    number = (4 * np.pi * found.distances**2 * found.values * density)[shell].sum() * 0.05
    assert number == pytest.approx(12, rel=0.1)
    far = found.distances > 8
    assert found.values[far].mean() == pytest.approx(1, abs=0.08)


# Steinhardt, Nelson, Ronchetti, Phys. Rev. B 28, 784 (1983); Mickel et al., J. Chem. Phys. 138, 044501 (2013), table I
@pytest.mark.parametrize(
    ("element", "q4", "q6", "w4", "w6"),
    [
        ("Au", 0.19094, 0.57452, -0.159317, -0.013161),
        ("Mg", 0.0972, 0.4848, 0.1341, -0.0124),
        ("W", 0.03637, 0.51069, 0.159317, 0.013161),
    ],
)
def test_bond_order_of_perfect_crystals(element, q4, q6, w4, w6):
    atoms = bulk(element) if element != "Mg" else bulk("Mg", "hcp", a=3.2, c=3.2 * np.sqrt(8 / 3))
    atoms = atoms * (7, 7, 7)
    atoms.rotate(40, (1, 2, 3))
    middle = int(np.linalg.norm(atoms.positions - atoms.positions.mean(0), axis=1).argmin())
    bonds = bonded_pairs(atoms)
    for averaged in (False, True):
        four, six = (bond_order(atoms, bonds, degree, averaged=averaged) for degree in (4, 6))
        if averaged and element == "Mg":  # neighbours of hcp are its mirror images
            continue
        assert four.q[middle] == pytest.approx(q4, abs=2e-4)
        assert six.q[middle] == pytest.approx(q6, abs=6e-4)
        assert four.w[middle] == pytest.approx(w4, abs=2e-4)
        assert six.w[middle] == pytest.approx(w6, abs=2e-4)


def test_an_odd_degree_is_refused():
    with pytest.raises(InputError, match="degree of the bond order is 3"):
        bond_order(bulk("Au"), np.zeros((0, 2), dtype=int), 3)
