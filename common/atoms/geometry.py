"""What a list of atoms says about itself: distances, nearest neighbours, coordination."""

from __future__ import annotations

import math

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from common.data import InputError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def finite_positions(atoms: Atoms, name: str, least: int) -> Floats:
    """Positions (n, 3), angstrom, after a check that there are at least ``least`` atoms and all are finite.

    Raises
    ------
    InputError : fewer atoms than ``least``, or an atom with a NaN or infinite coordinate.
    """
    positions = np.asarray(atoms.get_positions(), dtype=np.float64)
    if len(positions) < least:
        raise InputError(f"{name} has {len(positions)} atoms, expected at least {least}")
    wrong = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(wrong):
        raise InputError(
            f"{name}: atom {wrong[0] + 1} is at {positions[wrong[0]].tolist()}, expected finite coordinates"
        )
    return positions


def pair_distances(atoms: Atoms, *, longest: float = math.inf) -> Floats:
    """Every distance between two different atoms, each pair once, ascending.

    Parameters
    ----------
    atoms : n atoms; the cell and its periodicity are ignored (a particle stands alone).
    longest : angstrom, leave out longer distances; with a finite value memory grows with n, not n^2.

    Returns
    -------
    (m,) angstrom, m <= n (n - 1) / 2.

    Raises
    ------
    InputError : an atom is not at a finite place.
    """
    positions = finite_positions(atoms, "the atom list", 0)
    if len(positions) < 2:
        return np.empty(0)
    pairs = cKDTree(positions).query_pairs(min(longest, _span(positions)), output_type="ndarray")
    return np.sort(np.linalg.norm(positions[pairs[:, 0]] - positions[pairs[:, 1]], axis=1))


def pair_distance_histogram(atoms: Atoms, *, bin_width: float = 0.05, longest: float = 12.0) -> tuple[Floats, Integers]:
    """Number of pairs in each distance bin.

    Parameters
    ----------
    atoms : n atoms, not periodic.
    bin_width : angstrom, > 0.
    longest : angstrom, upper edge of the last bin (rounded up to whole bins).

    Returns
    -------
    edges (b + 1,) angstrom, counts (b,).

    Raises
    ------
    InputError : a width or a length that is not positive, or an atom that is not at a finite place.
    """
    if not (bin_width > 0 and longest > 0 and math.isfinite(longest)):
        raise InputError(f"bin width {bin_width} and longest distance {longest}, expected positive numbers of angstrom")
    bins = math.ceil(longest / bin_width - 1e-9)
    counts, edges = np.histogram(
        pair_distances(atoms, longest=bins * bin_width), bins=bins, range=(0, bins * bin_width)
    )
    return edges, counts.astype(np.int64)


def nearest_neighbour_distances(atoms: Atoms) -> Floats:
    """Distance of each atom to the one nearest to it.

    Returns
    -------
    (n,) angstrom, in the order of the atoms; infinite for an atom that is alone.

    Raises
    ------
    InputError : an atom is not at a finite place.
    """
    positions = finite_positions(atoms, "the atom list", 0)
    if len(positions) < 2:
        return np.full(len(positions), np.inf)
    return np.asarray(cKDTree(positions).query(positions, k=2)[0][:, 1], dtype=np.float64)


def first_shell_cutoff(atoms: Atoms) -> float:
    """Distance between the first and the second shell of neighbours: the first minimum of the pair distances.

    Notes
    -----
    The first shell is taken about the median nearest-neighbour distance d. The minimum is looked for between 1.1 d and
    1.6 d (second shell: 1.41 d in fcc, 1.15 d in bcc, 1.63 d in hcp and icosahedra) on the pair distances, each
    weighted by r^-2 and smoothed with a Gaussian of 0.06 d; the middle of the lowest stretch is returned.

    Returns
    -------
    angstrom; infinite for fewer than two atoms.

    Raises
    ------
    InputError : an atom is not at a finite place.
    """
    nearest = nearest_neighbour_distances(atoms)
    if len(nearest) < 2:
        return math.inf
    d = float(np.median(nearest))
    distances = pair_distances(atoms, longest=2.0 * d)
    grid = np.linspace(1.1 * d, 1.6 * d, 101)
    width = 0.06 * d
    density = np.exp(-((grid[:, None] - distances) ** 2) / (2 * width**2)).sum(axis=1) / grid**2
    lowest = grid[density <= density.min() + 0.02 * max(float(density.max() - density.min()), 1e-12)]
    return float(lowest.mean())


def coordination_numbers(atoms: Atoms, *, cutoff: float | None = None) -> Integers:
    """Number of neighbours of each atom.

    Parameters
    ----------
    atoms : n atoms, not periodic.
    cutoff : angstrom, neighbours are nearer than this; None: the first minimum of the pair distances
        (`first_shell_cutoff`).

    Returns
    -------
    (n,) integers, in the order of the atoms.

    Raises
    ------
    InputError : the cutoff is not positive, or an atom is not at a finite place.
    """
    if cutoff is not None and not cutoff > 0:
        raise InputError(f"the cutoff is {cutoff}, expected a positive number of angstrom")
    positions = finite_positions(atoms, "the atom list", 0)
    if len(positions) < 2:
        return np.zeros(len(positions), dtype=np.int64)
    reach = min(first_shell_cutoff(atoms) if cutoff is None else cutoff, _span(positions))
    tree = cKDTree(positions)
    return np.asarray(tree.query_ball_point(positions, reach, return_length=True), dtype=np.int64) - 1


def _span(positions: Floats) -> float:
    """A length no pair distance exceeds (cKDTree wants a finite one)."""
    return float(np.linalg.norm(np.ptp(positions, axis=0))) + 1.0
