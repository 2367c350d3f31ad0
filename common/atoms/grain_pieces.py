"""Pieces of one orientation: atoms of one structure, joined along bonds and parted where their orientation jumps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import ward_tree

from common.atoms.crystals import CRYSTALS, FCC, HCP
from common.atoms.geometry import Floats, Integers
from common.atoms.lattice import Booleans
from common.atoms.local_structure import LocalStructure
from common.atoms.orientations import mean_orientation, misorientation, rotation_vectors


@dataclass(frozen=True)
class GrainSettings:
    """What counts as a grain.

    smallest : atoms, >= 4; smaller pieces are no grain of their own.
    angle : degrees, in (0, 15); neighbouring regions turned by less are one grain (bent, not broken).
    misfit : of the neighbour distance; atoms with a larger misfit do not say how their grain is turned.
    """

    smallest: int = 8
    angle: float = 4.0
    misfit: float = 0.25


def oriented_pieces(structure: LocalStructure, name: str, bonds: Integers, settings: GrainSettings) -> list[Integers]:
    """Atoms of a structure whose orientations agree.

    Parameters
    ----------
    structure : n atoms. name : "fcc", "bcc" or "hcp"; of hcp only what is thicker than planar faults.
    bonds : (m, 2) neighbouring atoms, each pair both ways.

    Returns
    -------
    Indices of each piece's atoms, at least ``settings.smallest``; some atoms may be in none.
    """
    core = (structure.nearest == name) & (structure.misfit < settings.misfit)
    if name == HCP:
        core &= _thick(core, bonds, structure, settings)
    return _pieces(core, bonds, structure.rotations, name, settings)


def _thick(core: Booleans, bonds: Integers, structure: LocalStructure, settings: GrainSettings) -> Booleans:
    """hcp atoms of regions that are more than planar faults: enough atoms see hcp all around."""
    crystal = core | (structure.nearest == FCC)
    inner = bonds[core[bonds[:, 0]]]
    seen = np.bincount(inner[crystal[inner[:, 1]], 0], minlength=len(core))
    alike = np.bincount(inner[core[inner[:, 1]], 0], minlength=len(core))
    middle = core & (alike >= 9) & (alike >= 0.85 * seen)
    label = components(core, bonds[core[bonds].all(1)])
    count = np.bincount(label[middle], minlength=len(core) + 1)
    return core & (count[label] >= settings.smallest)


def _pieces(core: Booleans, bonds: Integers, rotations: Floats, name: str, settings: GrainSettings) -> list[Integers]:
    """Atoms of ``core`` parted where their orientation jumps: indices of each piece, the smallest ones left out."""
    symmetry = CRYSTALS[name].rotations
    inner = bonds[core[bonds].all(1)]
    if not len(inner):
        return []
    angles, _ = misorientation(rotations[inner[:, 0]], rotations[inner[:, 1]], symmetry)
    inner = inner[angles < 15]
    label = components(core, inner)
    pieces: list[Integers] = []
    for number in np.flatnonzero(np.bincount(label[core]) >= settings.smallest):
        rows = np.flatnonzero(label == number)
        own = inner[label[inner[:, 0]] == number]
        place = np.full(len(core), -1)
        place[rows] = np.arange(len(rows))
        mean, variants = mean_orientation(rotations[rows], rotations[rows[0]], symmetry)
        turns = _smoothed(rotation_vectors(variants, mean), place[own])
        pieces += [rows[part] for part in _parts(turns, place[own], settings)]
    return pieces


def _smoothed(turns: Floats, bonds: Integers) -> Floats:
    """Each turn (n, 3) averaged with those of its neighbours that differ by less than 8 degrees, twice."""
    for _ in range(2):
        near = bonds[np.linalg.norm(turns[bonds[:, 0]] - turns[bonds[:, 1]], axis=1) < 8]
        count = 1 + np.bincount(near[:, 0], minlength=len(turns))
        sums = [np.bincount(near[:, 0], turns[near[:, 1], k], len(turns)) for k in range(3)]
        turns = (turns + np.column_stack(sums)) / count[:, None]
    return turns


def _parts(turns: Floats, bonds: Integers, settings: GrainSettings) -> list[Integers]:
    """Ward's tree of the turns (n, 3), cut wherever two branches of enough atoms differ by more than the angle."""
    n = len(turns)
    if (np.linalg.norm(turns, axis=1) > settings.angle / 2).sum() < settings.smallest:
        return [np.arange(n)]  # no two branches can differ by the angle
    graph = coo_matrix((np.ones(len(bonds)), (bonds[:, 0], bonds[:, 1])), shape=(n, n)).tocsr()
    children = ward_tree(turns, connectivity=graph)[0]
    size, mean = np.ones(2 * n - 1), np.concatenate((turns, np.zeros((n - 1, 3))))
    split = np.zeros(2 * n - 1, dtype=bool)
    for k, (a, b) in enumerate(children, start=n):
        size[k] = size[a] + size[b]
        mean[k] = (size[a] * mean[a] + size[b] * mean[b]) / size[k]
        apart = min(size[a], size[b]) >= settings.smallest and np.linalg.norm(mean[a] - mean[b]) > settings.angle
        split[k] = apart or split[a] or split[b]
    owner = np.full(2 * n - 1, -1)
    for k in range(2 * n - 2, n - 1, -1):  # parents come after their children
        owner[children[k - n]] = -1 if split[k] and owner[k] < 0 else (owner[k] if owner[k] >= 0 else k)
    labels = owner[:n]
    sizes = {int(k): int((labels == k).sum()) for k in np.unique(labels[labels >= 0])}
    return [np.flatnonzero(labels == k) for k, count in sizes.items() if count >= settings.smallest]


def components(nodes: Booleans, bonds: Integers) -> Integers:
    """(n,) number of each node's connected component, -1 for the others; ``bonds`` join nodes only."""
    n = len(nodes)
    graph = coo_matrix((np.ones(len(bonds), dtype=bool), (bonds[:, 0], bonds[:, 1])), shape=(n, n))
    return np.where(nodes, connected_components(graph, directed=False)[1], -1)
