"""Grains: atoms on one uninterrupted lattice, from orientations of single atoms to a fitted lattice each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from ase import Atoms

from common.atoms.coordination import bonded_pairs
from common.atoms.crystals import BCC, CRYSTALS, FCC, HCP
from common.atoms.geometry import Floats, Integers, finite_positions
from common.atoms.grain_borders import border_atoms_settled
from common.atoms.grain_pieces import GrainSettings, components, oriented_pieces
from common.atoms.lattice import (
    Booleans,
    Candidates,
    Lattice,
    candidate_sites,
    fit_lattice,
    free_and_distinct,
    index_atoms,
)
from common.atoms.local_structure import LocalStructure
from common.atoms.orientations import mean_orientation, misorientation, nearest_variants


@dataclass(frozen=True)
class Grains:
    """The grains of a particle, largest first.

    labels : (n,) number of each atom's grain, -1 for none.
    sites : (n, 3) integers of each atom on its grain's lattice.
    lattices : one for each grain.
    bonds : (m, 2) neighbouring atoms, each pair both ways.
    """

    labels: Integers
    sites: Integers
    lattices: tuple[Lattice, ...]
    bonds: Integers

    def members(self, grain: int) -> Integers:
        """Indices of the atoms of a grain."""
        return np.flatnonzero(self.labels == grain)

    def expected(self) -> Floats:
        """(n, 3) angstrom, each atom's place on its grain's perfect lattice; NaN outside of the grains."""
        places = np.full((len(self.labels), 3), np.nan)
        for number, lattice in enumerate(self.lattices):
            rows = self.members(number)
            places[rows] = lattice.positions(self.sites[rows])
        return places


_INNER = 11  # neighbours, from which an atom is surrounded
_FEW_INNER = 6  # atoms inside say nothing of the rest
_CLOSE = 0.1  # misfit that no glass has
# of a grain's inner atoms: up to 0.49 in a glass, from 0.59 in crystals with 0.3 angstrom of noise
_LEAST_CRYSTAL = 0.5


@dataclass(frozen=True)
class _Grain:
    members: Integers
    sites: Integers
    lattice: Lattice


def find_grains(
    atoms: Atoms, structure: LocalStructure, settings: GrainSettings | None = None, *, bonds: Integers | None = None
) -> Grains:
    """Part a particle into grains and fit a lattice to each.

    Parameters
    ----------
    atoms : n atoms, not periodic; species are ignored.
    structure : of the same atoms (`local_structure`).
    settings : see `GrainSettings`.
    bonds : (m, 2) neighbouring atoms, each pair both ways; None: `bonded_pairs`.

    Returns
    -------
    See `Grains`; no grains where there is no crystal. Twins are grains of their own, and so are the two sides of a
    stacking fault (one orientation, two lattices); an atom of a twin plane, which is on both lattices, is given to one.

    Raises
    ------
    InputError : an atom is not at a finite place.

    Notes
    -----
    Atoms of one structure are joined along bonds and parted by Ward's clustering of their orientations [1]_; pieces
    that one lattice explains are joined again; then atoms without an orientation (surface, twin plane, beside
    vacancies) join the lattice on whose sites they stand. What is left over beside an fcc or bcc grain is tried as its
    twin. A lattice bent so much that its halves differ by more than the angle is parted too.

    References
    ----------
    .. [1] J. H. Ward, J. Am. Stat. Assoc. 58, 236 (1963).
    """
    settings = settings or GrainSettings()
    positions = finite_positions(atoms, "the atom list", 0)
    n = len(positions)
    bonds = bonded_pairs(atoms) if bonds is None else bonds
    found: list[_Grain] = []
    for name in (FCC, BCC, HCP):
        for piece in oriented_pieces(structure, name, bonds, settings):
            grain = _indexed(positions, bonds, piece, structure, name, settings)
            if grain is not None:
                found.append(grain)
    found = _joined(positions, bonds, found, structure, settings)
    found.sort(key=lambda g: -len(g.members))
    labels, sites = np.full(n, -1, dtype=np.int64), np.zeros((n, 3), dtype=np.int64)
    for number, grain in enumerate(found):
        labels[grain.members], sites[grain.members] = number, grain.sites
    lattices = [g.lattice for g in found]
    for _ in range(4):
        labels, sites = _absorbed(positions, bonds, labels, sites, lattices)
        labels = _without_strays(positions, bonds, labels, sites, lattices)
        labels, sites = border_atoms_settled(positions, bonds, labels, sites, lattices)
        labels, sites, lattices = _refitted(positions, labels, sites, lattices, settings)
    labels, sites, lattices = _with_thin_twins(positions, bonds, labels, sites, lattices, settings)
    labels, sites = _absorbed(positions, bonds, labels, sites, lattices)
    labels, lattices = _crystalline(bonds, labels, lattices, structure)
    return Grains(labels, sites, tuple(lattices), bonds)


def _crystalline(
    bonds: Integers, labels: Integers, lattices: list[Lattice], structure: LocalStructure
) -> tuple[Integers, list[Lattice]]:
    """The grains most of whose inner atoms have surroundings nearest to their crystal's, or close to some crystal's: a
    lattice loose enough runs through the chance order of a glass too, but the atoms on it are not of it."""
    inner = np.bincount(bonds[:, 0], minlength=len(labels)) >= _INNER
    kept = []
    for number, lattice in enumerate(lattices):
        own = inner & (labels == number)
        alike = structure.nearest[own] == lattice.structure
        if len(alike) < _FEW_INNER or np.median(structure.misfit[own]) < _CLOSE or alike.mean() > _LEAST_CRYSTAL:
            kept.append(number)
    renamed = np.full(len(lattices) + 1, -1)
    renamed[kept] = np.arange(len(kept))
    return renamed[labels], [lattices[number] for number in kept]


def _indexed(
    positions: Floats,
    bonds: Integers,
    piece: Integers,
    structure: LocalStructure,
    name: str,
    settings: GrainSettings,
    start: Lattice | None = None,
) -> _Grain | None:
    """Sites and lattice of a piece; None where fewer than ``smallest`` atoms or one plane of them are on a lattice."""
    crystal = CRYSTALS[name]
    seed = int(piece[structure.misfit[piece].argmin()])
    allowed = np.zeros(len(positions), dtype=bool)
    allowed[piece] = True
    if start is None:
        mean, _ = mean_orientation(structure.rotations[piece], structure.rotations[seed], crystal.rotations)
        own = bonds[allowed[bonds].all(1)]
        lengths = np.linalg.norm(positions[own[:, 0]] - positions[own[:, 1]], axis=1)
        usual = float(np.linalg.norm(crystal.steps[0] * crystal.spacing(crystal.ideal), axis=1).mean())
        constants = crystal.ideal * (float(np.median(lengths)) / usual if len(lengths) else 1.0)
    else:
        mean, constants = start.rotation, start.constants
    rotation = nearest_variants(mean[None], structure.rotations[seed], crystal.rotations)[0]
    known, sites = index_atoms(positions, bonds, allowed, seed, name, rotation, constants)
    members = np.flatnonzero(known)
    if len(members) < settings.smallest or np.linalg.matrix_rank(sites[members]) < 3:
        return None
    lattice = fit_lattice(positions[members], sites[members], name)
    return _Grain(members, sites[members], lattice)


def _joined(
    positions: Floats, bonds: Integers, grains: list[_Grain], structure: LocalStructure, settings: GrainSettings
) -> list[_Grain]:
    """Neighbouring grains turned by less than the angle become one, the most alike first, if one lattice fits both."""
    grains, refused = list(grains), set[frozenset[int]]()
    while True:
        labels = np.full(len(positions), -1, dtype=np.int64)
        for number, grain in enumerate(grains):
            labels[grain.members] = number
        best: tuple[float, int, int] | None = None
        for a, b in adjacent_grains(labels, bonds):
            first, second = grains[a].lattice, grains[b].lattice
            if first.structure != second.structure or frozenset((id(grains[a]), id(grains[b]))) in refused:
                continue
            symmetry = first.crystal.rotations
            angle = float(misorientation(first.rotation[None], second.rotation[None], symmetry)[0][0])
            if angle < settings.angle and (best is None or angle < best[0]):
                best = (angle, a, b)
        if best is None:
            return grains
        pair = sorted((grains[best[1]], grains[best[2]]), key=lambda g: -len(g.members))
        members = np.concatenate([g.members for g in pair])
        name = pair[0].lattice.structure
        whole = _indexed(positions, bonds, members, structure, name, settings, start=pair[0].lattice)
        if whole is None or len(whole.members) < 0.9 * len(members):
            refused.add(frozenset(id(g) for g in pair))
        else:
            grains = [g for k, g in enumerate(grains) if k not in best[1:]] + [whole]


def _refitted(
    positions: Floats, labels: Integers, sites: Integers, lattices: list[Lattice], settings: GrainSettings
) -> tuple[Integers, Integers, list[Lattice]]:
    """Lattices fitted again to all atoms of each grain; grains that have become too small or flat are given up."""
    renumbered, fitted = np.full(len(labels), -1, dtype=np.int64), list[Lattice]()
    for number, lattice in enumerate(lattices):
        rows = np.flatnonzero(labels == number)
        if len(rows) >= settings.smallest and np.linalg.matrix_rank(sites[rows] - sites[rows[0]]) == 3:
            renumbered[rows] = len(fitted)
            fitted.append(fit_lattice(positions[rows], sites[rows], lattice.structure))
    return renumbered, sites, fitted


def adjacent_grains(labels: Integers, bonds: Integers) -> list[tuple[int, int]]:
    """Pairs of grains a < b between which there are bonds."""
    ends = np.sort(labels[bonds], axis=1)
    ends = ends[(ends[:, 0] >= 0) & (ends[:, 0] != ends[:, 1])]
    return [(int(a), int(b)) for a, b in np.unique(ends, axis=0)]


def _absorbed(
    positions: Floats, bonds: Integers, labels: Integers, sites: Integers, lattices: list[Lattice]
) -> tuple[Integers, Integers]:
    """Atoms without a grain join the neighbouring one on whose sites they stand, layer by layer."""
    labels, sites = labels.copy(), sites.copy()
    while True:
        free = labels < 0
        every: list[tuple[Candidates, Floats, Integers]] = []
        for number, lattice in enumerate(lattices):
            border = bonds[(labels[bonds[:, 0]] == number) & free[bonds[:, 1]]]
            if len(border):
                found, score = _joinable(positions, border, labels == number, sites, lattice)
                every.append((found, score, np.full(len(score), number)))
        if not every:
            return labels, sites
        atoms, place = np.concatenate([f.atoms for f, _, _ in every]), np.concatenate([f.sites for f, _, _ in every])
        score, owner = np.concatenate([s for _, s, _ in every]), np.concatenate([k for _, _, k in every])
        if not len(atoms):
            return labels, sites
        order = np.lexsort((-score, atoms))
        best = order[np.unique(atoms[order], return_index=True)[1]]
        sure = best[score[best] >= 1.0]
        best = sure if len(sure) else best
        labels[atoms[best]], sites[atoms[best]] = owner[best], place[best]


def _with_thin_twins(
    positions: Floats,
    bonds: Integers,
    labels: Integers,
    sites: Integers,
    lattices: list[Lattice],
    settings: GrainSettings,
) -> tuple[Integers, Integers, list[Lattice]]:
    """Twins too thin for an atom with all its neighbours: atoms left over that fit the mirror image of a grain."""
    labels, sites, lattices = labels.copy(), sites.copy(), list(lattices)
    free = labels < 0
    pieces = components(free, bonds[free[bonds].all(1)])
    for number in np.flatnonzero(np.bincount(pieces[free], minlength=1) >= settings.smallest):
        allowed = pieces == number
        rows = np.flatnonzero(allowed)
        beside = np.unique(labels[bonds[allowed[bonds[:, 0]] & ~free[bonds[:, 1]], 1]])
        seed = int(rows[np.bincount(bonds[allowed[bonds].all(1), 0], minlength=len(labels))[rows].argmax()])
        best: _Grain | None = None
        for parent in (lattices[k] for k in beside if lattices[k].structure != HCP):
            axes = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]]) / np.sqrt(3)
            for half_turn in 2 * axes[:, :, None] * axes[:, None] - np.eye(3):
                start = replace(parent, rotation=parent.rotation @ half_turn)
                known, own = index_atoms(
                    positions, bonds, allowed, seed, start.structure, start.rotation, start.constants
                )
                members = np.flatnonzero(known)
                if len(members) < max(settings.smallest, 0.6 * len(rows)) or np.linalg.matrix_rank(own[members]) < 3:
                    continue
                lattice = fit_lattice(positions[members], own[members], start.structure)
                if best is None or lattice.rms < best.lattice.rms:
                    best = _Grain(members, own[members], lattice)
        if best is not None and best.lattice.rms < 0.12 * best.lattice.neighbour_distance:
            labels[best.members], sites[best.members] = len(lattices), best.sites
            lattices.append(best.lattice)
    return labels, sites, lattices


def _joinable(
    positions: Floats, border: Integers, members: Booleans, sites: Integers, lattice: Lattice
) -> tuple[Candidates, Floats]:
    """Atoms across ``border`` that stand on free sites of a lattice, and how well: neighbours that say so, less for
    atoms beside their site."""
    limit = 0.3 * lattice.neighbour_distance
    found = candidate_sites(positions, border, lattice.crystal, lattice.rotation, lattice.spacing, sites)
    distance = np.linalg.norm(found.offsets, axis=1)
    found = found[distance < limit]
    found = found[free_and_distinct(found, sites[members])]
    distance = np.linalg.norm(found.offsets, axis=1)
    return found, found.votes * (1 - (distance / limit) ** 2)


def _without_strays(
    positions: Floats, bonds: Integers, labels: Integers, sites: Integers, lattices: list[Lattice]
) -> Integers:
    """Labels without the atoms that their own grain's neighbours expect elsewhere."""
    labels = labels.copy()
    for number, lattice in enumerate(lattices):
        inner = bonds[(labels[bonds] == number).all(1)]
        found = candidate_sites(positions, inner, lattice.crystal, lattice.rotation, lattice.spacing, sites)
        wrong = (found.sites != sites[found.atoms]).any(1)
        wrong |= np.linalg.norm(found.offsets, axis=1) > 0.3 * lattice.neighbour_distance
        if (labels == number).sum() - wrong.sum() >= 4:
            labels[found.atoms[wrong]] = -1
    return labels
