import os
from pathlib import Path

import ase
import ase.io
import gemmi
import numpy as np
import pytest

from common.data import InputError
from common.io import read_cif, read_xyz, write_cif, write_xyz


@pytest.fixture
def atoms() -> ase.Atoms:
    rng = np.random.default_rng(0)
    atoms = ase.Atoms(["Au", "Au", "Pd", "X"], positions=rng.normal(size=(4, 3)) * 5)
    atoms.set_array("peak_height", rng.uniform(1, 2, 4))
    atoms.set_array("b_factor", rng.uniform(0.5, 2, 4))
    atoms.set_array("position_sigma", rng.uniform(0.01, 0.02, (4, 3)))
    return atoms


def test_extended_xyz_comes_back(tmp_path: Path, atoms: ase.Atoms) -> None:
    write_xyz(tmp_path / "a.xyz", atoms)
    again = read_xyz(tmp_path / "a.xyz")
    assert again.get_chemical_symbols() == ["Au", "Au", "Pd", "X"]
    np.testing.assert_allclose(again.positions, atoms.positions, atol=1e-8)
    for name in ("peak_height", "b_factor", "position_sigma"):
        np.testing.assert_allclose(again.get_array(name), atoms.get_array(name), atol=1e-8)


def test_columns_stand_in_the_order_any_reader_expects(tmp_path: Path, atoms: ase.Atoms) -> None:
    write_xyz(tmp_path / "a.xyz", atoms)
    lines = (tmp_path / "a.xyz").read_text().split("\n")
    assert lines[0] == "4"
    expected = "Properties=species:S:1:pos:R:3:peak_height:R:1:b_factor:R:1:position_sigma:R:3"
    assert expected in lines[1]
    first = lines[2].split()
    assert first[0] == "Au"
    np.testing.assert_allclose([float(v) for v in first[1:4]], atoms.positions[0], atol=1e-8)
    assert len(first) == 9


def test_only_what_is_known_is_written(tmp_path: Path) -> None:
    write_xyz(tmp_path / "a.xyz", ase.Atoms("Au2", positions=[(0, 0, 0), (2.8, 0, 0)]))
    assert "Properties=species:S:1:pos:R:3 " in (tmp_path / "a.xyz").read_text().split("\n")[1] + " "


def test_plain_xyz_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("2\nAu truth (EMT x1.04) min d=2.746 A\nAu 0 0 1.5\nAg 1 2 3\n")
    atoms = read_xyz(tmp_path / "a.xyz")
    assert atoms.get_chemical_symbols() == ["Au", "Ag"]
    assert atoms.positions.tolist() == [[0, 0, 1.5], [1, 2, 3]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2\n\nAu 0 0 0\nAu 0 nan 0\n", "atom 2 stands at .*nan.*, expected finite coordinates"),
        ("3\n\nAu 0 0 0\nAu 0 1 0\n", "announces 3 atoms and holds 2 lines"),
        ("999999999999\n\nAu 0 0 0\n", "announces 999999999999 atoms and holds 1 lines"),
        ("0\n\n", "announces 0 atoms"),
        ("-2\n\nAu 0 0 0\n", "announces -2 atoms"),
        ("Au 0 0 0\n", "does not begin with the number of atoms"),
        ("1\n\nAu 0 x 0\n", "cannot be read as XYZ"),
        ("1\n\nQq 0 0 0\n", "cannot be read as XYZ"),
        ("1\n\n\n", "atom 1 has 0 values, expected at least 4"),
        ("2\n\nAu 0 0 0\nAu 0 0\n", "atom 2 has 3 values, expected at least 4"),
        ("1\nProperties=species:S:1:pos:R:3:q:R:999999999\nAu 0 0 0 1\n", "expected at least 1000000003"),
        ("1\nProperties=species:S:1:pos:R:9999999999999\nAu 0 0 0 1\n", "has 5 values, expected at least"),
    ],
)
def test_damaged_xyz_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.xyz").write_text(text)
    with pytest.raises(InputError, match=rf"a\.xyz: .*{says}") as error:
        read_xyz(tmp_path / "a.xyz")
    assert "\n" not in str(error.value)


def test_mmcif_is_read_by_gemmi(tmp_path: Path, atoms: ase.Atoms) -> None:
    write_cif(tmp_path / "a.cif", atoms)
    structure = gemmi.read_structure(str(tmp_path / "a.cif"))
    assert structure.spacegroup_hm == "P 1"
    found = [atom.atom for atom in structure[0].all()]
    assert [atom.element.name for atom in found] == ["Au", "Au", "Pd", "X"]
    np.testing.assert_allclose([atom.pos.tolist() for atom in found], atoms.positions, atol=1e-6)
    np.testing.assert_allclose([atom.b_iso for atom in found], atoms.get_array("b_factor"), atol=1e-4)
    assert {atom.occ for atom in found} == {1.0}


def test_mmcif_comes_back(tmp_path: Path, atoms: ase.Atoms) -> None:
    atoms.set_array("occupancy", np.array([1.0, 0.5, 1.0, 0.25]))
    write_cif(tmp_path / "a.cif", atoms)
    again = read_cif(tmp_path / "a.cif")
    assert again.get_chemical_symbols() == atoms.get_chemical_symbols()
    np.testing.assert_allclose(again.positions, atoms.positions, atol=1e-6)
    for name, within in (("b_factor", 1e-4), ("occupancy", 1e-4), ("position_sigma", 1e-6)):
        np.testing.assert_allclose(again.get_array(name), atoms.get_array(name), atol=within)


def test_one_sigma_per_atom_stands_for_all_axes(tmp_path: Path, atoms: ase.Atoms) -> None:
    del atoms.arrays["position_sigma"]
    atoms.set_array("position_sigma", np.full(4, 0.02))
    write_cif(tmp_path / "a.cif", atoms)
    np.testing.assert_allclose(read_cif(tmp_path / "a.cif").get_array("position_sigma"), 0.02)
    write_xyz(tmp_path / "a.xyz", atoms)
    assert "position_sigma:R:1" in (tmp_path / "a.xyz").read_text()


def test_damaged_mmcif_is_refused(tmp_path: Path) -> None:
    for text in ("nothing", "data_x\n_a 1\n", "data_x\nloop_\n_atom_site.type_symbol\n_atom_site.Cartn_x\nAu\n"):
        (tmp_path / "a.cif").write_text(text)
        with pytest.raises(InputError, match=r"a\.cif: "):
            read_cif(tmp_path / "a.cif")


def test_atoms_that_stand_nowhere_are_not_written(tmp_path: Path) -> None:
    bad = ase.Atoms("Au2", positions=[(0, 0, 0), (np.nan, 0, 0)])
    for write in (write_xyz, write_cif):
        with pytest.raises(InputError, match="a: atom 2 stands at"):
            write(tmp_path / "a", bad)
        with pytest.raises(InputError, match="a: there are no atoms"):
            write(tmp_path / "a", ase.Atoms())
    assert os.listdir(tmp_path) == []
