"""What runs write alike holds what was found, and comes back from its files."""

import csv
import json

import numpy as np
import pytest
from ase.build import bulk
from scipy.spatial.transform import Rotation

from common.atoms.analysis import COLUMNS, FEWEST, analyse_if_enough
from common.io import read_xyz
from common.report.results import atom_sites, input_files, write_atoms


def ball(n: int):
    """The n atoms of a gold crystal nearest to a point, turned, in the order of their distance."""
    atoms = bulk("Au", a=4.08, cubic=True).repeat(8)
    atoms.positions -= atoms.positions.mean(0) + np.array([0.3, 0.5, 0.1])
    atoms = atoms[np.argsort(np.linalg.norm(atoms.positions, axis=1))[:n]]
    atoms.set_cell(None)
    atoms.pbc = False
    atoms.positions = atoms.positions @ Rotation.from_rotvec([0.3, 0.9, -0.4]).as_matrix()
    for name, value in (("peak_height", 1.0), ("b_factor", 0.8), ("position_sigma", 0.01), ("position_bound", 0.009)):
        atoms.set_array(name, np.full(n, value))
    atoms.set_array("probability_Au", np.linspace(0.9, 1.0, n))
    return atoms


def test_atoms_are_written_with_all_that_is_known_of_each(tmp_path):
    atoms, findings = analyse_if_enough(ball(201))
    assert findings is not None
    write_atoms(tmp_path, atoms, findings)
    again = read_xyz(tmp_path / "atoms.xyz")
    for name in ("position_bound", "probability_Au", *COLUMNS):
        if atoms.arrays[name].dtype.kind == "f":
            np.testing.assert_allclose(again.arrays[name], atoms.arrays[name], atol=1e-7)
        else:
            np.testing.assert_array_equal(again.arrays[name], atoms.arrays[name])
    told = json.loads((tmp_path / "structure.json").read_text())
    (grain,) = told["grains"]
    assert grain["structure"] == "fcc"
    assert grain["lattice_constants_angstrom"] == pytest.approx([4.08], abs=1e-6)
    assert told["boundaries"] == told["planes"] == told["vacancies"] == []
    assert sum(told["atoms_by_local_structure"].values()) == 201
    assert findings.metrics() == {"grains": 1, "twin_planes": 0, "stacking_faults": 0, "vacancies": 0}
    rows = list(csv.DictReader((tmp_path / "pair_distribution.csv").open()))
    highest = max(rows, key=lambda row: float(row["g"]))
    assert float(highest["distance_angstrom"]) == pytest.approx(4.08 / np.sqrt(2), abs=0.05)


def test_few_atoms_are_written_without_an_analysis(tmp_path):
    atoms, findings = analyse_if_enough(ball(FEWEST - 1))
    assert findings is None
    write_atoms(tmp_path, atoms, findings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["atoms.cif", "atoms.xyz"]


def test_sections_hold_the_columns_that_are_there(tmp_path):
    atoms = ball(20)
    del atoms.arrays["b_factor"]
    sites = atom_sites(atoms)
    assert sites is not None
    assert sites.b_factors is None
    assert sites.bounds is not None
    assert sites.bounds.tolist() == atoms.arrays["position_bound"].tolist()
    (tmp_path / "here.star").write_text("12345")
    here, gone = input_files({str(tmp_path / "here.star"): "ab", str(tmp_path / "gone.star"): "cd"})
    assert (here.size, gone.size, gone.sha256) == (5, None, "cd")
