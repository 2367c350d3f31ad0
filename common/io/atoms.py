"""Atoms on disk: extended XYZ, and P1 mmCIF beside it (a PDB file ends at 99,999 atoms)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import ase
import ase.io
import numpy as np
from gemmi import cif
from numpy.typing import NDArray

from common.data import InputError
from common.io.files import atomic_write, require_file

PER_ATOM = ("peak_height", "b_factor", "position_sigma", "position_bound", "occupancy")
_CELL_MARGIN = 10.0


def write_xyz(path: str | os.PathLike[str], atoms: ase.Atoms, *, also: Sequence[str] = ()) -> None:
    """Write atoms as extended XYZ, whole or not at all.

    Parameters
    ----------
    atoms : positions in angstrom; the per-atom arrays "peak_height", "b_factor" (angstrom^2), "position_sigma"
        and "position_bound" (angstrom, one or three per atom) and "occupancy" are written where they are present.
    also : names of further arrays to write where they are present.

    Raises
    ------
    InputError : no atoms, positions that are not finite, or a folder that cannot be written.
    """
    _check_atoms(str(path), atoms)
    columns = ["symbols", "positions", *(name for name in (*PER_ATOM, *also) if atoms.has(name))]
    with atomic_write(path, "w") as file:
        ase.io.write(file, atoms, format="extxyz", columns=columns, write_info=False)


def read_xyz(path: str | os.PathLike[str]) -> ase.Atoms:
    """Read the first structure of a plain or extended XYZ file.

    Returns
    -------
    ase.Atoms, angstrom, with the file's per-atom arrays.

    Raises
    ------
    InputError : damaged, fewer atoms than announced, or coordinates that are not finite (with the atom).
    """
    file = require_file(path)
    _check_rows(file)
    try:
        atoms = ase.io.read(file, index=0, format="extxyz")
    except Exception as error:  # what a damaged file raises has no common class
        raise InputError(f"{file}: cannot be read as XYZ: {' '.join(str(error).split())[:160]}") from None
    if not isinstance(atoms, ase.Atoms):
        raise InputError(f"{file}: holds no structure, expected atoms")
    _check_atoms(str(file), atoms)
    return atoms


def _check_rows(file: Path) -> None:
    """Hold the rows against what the first two lines announce, before ASE allocates what they say."""
    try:
        with file.open(encoding="utf-8") as lines:
            announced, comment = int(lines.readline()), lines.readline()
            lengths = [len(line.split()) for line in lines]
    except ValueError:
        raise InputError(f"{file}: does not begin with the number of atoms, expected an XYZ file") from None
    if not 0 < announced <= len(lengths):
        raise InputError(f"{file}: announces {announced} atoms and holds {len(lengths)} lines of them; write it again")
    properties = re.search(r"""properties\s*=\s*["']?([^\s"']+)""", comment, re.IGNORECASE)
    counts = re.findall(r"(?:^|:)\w+:[SRIL]:(\d+)", properties[1]) if properties else ["4"]
    columns = sum(int(count[:18]) for count in counts)
    for k, length in enumerate(lengths[:announced]):
        if length < columns:
            raise InputError(f"{file}: atom {k + 1} has {length} values, expected at least {columns}; write it again")


def _check_atoms(where: str, atoms: ase.Atoms) -> None:
    if not len(atoms):
        raise InputError(f"{where}: there are no atoms, expected at least one")
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if len(bad):
        raise InputError(f"{where}: atom {bad[0] + 1} stands at {atoms.positions[bad[0]]}, expected finite coordinates")


def write_cif(path: str | os.PathLike[str], atoms: ase.Atoms, *, name: str = "nanospr") -> None:
    """Write atoms as mmCIF in space group P1, whole or not at all.

    Parameters
    ----------
    atoms : positions in angstrom. "b_factor" becomes B_iso_or_equiv (0 without), "occupancy" the occupancy (1 without),
        "position_sigma" the standard uncertainties Cartn_x/y/z_esd. The cell is a box 10 angstrom wider than the atoms.
    name : of the data block.

    Raises
    ------
    InputError : no atoms, positions that are not finite, or a folder that cannot be written.
    """
    _check_atoms(str(path), atoms)
    document = cif.Document()
    block = document.add_new_block(name)
    block.set_pair("_entry.id", cif.quote(name))
    extent = np.ptp(atoms.positions, axis=0) + _CELL_MARGIN
    for axis, length in zip("abc", extent, strict=True):
        block.set_pair(f"_cell.length_{axis}", f"{length:.3f}")
    for angle in ("alpha", "beta", "gamma"):
        block.set_pair(f"_cell.angle_{angle}", "90")
    block.set_pair("_symmetry.space_group_name_H-M", "'P 1'")
    columns = _cif_columns(atoms)
    loop = block.init_loop("_atom_site.", list(columns))
    loop.set_all_values([list(values) for values in columns.values()])
    with atomic_write(path, "w") as file:
        file.write(document.as_string())


def _cif_columns(atoms: ase.Atoms) -> dict[str, list[str]]:
    n, symbols = len(atoms), atoms.get_chemical_symbols()
    numbers = [str(k + 1) for k in range(n)]
    columns = {"group_PDB": ["HETATM"] * n, "id": numbers, "type_symbol": symbols}
    columns |= {"label_atom_id": symbols, "label_alt_id": ["."] * n}
    columns |= {"label_comp_id": [symbol.upper() for symbol in symbols], "label_asym_id": ["A"] * n}
    columns |= {"label_entity_id": ["1"] * n, "label_seq_id": ["."] * n}
    columns |= {"auth_seq_id": numbers, "auth_asym_id": ["A"] * n}
    for k, axis in enumerate("xyz"):
        columns[f"Cartn_{axis}"] = [f"{v:.6f}" for v in atoms.positions[:, k]]
    columns["occupancy"] = _numbers(atoms, "occupancy", 1.0)
    columns["B_iso_or_equiv"] = _numbers(atoms, "b_factor", 0.0)
    if atoms.has("position_sigma"):
        sigma: NDArray = np.asarray(atoms.get_array("position_sigma"), dtype=float)
        sigma = np.broadcast_to(sigma.reshape(n, -1), (n, 3))
        for k, axis in enumerate("xyz"):
            columns[f"Cartn_{axis}_esd"] = [f"{v:.6f}" for v in sigma[:, k]]
    return columns | {"pdbx_PDB_model_num": ["1"] * n}


def _numbers(atoms: ase.Atoms, name: str, default: float) -> list[str]:
    values = atoms.get_array(name) if atoms.has(name) else np.full(len(atoms), default)
    return [f"{float(v):.4f}" for v in values]


def read_cif(path: str | os.PathLike[str]) -> ase.Atoms:
    """Read the atoms of an mmCIF file as `write_cif` makes it; arrays "b_factor", "occupancy" and "position_sigma".

    Raises
    ------
    InputError : damaged, no atoms, or coordinates that are not finite.
    """
    file = require_file(path)
    try:
        block = cif.read_string(file.read_bytes().decode("utf-8")).sole_block()
        tags = ["type_symbol", "Cartn_x", "Cartn_y", "Cartn_z", "occupancy", "B_iso_or_equiv"]
        table = block.find("_atom_site.", tags)
        symbols = [cif.as_string(row[0]).capitalize() for row in table]
        values = np.array([[cif.as_number(row[k]) for k in range(1, 6)] for row in table], dtype=float).reshape(-1, 5)
        atoms = ase.Atoms(symbols, positions=values[:, :3])
    except (ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"{file}: cannot be read as mmCIF: {' '.join(str(error).split())[:160]}") from None
    _check_atoms(str(file), atoms)
    atoms.set_array("occupancy", values[:, 3])
    atoms.set_array("b_factor", values[:, 4])
    esd = block.find("_atom_site.", [f"Cartn_{axis}_esd" for axis in "xyz"])
    if len(esd):
        atoms.set_array("position_sigma", np.array([[cif.as_number(value) for value in row] for row in esd]))
    return atoms


def read_atoms(path: str | os.PathLike[str]) -> ase.Atoms:
    """Read a .cif as `read_cif` does, anything else as `read_xyz`; errors as theirs."""
    return (read_cif if Path(path).suffix == ".cif" else read_xyz)(path)
