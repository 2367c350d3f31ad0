"""What every run writes alike: maps, atoms with all that is known of each, and these as the report shows them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import ase
import torch
from torch import Tensor

from common.atoms.analysis import COLUMNS, Findings
from common.atoms.verification import MultisliceCheck
from common.data import Volume
from common.io.atoms import write_cif, write_xyz
from common.io.files import atomic_write, write_csv
from common.io.mrc import write_volume
from common.report.data import AtomSites, FourierShellCorrelation, InputFile, Map
from common.report.structure_data import MultisliceScores
from common.resolution import FSC


def write_maps(folder: Path, maps: Mapping[str, Volume | None], fsc: FSC | None) -> None:
    """Write each map as NAME.mrc and the correlation of the halves as fsc.csv; what is None is not there.

    Raises
    ------
    InputError : the disk is full or the folder not writable.
    """
    for name, volume in maps.items():
        if volume is not None:
            write_volume(folder / f"{name}.mrc", Volume(volume.values.float().cpu(), volume.voxel_size))
    if fsc is not None:
        write_csv(folder / "fsc.csv", fsc.table())


def write_atoms(folder: Path, atoms: ase.Atoms, findings: Findings | None = None) -> None:
    """Write atoms.xyz and atoms.cif, and with findings also structure.json and pair_distribution.csv.

    atoms : what is known of each atom is in its arrays: those of the refinement, "probability_EL" of each element, and
        `common.atoms.analysis.COLUMNS`.

    Raises
    ------
    InputError : no atoms, the disk is full or the folder not writable.
    """
    species = [name for name in atoms.arrays if name.startswith("probability_")]
    write_xyz(folder / "atoms.xyz", atoms, also=(*species, *COLUMNS))
    write_cif(folder / "atoms.cif", atoms)
    if findings is not None:
        with atomic_write(folder / "structure.json", "w") as file:
            file.write(json.dumps(findings.record(), indent=2, allow_nan=False) + "\n")
        write_csv(folder / "pair_distribution.csv", findings.pairs.table())


def fsc_curve(fsc: FSC | None, resolution: float | None = None) -> FourierShellCorrelation | None:
    """The correlation of the half maps as the report shows it; resolution in angstrom, None: the first fall."""
    if fsc is None:
        return None
    shown = fsc.resolution() if resolution is None else resolution
    known = shown if math.isfinite(shown) else None
    return FourierShellCorrelation(fsc.frequencies.cpu(), {"half maps": fsc.correlation.cpu()}, known)


def shown_map(volume: Volume | None) -> Map | None:
    """A volume as the report shows it."""
    return None if volume is None else Map(volume.values.float().cpu(), volume.voxel_size)


def atom_sites(atoms: ase.Atoms | None) -> AtomSites | None:
    """Atoms as the report shows them."""
    if atoms is None:
        return None

    def column(name: str) -> Tensor | None:
        return torch.as_tensor(atoms.arrays[name]) if name in atoms.arrays else None

    return AtomSites(
        positions=torch.as_tensor(atoms.positions),
        symbols=tuple(atoms.get_chemical_symbols()),
        heights=column("peak_height"),
        b_factors=column("b_factor"),
        sigmas=column("position_sigma"),
        bounds=column("position_bound"),
    )


def input_files(inputs: Mapping[str, str]) -> tuple[InputFile, ...]:
    """The files that a run read, from the SHA-256 of each under its name; sizes of those that are still there."""
    return tuple(
        InputFile(str(name), digest, Path(name).stat().st_size if Path(name).is_file() else None)
        for name, digest in inputs.items()
    )


def multislice_scores(checked: MultisliceCheck) -> MultisliceScores:
    """The multislice check as the report shows it."""
    return MultisliceScores(
        checked.numbers.cpu() + 1, checked.model, checked.multislice, checked.between, checked.b_factor
    )


def write_multislice(path: Path, checked: MultisliceCheck) -> None:
    """Write the correlations of the multislice check as CSV, one row for each image."""
    columns = (checked.numbers.cpu() + 1, checked.model, checked.multislice, checked.between)
    rows = [
        (int(number), *(f"{value:.4f}" for value in values))
        for number, *values in zip(*(column.tolist() for column in columns), strict=True)
    ]
    write_csv(path, [("image", "measured_and_model", "measured_and_multislice", "multislice_and_model"), *rows])
