"""A lattice fitted to atoms: integers for every atom, then rotation, constants and origin by least squares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.atoms.crystals import CRYSTALS, Crystal
from common.atoms.geometry import Floats, Integers
from common.data import InputError

Booleans = NDArray[np.bool_]

_OFFSET = 1 << 20  # integers of sites lie within +- this
_ROUNDS = 200  # more bonds than any particle is wide


@dataclass(frozen=True)
class Lattice:
    """A perfect lattice laid on atoms: ``x = origin + rotation @ (spacing * site)``.

    structure : "fcc", "bcc" or "hcp".
    rotation : (3, 3) proper, crystal axes to the frame of the atoms.
    constants : (a,) or, for hcp, (a, c), angstrom.
    constant_sigmas : their standard deviations, angstrom, from the residual.
    origin : (3,) angstrom, place of the site (0, 0, 0).
    rms : angstrom, residual along one axis: noise and displacements.
    n_atoms : that were fitted.
    """

    structure: str
    rotation: Floats
    constants: Floats
    constant_sigmas: Floats
    origin: Floats
    rms: float
    n_atoms: int

    @property
    def crystal(self) -> Crystal:
        return CRYSTALS[self.structure]

    @property
    def spacing(self) -> Floats:
        """(3,) angstrom per integer along the crystal axes."""
        return self.crystal.spacing(self.constants)

    @property
    def neighbour_distance(self) -> float:
        """Angstrom, to the nearest site (for hcp in the basal plane)."""
        return float(self.constants[0]) * self.crystal.neighbour

    def positions(self, sites: Integers) -> Floats:
        """Places (n, 3), angstrom, of integer sites (n, 3)."""
        return np.asarray(self.origin + (sites * self.spacing) @ self.rotation.T)


def fit_lattice(positions: Floats, sites: Integers, structure: str) -> Lattice:
    """Least-squares lattice through atoms of known sites.

    Parameters
    ----------
    positions : (n, 3) angstrom, n >= 4, not in one plane.
    sites : (n, 3) integers, see `Crystal`.
    structure : "fcc", "bcc" or "hcp"; the shape of its cell is kept (cubic: one constant; hcp: a and c).

    Raises
    ------
    InputError : fewer than 4 atoms, or sites in one plane.

    Notes
    -----
    Rotation by singular values [1]_ and constants by linear regression, in turn until they stand still.

    References
    ----------
    .. [1] S. Umeyama, IEEE Trans. Pattern Anal. Mach. Intell. 13, 376 (1991).
    """
    crystal = CRYSTALS[structure]
    ideal = sites * crystal.grid
    if len(ideal) < 4 or np.linalg.matrix_rank(ideal - ideal.mean(0), tol=1e-6) < 3:
        raise InputError(f"a lattice was to be fitted to {len(ideal)} atoms, expected at least 4 that span a volume")
    middle, centre = ideal.mean(0), positions.mean(0)
    x, y = ideal - middle, positions - centre
    n_constants = int(crystal.axes.max()) + 1
    constants, rotation = crystal.ideal.copy(), np.eye(3)
    for _ in range(50):
        rotation = _rotation(y, x * constants[crystal.axes])
        back = y @ rotation
        before = constants
        sums = [
            ((back * x)[:, crystal.axes == k].sum(), (x**2)[:, crystal.axes == k].sum()) for k in range(n_constants)
        ]
        constants = np.array([cross / square for cross, square in sums])
        if np.allclose(before, constants, rtol=1e-12, atol=0):
            break
    residual = y - (x * constants[crystal.axes]) @ rotation.T
    rms = float(np.sqrt((residual**2).sum() / max(3 * len(x) - 6 - n_constants, 1)))
    sigmas = np.array([rms / np.sqrt(square) for _, square in sums])
    origin = centre - (middle * constants[crystal.axes]) @ rotation.T
    return Lattice(structure, rotation, constants, sigmas, origin, rms, len(x))


def _rotation(seen: Floats, ideal: Floats) -> Floats:
    u, _, vt = np.linalg.svd(seen.T @ ideal)
    u[:, 2] *= np.sign(np.linalg.det(u @ vt))
    return np.asarray(u @ vt)


@dataclass(frozen=True)
class Candidates:
    """Sites that atoms would take beside neighbours which have one: the best of each atom.

    atoms : (k,) indices. sites : (k, 3). votes : (k,) neighbours that agree. offsets : (k, 3) angstrom, atom minus the
    place that these neighbours expect.
    """

    atoms: Integers
    sites: Integers
    votes: Integers
    offsets: Floats

    def __getitem__(self, chosen: Booleans | Integers) -> Candidates:
        return Candidates(self.atoms[chosen], self.sites[chosen], self.votes[chosen], self.offsets[chosen])


def candidate_sites(
    positions: Floats, bonds: Integers, crystal: Crystal, rotation: Floats, spacing: Floats, sites: Integers
) -> Candidates:
    """Where atoms stand on a lattice, judged from neighbours whose sites are known.

    Parameters
    ----------
    positions : (n, 3) angstrom.
    bonds : (m, 2) from an atom with a site to the atom that is asked about.
    rotation, spacing : (3, 3) and (3,) of the lattice, as in `Lattice`.
    sites : (n, 3), read for the first of each bond only.

    Notes
    -----
    Judged bond by bond, so that displacements that grow across a strained particle do no harm.
    """
    first, second = bonds[:, 0], bonds[:, 1]
    vectors = positions[second] - positions[first]
    steps = crystal.steps[crystal.sublattice(sites[first])]
    turned = (steps * spacing) @ rotation.T
    choice = np.linalg.norm(vectors[:, None] - turned, axis=2).argmin(1)
    row = np.arange(len(bonds))
    offset, target = vectors - turned[row, choice], sites[first] + steps[row, choice]
    keys = np.column_stack((second, site_keys(target)))
    pairs, inverse, votes = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.ravel()
    mean = np.column_stack([np.bincount(inverse, offset[:, k], len(pairs)) for k in range(3)]) / votes[:, None]
    place = np.zeros((len(pairs), 3), dtype=np.int64)
    place[inverse] = target
    order = np.lexsort((np.linalg.norm(mean, axis=1), -votes, pairs[:, 0]))
    best = order[np.unique(pairs[order, 0], return_index=True)[1]]
    return Candidates(pairs[best, 0], place[best], votes[best], mean[best])


def site_keys(sites: Integers) -> Integers:
    """One integer (n,) for each site (n, 3), different for different sites."""
    shifted = np.asarray(sites, dtype=np.int64) + _OFFSET
    return np.asarray((shifted[:, 0] << 42) | (shifted[:, 1] << 21) | shifted[:, 2])


def index_atoms(
    positions: Floats,
    bonds: Integers,
    allowed: Booleans,
    seed: int,
    structure: str,
    rotation: Floats,
    constants: Floats,
) -> tuple[Booleans, Integers]:
    """Give lattice sites to atoms, outward from a seed, along bonds.

    Parameters
    ----------
    positions : (n, 3) angstrom.
    bonds : (m, 2) neighbouring atoms, each pair both ways.
    allowed : (n,) atoms that may have a site.
    seed : index of the atom at the site (0, 0, 0).
    structure, rotation, constants : of the lattice; a guess good to a few per cent and degrees is enough.

    Returns
    -------
    known (n,) and sites (n, 3); atoms that lie more than 0.35 of the neighbour distance beside a site have none, and of
    two atoms at one site the one farther from it.
    """
    crystal = CRYSTALS[structure]
    spacing = crystal.spacing(constants)
    limit = 0.35 * float(constants[0]) * crystal.neighbour
    known, sites = np.zeros(len(positions), dtype=bool), np.zeros((len(positions), 3), dtype=np.int64)
    known[seed] = True
    bonds = bonds[allowed[bonds].all(1)]
    for _ in range(_ROUNDS):
        border = bonds[known[bonds[:, 0]] & ~known[bonds[:, 1]]]
        if not len(border):
            break
        found = candidate_sites(positions, border, crystal, rotation, spacing, sites)
        found = found[np.linalg.norm(found.offsets, axis=1) < limit]
        if bool((found.votes >= 2).any()):
            found = found[found.votes >= 2]
        found = found[free_and_distinct(found, sites[known])]
        if not len(found.atoms):
            break
        known[found.atoms], sites[found.atoms] = True, found.sites
    return known, sites


def free_and_distinct(found: Candidates, taken: Integers) -> Integers:
    """Indices of the candidates whose site is not among ``taken`` (k, 3), and of rivals the one nearest to the site."""
    keys = site_keys(found.sites)
    order = np.lexsort((np.linalg.norm(found.offsets, axis=1), keys))
    winners = order[np.unique(keys[order], return_index=True)[1]]
    return np.asarray(np.sort(winners[~np.isin(keys[winners], site_keys(taken))]))
