"""Surface atoms and vacancies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import Delaunay, QhullError, cKDTree

from common.atoms.crystals import BCC
from common.atoms.geometry import Floats, finite_positions
from common.atoms.grains import Grains
from common.atoms.lattice import Booleans, Lattice, site_keys

_PROBE = 0.85  # of the distance to the twelfth neighbour: the circle through three atoms of a square facet has 0.71
_FACES = ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2))


def surface_atoms(atoms: Atoms, *, probe: float | None = None) -> Booleans:
    """(n,) atoms that a ball rolled over the particle from outside touches.

    Parameters
    ----------
    atoms : n atoms, not periodic.
    probe : angstrom, > 0: the ball passes between three atoms whose circumcircle is larger than this; None: 0.85 of the
        distance within which inner atoms have twelve neighbours, which neither facets nor vacancies below them let in.

    Raises
    ------
    InputError : an atom is not at a finite place.

    Notes
    -----
    Tetrahedra of Delaunay's triangulation are entered from outside through wide faces (alpha shapes: H. Edelsbrunner,
    E. P. Mucke, ACM Trans. Graph. 13, 43 (1994)); every corner of an entered one, or of its closed faces, is surface.
    """
    positions = finite_positions(atoms, "the atom list", 0)
    if len(positions) < 5:
        return np.ones(len(positions), dtype=bool)
    if probe is None:
        twelfth = cKDTree(positions).query(positions, k=min(13, len(positions)))[0][:, -1]
        probe = _PROBE * float(np.quantile(twelfth, 0.1))
    try:
        mesh = Delaunay(positions)
    except QhullError:  # all in one plane
        return np.ones(len(positions), dtype=bool)
    cells, beside = mesh.simplices, mesh.neighbors
    outside, first, second = len(cells), [], []
    for k, face in enumerate(_FACES):
        wide = _circumradius(positions[cells[:, face]]) > probe
        first.append(np.flatnonzero(wide))
        second.append(np.where(beside[wide, k] < 0, outside, beside[wide, k]))
    i, j = np.concatenate(first), np.concatenate(second)
    graph = coo_matrix((np.ones(len(i), dtype=bool), (i, j)), shape=(outside + 1, outside + 1))
    component = connected_components(graph, directed=False)[1]
    entered = component[:outside] == component[outside]
    surface = np.zeros(len(positions), dtype=bool)
    surface[cells[entered]] = True
    surface[mesh.convex_hull] = True
    return surface


def _circumradius(triangles: Floats) -> Floats:
    """(n,) of triangles (n, 3, 3); infinite where the corners are in line."""
    a, b, c = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 1], triangles[:, 0] - triangles[:, 2]
    twice = np.linalg.norm(np.cross(a, b), axis=1)
    product = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) * np.linalg.norm(c, axis=1)
    return product / np.maximum(2 * twice, 1e-12)


@dataclass(frozen=True)
class Vacancies:
    """Empty sites.

    positions : (v, 3) angstrom, where an atom is missing.
    grains : (v,) whose lattice says so.
    neighbours : (v,) atoms around each.
    """

    positions: Floats
    grains: np.ndarray
    neighbours: np.ndarray


def find_vacancies(atoms: Atoms, grains: Grains) -> Vacancies:
    """Lattice sites inside the particle without an atom.

    Parameters
    ----------
    atoms : n atoms. grains : of the same atoms (`common.atoms.grains.find_grains`).

    Notes
    -----
    A site is taken where the grain's atoms around it expect it, whatever the strain. It is inside when no more than two
    of its neighbours (12; bcc 14) are missing as well, so that holes of up to three atoms are counted atom by atom;
    sites of the surface, which have at most nine neighbours on a facet, are not. It is empty when no atom of any grain
    is nearer than 0.75 of the neighbour distance.
    """
    positions = finite_positions(atoms, "the atom list", 0)
    tree = cKDTree(positions) if len(positions) else None
    places, owners, around = np.zeros((0, 3)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for number, lattice in enumerate(grains.lattices):
        empty = _expected_empty(positions, grains, number, lattice)
        if tree is None or not len(empty):
            continue
        d = lattice.neighbour_distance
        shell, least = (1.39, 12) if lattice.structure == BCC else (1.25, 10)
        near = np.asarray(tree.query_ball_point(empty, shell * d, return_length=True))
        inside = (near >= least) & (tree.query(empty)[0] > 0.75 * d)
        if len(places):  # the other side of a twin plane has the same site
            inside &= cKDTree(places).query(empty)[0] > 0.6 * d
        places = np.concatenate((places, empty[inside]))
        owners = np.concatenate((owners, np.full(int(inside.sum()), number)))
        around = np.concatenate((around, near[inside]))
    return Vacancies(places, owners, around)


def _expected_empty(positions: Floats, grains: Grains, number: int, lattice: Lattice) -> Floats:
    """Places (k, 3) of the free sites with at least five neighbours in the grain, as these expect them."""
    rows = grains.members(number)
    sites = grains.sites[rows]
    steps = lattice.crystal.steps[lattice.crystal.sublattice(sites)]
    target = (sites[:, None] + steps).reshape(-1, 3)
    expected = (positions[rows][:, None] + (steps * lattice.spacing) @ lattice.rotation.T).reshape(-1, 3)
    keys = site_keys(target)
    free = ~np.isin(keys, site_keys(sites))
    _, inverse, count = np.unique(keys[free], return_inverse=True, return_counts=True)
    mean = np.column_stack([np.bincount(inverse, expected[free, k]) for k in range(3)]) / np.maximum(count, 1)[:, None]
    return np.asarray(mean[count >= 5])
