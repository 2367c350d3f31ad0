"""Ideal crystals: first shells of neighbours, rotations that leave them alike, and sites as integers on a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from common.atoms.geometry import Floats, Integers

FCC, HCP, BCC, ICO, OTHER = "fcc", "hcp", "bcc", "ico", "other"


@dataclass(frozen=True)
class Shell:
    """The neighbours of an atom in an ideal structure.

    points : (m, 3), mean length 1, crystal axes; steps of the crystal's first sublattice, in the same order.
    frames : (c, 3, 3) right-handed frames on ordered pairs of neighbours, one of each kind that the shell's own
        rotations cannot turn into each other; columns as `frame_of_pairs` makes them.
    reach : of the mean length, beyond which an atom is of the next shell.
    """

    points: Floats
    frames: Floats
    reach: float


@dataclass(frozen=True)
class Crystal:
    """A structure whose sites are integers on an orthogonal grid of the crystal's axes.

    grid : (3,) grid spacing by which an integer is multiplied, for a lattice constant a (and c) of 1.
    axes : (3,) which lattice constant scales each axis: 0 for a, 1 for c.
    neighbour : nearest-neighbour distance, for a = 1 and ideal c / a.
    ideal : lattice constants for a = 1.
    steps : (s, m, 3) integers from a site to its neighbours, by sublattice (`sublattice`).
    rotations : (g, 3, 3) proper rotations of the lattice's point group.
    """

    name: str
    grid: Floats
    axes: Integers
    neighbour: float
    ideal: Floats
    steps: Integers
    rotations: Floats

    def sublattice(self, sites: Integers) -> Integers:
        """(n,) row of ``steps`` that belongs to each site (n, 3): layers of hcp alternate."""
        return np.asarray(sites[:, 2] % len(self.steps), dtype=np.int64)

    def spacing(self, constants: Floats) -> Floats:
        """(3,) angstrom per integer, for lattice constants (a,) or (a, c) in angstrom."""
        return np.asarray(self.grid * constants[self.axes])


def frame_of_pairs(first: Floats, second: Floats) -> Floats:
    """Frames (..., 3, 3), columns: along ``first``, towards ``second``, across both; neither may be parallel."""
    e1 = first / np.linalg.norm(first, axis=-1, keepdims=True)
    across = np.cross(e1, second)
    e3 = across / np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), 1e-12)
    return np.asarray(np.stack((e1, np.cross(e3, e1), e3), axis=-1))


def _pair_frames(points: Floats) -> Floats:
    """Frames of all ordered pairs of neighbours 45 to 80 degrees apart."""
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    angle = np.degrees(np.arccos(np.clip(unit @ unit.T, -1, 1)))
    i, j = np.nonzero((angle > 45) & (angle < 80))
    return frame_of_pairs(points[i], points[j])


def _maps_onto_itself(points: Floats, rotations: Floats) -> np.ndarray:
    turned = np.einsum("rab,kb->rka", rotations, points)
    distance = np.linalg.norm(turned[:, :, None] - points, axis=-1).min(2)
    return np.asarray((distance < 1e-6).all(1))


def _shell(points: Floats, reach: float) -> Shell:
    points = points / np.linalg.norm(points, axis=1).mean()
    frames = _pair_frames(points)
    kept: list[Floats] = []
    for frame in frames:
        if not kept or not _maps_onto_itself(points, frame @ np.stack(kept).transpose(0, 2, 1)).any():
            kept.append(frame)
    return Shell(points, np.stack(kept), reach)


def _proper_signed_permutations() -> Floats:
    matrices = [np.eye(3)[list(p)] * np.array(s) for p in permutations(range(3)) for s in product((1, -1), repeat=3)]
    return np.stack([m for m in matrices if np.linalg.det(m) > 0])


def _dihedral() -> Floats:
    turns = np.radians(60 * np.arange(6))
    about = [np.array([[math.cos(t), -math.sin(t), 0], [math.sin(t), math.cos(t), 0], [0, 0, 1]]) for t in turns]
    over = np.diag([1.0, -1.0, -1.0])
    return np.stack(about + [m @ over for m in about])


def _hcp_steps() -> Integers:
    plane = [(2, 0, 0), (-2, 0, 0), (1, 3, 0), (1, -3, 0), (-1, 3, 0), (-1, -3, 0)]
    between = [(0, 2, z) for z in (1, -1)] + [(x, -1, z) for x in (1, -1) for z in (1, -1)]
    return np.array([plane + between, plane + [(x, -y, z) for x, y, z in between]])


_FACES = np.array([p for p in product((-1, 0, 1), repeat=3) if abs(np.array(p)).sum() == 2])
_CORNERS = np.array(
    list(product((-1, 1), repeat=3)) + [tuple(2 * s * e) for e in np.eye(3, dtype=int) for s in (1, -1)]
)
_HCP = _hcp_steps()
_HCP_GRID = np.array([1 / 2, math.sqrt(3) / 6, 1 / 2])
_RATIO = math.sqrt(8 / 3)
_GOLDEN = (1 + math.sqrt(5)) / 2
_ICOSAHEDRON = np.array([np.roll((0, a, b * _GOLDEN), k) for k in range(3) for a in (1, -1) for b in (1, -1)])
_CUBE = _proper_signed_permutations()

CRYSTALS = {
    FCC: Crystal(FCC, np.full(3, 0.5), np.zeros(3, dtype=np.int64), math.sqrt(1 / 2), np.ones(1), _FACES[None], _CUBE),
    BCC: Crystal(
        BCC, np.full(3, 0.5), np.zeros(3, dtype=np.int64), math.sqrt(3) / 2, np.ones(1), _CORNERS[None], _CUBE
    ),
    HCP: Crystal(HCP, _HCP_GRID, np.array([0, 0, 1]), 1.0, np.array([1.0, _RATIO]), _HCP, _dihedral()),
}
SHELLS = {
    FCC: _shell(_FACES.astype(np.float64), 1.27),
    HCP: _shell(_HCP[0] * _HCP_GRID * np.array([1, 1, _RATIO]), 1.27),
    BCC: _shell(_CORNERS.astype(np.float64), 1.31),
    ICO: _shell(_ICOSAHEDRON, 1.28),
}
