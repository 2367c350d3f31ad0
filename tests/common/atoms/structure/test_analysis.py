import ase.io
import numpy as np
import pytest
from ase import Atoms

from common.atoms.analysis import COLUMNS, AnalysisSettings, analyse
from common.data import InputError
from common.report.structure_section import show_structure


def test_columns_survive_a_file_and_species_do_not_matter(make_specimen, tmp_path):
    specimen = make_specimen(12.0, kind="twin", noise=0.1, missing=0.02)
    atoms, findings = analyse(specimen.atoms)
    ase.io.write(tmp_path / "atoms.xyz", atoms, format="extxyz")
    again = ase.io.read(tmp_path / "atoms.xyz")
    assert set(COLUMNS) <= set(again.arrays)
    assert (again.get_array("structure") == findings.structure.names).all()
    np.testing.assert_allclose(again.get_array("strain"), findings.strain.components(), atol=1e-7)
    assert sum(findings.counts().values()) == len(atoms)
    other, _ = analyse(Atoms(f"Pt{len(atoms)}", positions=atoms.positions))
    for name in COLUMNS:
        np.testing.assert_array_equal(other.get_array(name), atoms.get_array(name))


def test_analysis_moves_with_the_particle(make_specimen):
    atoms = make_specimen(10.0, kind="twin", noise=0.1).atoms
    moved = atoms.copy()
    moved.rotate(50, (1, 1, 2))
    moved.positions += np.array([4.0, 5.0, -6.0])
    (first, _), (second, _) = analyse(atoms), analyse(moved)
    for name in ("coordination", "structure", "surface"):
        np.testing.assert_array_equal(first.get_array(name), second.get_array(name))
    for name in ("q4", "q6", "w4", "w6", "principal_strain", "bond_length"):
        np.testing.assert_allclose(first.get_array(name), second.get_array(name), atol=1e-6)


@pytest.mark.parametrize("n", [4, 5, 12])
def test_atoms_without_a_crystal_have_no_strain_and_a_report(n):
    atoms, findings = analyse(Atoms(f"X{n}", positions=np.random.default_rng(n).uniform(0, 8, (n, 3))))
    assert np.isnan(atoms.get_array("strain")).all()
    assert (atoms.get_array("grain") == 0).all()
    assert "No crystal was found" in show_structure(atoms.positions, findings)


def test_report_says_what_was_found(make_specimen):
    atoms, findings = analyse(make_specimen(12.0, kind="twin", noise=0.1).atoms)
    page = show_structure(atoms.positions, findings)
    for said in ("twin", "Misorientation".lower(), "60.0", "sites inside the particle", "<svg"):
        assert said in page


def test_too_few_atoms_and_wrong_settings_are_named():
    with pytest.raises(InputError, match="has 3 atoms, expected at least 4"):
        analyse(Atoms("X3", positions=np.eye(3)))
    with pytest.raises(InputError, match="strain kernel"):
        analyse(Atoms("X4", positions=np.eye(4)[:, :3]), AnalysisSettings(strain_kernel=-1.0))
