import numpy as np
import pytest

from common.atoms.grains import find_grains
from common.atoms.lattice import fit_lattice
from common.atoms.local_structure import local_structure
from common.atoms.strain import measure_strain
from common.data import InputError


def imposed_strain(specimen, grains, kernel=5.5):
    """(n, 3, 3) strain against each grain's fitted lattice, smoothed within the grain."""
    tensors = np.full((len(specimen.positions), 3, 3), np.nan)
    for number, lattice in enumerate(grains.lattices):
        rows = grains.members(number)
        before = fit_lattice(specimen.perfect[rows], grains.sites[rows], "fcc")
        ideal = before.rotation * before.constants[0] @ np.linalg.inv(lattice.rotation * lattice.constants[0])
        gradient = (np.eye(3) + specimen.gradients[rows]) @ ideal - np.eye(3)
        places = lattice.positions(grains.sites[rows])
        weight = np.exp(-((places[:, None] - places) ** 2).sum(2) / (2 * kernel**2))
        smooth = np.tensordot(weight, gradient, 1) / weight.sum(1)[:, None, None]
        tensors[rows] = (smooth + smooth.transpose(0, 2, 1)) / 2
    return tensors[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


@pytest.fixture(scope="module")
def measured(twinned, twinned_structure):
    grains = twinned_structure[1]
    return grains, measure_strain(twinned.atoms, grains)


def test_each_component_is_within_2e_3_of_the_imposed_field(twinned, measured):
    grains, strain = measured
    error = strain.components() - imposed_strain(twinned, grains)
    known = np.isfinite(error).all(1)
    assert known.mean() > 0.98
    assert (np.sqrt((error[known] ** 2).mean(0)) < 2e-3).all()
    assert np.abs(error[known]).max() < 1e-2


def test_sigmas_say_how_large_the_errors_are(twinned, measured):
    grains, strain = measured
    ratio = (strain.components() - imposed_strain(twinned, grains)) / strain.component_sigmas()
    assert 0.7 < np.sqrt(np.nanmean(ratio**2)) < 1.4
    np.testing.assert_allclose(strain.position_sigma, 0.15, rtol=0.05)


def test_a_twin_and_a_boundary_make_no_strain(make_specimen):
    for kind in ("twin", "twist"):
        atoms = make_specimen(14.0, kind=kind, angle=14).atoms
        grains = find_grains(atoms, local_structure(atoms))
        assert len(grains.lattices) == 2
        components = measure_strain(atoms, grains).components()
        known = np.isfinite(components).all(1)
        assert known.mean() > 0.97
        assert np.abs(components[known]).max() < 1e-6


def test_a_uniform_strain_is_exact_and_turns_with_the_particle(make_specimen):
    specimen = make_specimen(12.0)
    stretch = np.array([[0.01, 0.004, 0.0], [0.004, -0.006, 0.002], [0.0, 0.002, -0.004]])  # keeps the volume
    atoms = specimen.atoms
    atoms.positions = atoms.positions @ (np.eye(3) + stretch).T
    grains = find_grains(atoms, local_structure(atoms))
    strain = measure_strain(atoms, grains)
    tensors = strain.tensors[np.isfinite(strain.tensors).all((1, 2))]
    np.testing.assert_allclose(tensors, np.broadcast_to(stretch, tensors.shape), atol=1.5e-4)  # second order
    values, directions = np.linalg.eigh(stretch)
    known = np.isfinite(strain.principal_strains).all(1)
    np.testing.assert_allclose(strain.principal_strains[known], np.tile(values, (known.sum(), 1)), atol=1.5e-4)
    assert np.abs(np.abs((strain.principal_directions[known] * directions).sum(1)) - 1).max() < 1e-3


def test_given_sigmas_give_the_precision(twinned, measured):
    grains, strain = measured
    atoms = twinned.atoms
    atoms.set_array("position_sigma", np.full((len(atoms), 3), 2 * 0.15))
    twice = measure_strain(atoms, grains)
    np.testing.assert_array_equal(twice.tensors, strain.tensors)
    np.testing.assert_allclose(twice.component_sigmas(), 2 * strain.component_sigmas(), rtol=0.05)


def test_bad_kernels_and_sigmas_are_named(twinned, measured):
    grains, _ = measured
    with pytest.raises(InputError, match="kernel is 0"):
        measure_strain(twinned.atoms, grains, kernel=0.0)
    atoms = twinned.atoms
    atoms.set_array("position_sigma", np.ones((len(atoms), 2)))
    with pytest.raises(InputError, match="position_sigma has shape"):
        measure_strain(atoms, grains)
