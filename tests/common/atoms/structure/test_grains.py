import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.cluster import Decahedron
from scipy.spatial.transform import Rotation

from common.atoms.analysis import analyse
from common.atoms.boundaries import find_boundaries, find_planes
from common.atoms.crystals import CRYSTALS
from common.atoms.grains import find_grains
from common.atoms.lattice import fit_lattice
from common.atoms.local_structure import local_structure
from common.atoms.orientations import misorientation
from common.data import InputError


def grains_of(atoms):
    structure = local_structure(atoms)
    return structure, find_grains(atoms, structure)


@pytest.mark.parametrize(("angle", "noise", "within"), [(14, 0.0, 0.3), (7, 0.0, 0.3), (14, 0.3, 1.0), (7, 0.3, 1.0)])
def test_misorientation_of_a_twisted_cap(make_specimen, angle, noise, within):
    specimen = make_specimen(12.0, kind="twist", angle=angle, noise=noise, seed=2)
    _, grains = grains_of(specimen.atoms)
    (boundary,) = find_boundaries(grains)
    assert boundary.kind == "grain boundary"
    assert boundary.angle == pytest.approx(angle, abs=within)
    off = np.degrees(np.arccos(min(boundary.axis @ np.ones(3) / np.sqrt(3), 1)))
    assert off < (1.0 if noise == 0 else 15.0)
    known = grains.labels >= 0
    top = np.bincount(grains.labels[specimen.upper & known]).argmax()
    assert np.mean((grains.labels == top)[known] == specimen.upper[known]) > 0.9


def test_a_glass_has_no_grains():
    """Atoms without order, packed until no more fit: lattices run through them by chance, and none is a grain."""
    rng, sites = np.random.default_rng(0), np.zeros((0, 3))
    for point in rng.uniform(-14, 14, (60000, 3)):
        if not len(sites) or (np.square(sites - point).sum(1) > 2.5**2).all():
            sites = np.concatenate((sites, point[None]))
    atoms = Atoms(f"Ta{len(sites)}", positions=sites)
    structure, grains = grains_of(atoms)
    assert len(atoms) > 600
    assert grains.lattices == ()
    assert (grains.labels == -1).all()
    assert find_planes(atoms, structure, grains) == ()
    json.dumps(analyse(atoms)[1].record(), allow_nan=False)


def test_twin_is_sigma_three_with_its_plane(twinned, twinned_structure):
    structure, grains = twinned_structure
    assert len(grains.lattices) == 2
    (boundary,) = find_boundaries(grains)
    assert boundary.kind == "twin"
    assert boundary.angle == pytest.approx(60, abs=1)
    (plane,) = find_planes(twinned.atoms, structure, grains)
    assert plane.kind == "twin"
    assert abs(plane.normal @ twinned.normal) > np.cos(np.radians(2))
    assert (grains.labels >= 0).mean() > 0.99


def test_stacking_fault_is_two_lattices_of_one_orientation(make_specimen):
    specimen = make_specimen(15.0)
    slip = np.cross(specimen.normal, [1.0, 0, 0])
    frame = CRYSTALS["fcc"].steps[0] * 4.08 / 2
    structure = local_structure(specimen.atoms)
    turned = frame @ structure.rotations[structure.names == "fcc"][0].T
    flat = turned[np.abs(turned @ specimen.normal) < 0.1]
    # a third of the sum of two bonds 60 degrees apart is the vector between the hollows B and C
    pair = next((a, b) for a in flat for b in flat if abs(a @ b - 4.08**2 / 4) < 1e-6)
    slip = sum(pair) / 3
    x = specimen.positions.copy()
    x[specimen.upper] += slip
    if np.linalg.norm(x[specimen.upper][:, None] - x[~specimen.upper], axis=2).min() < 2.5:  # on top: the other way
        x[specimen.upper] -= 2 * slip
    atoms = Atoms(f"Au{len(x)}", positions=x)
    structure, grains = grains_of(atoms)
    (plane,) = find_planes(atoms, structure, grains)
    assert plane.kind == "intrinsic stacking fault"
    (boundary,) = find_boundaries(grains)
    assert (boundary.kind, round(boundary.angle, 3)) == ("stacking fault", 0)


def test_five_twins_of_a_decahedron():
    atoms = Decahedron("Au", 5, 4, 0)
    _, grains = grains_of(atoms)
    assert len(grains.lattices) == 5
    assert sum(b.kind == "twin" for b in find_boundaries(grains, fewest_bonds=12)) == 5


@pytest.mark.parametrize(("element", "structure", "constants"), [("Au", "fcc", [4.08]), ("Co", "hcp", [2.51, 4.07]),
                                                                 ("W", "bcc", [3.16])])  # fmt: skip
def test_lattice_is_measured_in_any_orientation(element, structure, constants):
    block = bulk(element) * (8, 8, 8)
    block.positions -= block.positions.mean(0)
    atoms = block[np.linalg.norm(block.positions, axis=1) < 9]
    turn = Rotation.from_rotvec([1, 2, -1]).as_matrix()
    atoms.positions = atoms.positions @ turn.T + np.array([3.0, -2.0, 1.0])
    atoms.rattle(0.05, seed=1)
    _, grains = grains_of(atoms)
    (lattice,) = grains.lattices
    assert lattice.structure == structure
    off = np.abs(lattice.constants - np.array(constants)) / lattice.constant_sigmas
    assert (off < 4).all()
    assert lattice.rms == pytest.approx(0.05, rel=0.1)
    np.testing.assert_allclose(grains.expected(), atoms.positions, atol=0.3)


def test_no_grains_in_a_gas():
    x = np.random.default_rng(0).uniform(0, 20, (300, 3))
    _, grains = grains_of(Atoms("X300", positions=x))
    assert not grains.lattices
    assert (grains.labels == -1).all()


def test_misorientation_does_not_depend_on_the_description():
    symmetry = CRYSTALS["fcc"].rotations
    first = Rotation.random(20, random_state=1).as_matrix()
    axis = np.tile(np.array([0.0, 0.0, 1.0]), (20, 1))
    second = first @ Rotation.from_rotvec(20 * axis, degrees=True).as_matrix() @ symmetry[np.arange(20)]
    angles, _ = misorientation(first, second, symmetry)
    np.testing.assert_allclose(angles, 20, atol=1e-6)


def test_a_flat_lattice_is_refused():
    sites = np.array([[0, 0, 0], [1, 1, 0], [2, 0, 0], [1, -1, 0], [2, 2, 0]])
    with pytest.raises(InputError, match="span a volume"):
        fit_lattice(sites * 2.0, sites, "fcc")
