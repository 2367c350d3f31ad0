"""Which of two grains an atom at their border belongs to: the one whose lattice, continued to it, it stands on."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from common.atoms.geometry import Floats, Integers
from common.atoms.lattice import Candidates, Lattice, candidate_sites, free_and_distinct

_REACH = 2.9  # neighbour distances within which a grain's displacements are averaged, 8 angstrom in gold
_SAME = 0.1  # of the neighbour distance: nearer sites of two grains are one
_CLEARLY = 0.8  # of the squared distance to its own lattice: less than this of another to change


def border_atoms_settled(
    positions: Floats, bonds: Integers, labels: Integers, sites: Integers, lattices: list[Lattice]
) -> tuple[Integers, Integers]:
    """Labels (n,) and sites (n, 3) after atoms at borders went over to a neighbouring grain that fits them better.

    Notes
    -----
    A grain's lattice is continued by the mean displacement of its atoms nearby, so that strain does not count; the
    fitted lattice knows its orientation better than the few bonds of an atom do.
    """
    labels, sites = labels.copy(), sites.copy()
    ends = labels[bonds]
    crossing = bonds[(ends[:, 0] != ends[:, 1]) & (ends >= 0).all(1)]
    border = np.unique(crossing[:, 1])
    if not len(border):
        return labels, sites
    expected = np.full((len(lattices), len(positions), 3), np.inf)
    place = np.zeros((len(lattices), len(positions), 3), dtype=np.int64)
    for number, lattice in enumerate(lattices):
        near = np.isin(bonds[:, 1], border) & (labels[bonds[:, 0]] == number)
        if not near.any():
            continue
        found = candidate_sites(positions, bonds[near], lattice.crystal, lattice.rotation, lattice.spacing, sites)
        own = labels[found.atoms] == number
        kept = own & (found.sites == sites[found.atoms]).all(1)
        others = np.flatnonzero(~own)
        others = others[free_and_distinct(found[others], sites[labels == number])]
        found = found[np.concatenate((np.flatnonzero(kept), others))]
        expected[number, found.atoms] = _expected(positions, found, labels, sites, number, lattice)
        place[number, found.atoms] = found.sites
    squared = ((expected[:, border] - positions[border]) ** 2).sum(2)
    best, row = squared.argmin(0), np.arange(len(border))
    own, other = expected[labels[border], border], expected[best, border]
    move = (squared[best, row] < _CLEARLY * squared[labels[border], row]) & (best != labels[border])
    step = np.zeros_like(own)
    step[move] = other[move] - own[move]
    apart = np.linalg.norm(step, axis=1)
    # where both have a site, as on a twin plane, noise would choose and so pull each lattice towards it
    move &= ~(apart < _SAME * lattices[0].neighbour_distance)
    atoms, best = border[move], best[move]
    labels[atoms], sites[atoms] = best, place[best, atoms]
    return labels, sites


def _expected(
    positions: Floats, found: Candidates, labels: Integers, sites: Integers, number: int, lattice: Lattice
) -> Floats:
    """Places (k, 3) of sites on a grain's lattice, displaced as its other atoms around them are; infinite for few."""
    rows = np.flatnonzero(labels == number)
    displaced = positions[rows] - lattice.positions(sites[rows])
    near = cKDTree(positions[rows]).query_ball_point(positions[found.atoms], _REACH * lattice.neighbour_distance)
    result = np.full((len(found.atoms), 3), np.inf)
    places = lattice.positions(found.sites)
    for k, (atom, around) in enumerate(zip(found.atoms.tolist(), near, strict=True)):
        others = [i for i in around if rows[i] != atom]
        if len(others) >= 4:
            result[k] = places[k] + displaced[others].mean(0)
    return result
