"""All that a list of atoms says about a particle's structure: columns for the atoms, findings for the report."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from common.atoms.bond_order import bond_order
from common.atoms.boundaries import Boundary, Plane, find_boundaries, find_planes
from common.atoms.coordination import PairDistribution, bonded_pairs, mean_bond_lengths, pair_distribution
from common.atoms.crystals import OTHER
from common.atoms.defects import Vacancies, find_vacancies, surface_atoms
from common.atoms.geometry import Floats, finite_positions, first_shell_cutoff
from common.atoms.grain_pieces import GrainSettings
from common.atoms.grains import Grains, find_grains
from common.atoms.local_structure import LocalStructure, local_structure
from common.atoms.strain import COMPONENTS, Strain, measure_strain
from common.data import InputError

COLUMNS = (
    "coordination", "bond_length", "q4", "q6", "w4", "w6", "structure", "structure_misfit", "grain", "surface",
    "displacement", "strain", "strain_sigma", "principal_strain", "principal_directions", "lattice_rotation",
)  # fmt: skip
"""Per-atom arrays that `analyse` adds: the names to write."""

FEWEST = 13
"""Atoms, from which there is something to analyse: one and its twelve neighbours."""


@dataclass(frozen=True)
class AnalysisSettings:
    """How the structure is measured.

    tolerance : largest misfit of a local structure, of the neighbour distance, in (0, 0.5].
    smallest_grain : atoms, >= 4.
    grain_angle : degrees, in (0, 15), from which neighbouring regions are two grains.
    strain_kernel : angstrom, > 0, standard deviation of the Gaussian.
    pair_reach : angstrom, > 0, longest distance of the pair distribution.
    """

    tolerance: float = 0.15
    smallest_grain: int = 8
    grain_angle: float = 4.0
    strain_kernel: float = 5.5
    pair_reach: float = 12.0

    def __post_init__(self) -> None:
        limits = (
            ("tolerance", self.tolerance, 0.0, 0.5),
            ("smallest_grain", self.smallest_grain, 3.0, math.inf),
            ("grain_angle", self.grain_angle, 0.0, 15.0),
            ("strain_kernel", self.strain_kernel, 0.0, math.inf),
            ("pair_reach", self.pair_reach, 0.0, math.inf),
        )
        for name, value, low, high in limits:
            if not low < value <= high or value == math.inf:
                most = "" if high == math.inf else f", at most {high:g}"
                raise InputError(f"the {name.replace('_', ' ')} is {value}, expected a number above {low:g}{most}")


@dataclass(frozen=True)
class Findings:
    """What the particle is made of.

    cutoff : angstrom, between the first and the second shell of neighbours.
    pairs : pair distribution function.
    structure, grains, strain : of all atoms.
    boundaries, planes, vacancies : see their classes.
    surface : (n,) booleans.
    """

    cutoff: float
    pairs: PairDistribution
    structure: LocalStructure
    grains: Grains
    boundaries: tuple[Boundary, ...]
    planes: tuple[Plane, ...]
    vacancies: Vacancies
    surface: np.ndarray
    strain: Strain

    def counts(self) -> dict[str, int]:
        """Number of atoms of each local structure, of those inside; "surface" for the others."""
        names, number = np.unique(self.structure.names[~self.surface], return_counts=True)
        found = dict(zip(names.tolist(), number.tolist(), strict=True))
        ordered = sorted(found, key=lambda name: (name == OTHER, -found[name]))
        return {name: found[name] for name in ordered} | {"surface": int(self.surface.sum())}

    def metrics(self) -> dict[str, float]:
        """Numbers for the record of a run, under their names."""
        kinds = [plane.kind for plane in self.planes]
        return {
            "grains": float(len(self.grains.lattices)),
            "twin_planes": float(sum("twin" in kind for kind in kinds)),
            "stacking_faults": float(sum("fault" in kind for kind in kinds)),
            "vacancies": float(len(self.vacancies.positions)),
        }

    def record(self) -> dict[str, object]:
        """All that is not a column of the atoms, as JSON holds it; atoms and grains counted from 1, unknown: null."""
        rms = zip(COMPONENTS, self.strain_rms().tolist(), strict=True)
        holes = self.vacancies
        around = zip(holes.positions.tolist(), holes.grains.tolist(), holes.neighbours.tolist(), strict=True)
        return {
            "neighbour_cutoff_angstrom": self.cutoff,
            "atoms_by_local_structure": self.counts(),
            "grains": [
                {
                    "grain": k + 1,
                    "structure": lattice.structure,
                    "atoms": len(self.grains.members(k)),
                    "lattice_constants_angstrom": _known(lattice.constants),
                    "lattice_constant_sigmas_angstrom": _known(lattice.constant_sigmas),
                    "rms_from_lattice_angstrom": float(lattice.rms),
                }
                for k, lattice in enumerate(self.grains.lattices)
            ],
            "boundaries": [
                {
                    "grains": [int(g) + 1 for g in b.grains],
                    "kind": b.kind,
                    "misorientation_degrees": float(b.angle) if math.isfinite(b.angle) else None,
                    "axis": _known(b.axis),
                    "bonds_across": int(b.bonds),
                }
                for b in self.boundaries
            ],
            "planes": [
                {
                    "kind": p.kind,
                    "atoms": [int(a) + 1 for a in p.atoms],
                    "normal": _known(p.normal),
                    "centre_angstrom": _known(p.centre),
                }
                for p in self.planes
            ],
            "vacancies": [
                {"position_angstrom": place, "grain": int(grain) + 1, "neighbours": int(count)}
                for place, grain, count in around
            ],
            "strain_rms": {name: value if math.isfinite(value) else None for name, value in rms},
        }

    def strain_rms(self) -> Floats:
        """(6,) root mean square of xx, yy, zz, yz, xz, xy over the atoms of grains; NaN without any."""
        values = self.strain.components()
        known = np.isfinite(values).all(1)
        return np.sqrt((values[known] ** 2).mean(0)) if known.any() else np.full(len(COMPONENTS), np.nan)


def _known(values: Floats) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in np.asarray(values).ravel()]


def analyse_if_enough(atoms: Atoms, settings: AnalysisSettings | None = None) -> tuple[Atoms, Findings | None]:
    """`analyse`, or the atoms as they are where they are fewer than `FEWEST`."""
    return (atoms, None) if len(atoms) < FEWEST else analyse(atoms, settings)


def analyse(atoms: Atoms, settings: AnalysisSettings | None = None) -> tuple[Atoms, Findings]:
    """Measure the structure of a particle.

    Parameters
    ----------
    atoms : n >= 4 atoms, not periodic; symbols do not matter, "position_sigma" gives the strain its precision.
    settings : see `AnalysisSettings`.

    Returns
    -------
    A copy of the atoms with the arrays `COLUMNS`: "coordination"; "bond_length" (mean, angstrom); "q4", "q6", "w4",
    "w6" (averaged over neighbours); "structure" (fcc, hcp, bcc, ico, other) and its misfit; "grain" (from 1; 0: none);
    "surface" (0 or 1); "displacement" (angstrom, 3), "strain" and "strain_sigma" (xx, yy, zz, yz, xz, xy),
    "principal_strain" (3, ascending), "principal_directions" (9: the three unit vectors one after another) and
    "lattice_rotation" (degrees about x, y, z), all against the lattice fitted to the grain, NaN outside of grains. And
    the findings. Cost O(n).

    Raises
    ------
    InputError : fewer than 4 atoms, an atom not at a finite place, or a setting out of its range.
    """
    settings = settings or AnalysisSettings()
    finite_positions(atoms, "the atom list", 4)
    cutoff = first_shell_cutoff(atoms)
    bonds = bonded_pairs(atoms, cutoff=cutoff)
    structure = local_structure(atoms, tolerance=settings.tolerance)
    grain_settings = GrainSettings(settings.smallest_grain, settings.grain_angle)
    grains = find_grains(atoms, structure, grain_settings, bonds=bonds)
    surface = surface_atoms(atoms)
    strain = measure_strain(atoms, grains, kernel=settings.strain_kernel)
    columns: dict[str, np.ndarray] = {
        "coordination": np.bincount(bonds[:, 0], minlength=len(atoms)),
        "bond_length": mean_bond_lengths(atoms, bonds),
        "structure": structure.names,
        "structure_misfit": structure.misfit,
        "grain": grains.labels + 1,
        "surface": surface.astype(np.int64),
        "displacement": strain.displacements,
        "strain": strain.components(),
        "strain_sigma": strain.component_sigmas(),
        "principal_strain": strain.principal_strains,
        "principal_directions": strain.principal_directions.transpose(0, 2, 1).reshape(-1, 9),
        "lattice_rotation": strain.rotations,
    }
    for degree in (4, 6):
        order = bond_order(atoms, bonds, degree)
        columns |= {f"q{degree}": order.q, f"w{degree}": order.w}
    measured = atoms.copy()
    for name in COLUMNS:
        measured.arrays.pop(name, None)  # of an earlier analysis, maybe of another shape
        measured.set_array(name, columns[name])
    pairs = pair_distribution(atoms, longest=settings.pair_reach)
    boundaries, planes = find_boundaries(grains), find_planes(atoms, structure, grains)
    vacancies = find_vacancies(atoms, grains)
    return measured, Findings(cutoff, pairs, structure, grains, boundaries, planes, vacancies, surface, strain)
