"""What lies between grains: their misorientation, twins of Sigma 3, and the planes of twins and stacking faults."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from common.atoms.crystals import HCP
from common.atoms.geometry import Floats, Integers, finite_positions
from common.atoms.grains import Grains, adjacent_grains
from common.atoms.local_structure import LocalStructure
from common.atoms.orientations import misorientation, nearest_variants

TWIN, FAULT, EXTRINSIC, LAMELLA, BOUNDARY = (
    "twin", "intrinsic stacking fault", "extrinsic stacking fault", "hcp lamella", "grain boundary",
)  # fmt: skip
_BRANDON = 15 / math.sqrt(3)  # degrees from the exact coincidence of Sigma 3
_MISFIT = 0.25
_IN_GRAINS = 0.5  # of the atoms beside a plane
_LEAST = 5  # atoms of a plane


@dataclass(frozen=True)
class Boundary:
    """Between two neighbouring grains.

    grains : their numbers. bonds : across it.
    angle : degrees, smallest rotation that turns one lattice into the other; NaN between different structures.
    axis : (3,) unit vector, crystal axes of the first grain, components descending in size for cubic crystals.
    kind : "twin" (Sigma 3 of a cubic crystal, within Brandon's 8.7 degrees), "stacking fault" (below 4 degrees: one
        orientation, two lattices) or "grain boundary".
    """

    grains: tuple[int, int]
    bonds: int
    angle: float
    axis: Floats
    kind: str


def find_boundaries(grains: Grains, *, fewest_bonds: int = 6) -> tuple[Boundary, ...]:
    """Boundaries between grains that share at least ``fewest_bonds`` bonds, by the fitted lattices.

    References
    ----------
    D. G. Brandon, Acta Metall. 14, 1479 (1966), for the tolerance of a coincidence.
    """
    ends = np.sort(grains.labels[grains.bonds], axis=1)
    found = []
    for a, b in adjacent_grains(grains.labels, grains.bonds):
        count = int(((ends[:, 0] == a) & (ends[:, 1] == b)).sum()) // 2
        first, second = grains.lattices[a], grains.lattices[b]
        if count < fewest_bonds:
            continue
        if first.structure != second.structure:
            found.append(Boundary((a, b), count, math.nan, np.full(3, np.nan), BOUNDARY))
            continue
        symmetry = first.crystal.rotations
        angles, axes = misorientation(first.rotation[None], second.rotation[None], symmetry)
        axis = np.sort(np.abs(axes[0]))[::-1] if first.structure != HCP else axes[0]
        kind = BOUNDARY
        if first.structure != HCP and _from_sigma_three(first.rotation, second.rotation, symmetry) < _BRANDON:
            kind = TWIN
        elif angles[0] < 4:
            kind = "stacking fault"
        found.append(Boundary((a, b), count, float(angles[0]), axis, kind))
    return tuple(found)


def _from_sigma_three(first: Floats, second: Floats, symmetry: Floats) -> float:
    """Degrees by which a misorientation differs from a half turn about some <111>."""
    axes = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]]) / math.sqrt(3)
    ideal = first @ (2 * axes[:, :, None] * axes[:, None] - np.eye(3))
    relative = ideal.transpose(0, 2, 1) @ nearest_variants(np.broadcast_to(second, (4, 3, 3)), ideal, symmetry)
    cosine = (np.trace(relative, axis1=1, axis2=2) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).min())


@dataclass(frozen=True)
class Plane:
    """A planar defect of an fcc crystal.

    kind : "twin" (one layer of hcp), "intrinsic stacking fault" (two), "extrinsic stacking fault" (two with one of fcc
        between: also the thinnest twin) or "hcp lamella" (three and more).
    atoms : (k,) indices of its hcp atoms. normal : (3,) unit vector, frame of the atoms. centre : (3,) angstrom.
    """

    kind: str
    atoms: Integers
    normal: Floats
    centre: Floats


def find_planes(atoms: Atoms, structure: LocalStructure, grains: Grains) -> tuple[Plane, ...]:
    """Twin planes and stacking faults, from layers of hcp atoms outside of hcp grains, largest first.

    Notes
    -----
    hcp atoms are joined along bonds within their basal planes; layers of at least 5 atoms count. Parallel layers that
    face each other are one fault when they are one interplanar distance apart, or two (extrinsic). What no grain lies
    beside, as in a glass, is none.
    """
    positions = finite_positions(atoms, "the atom list", 0)
    in_hcp = np.array([lattice.structure == HCP for lattice in grains.lattices] + [False])
    faulted = (structure.nearest == HCP) & (structure.misfit < _MISFIT) & ~in_hcp[grains.labels]
    axis = structure.rotations[:, :, 2]
    bonds = grains.bonds[faulted[grains.bonds].all(1)]
    vectors = positions[bonds[:, 1]] - positions[bonds[:, 0]]
    lengths = np.linalg.norm(vectors, axis=1)
    flat = np.abs((vectors * axis[bonds[:, 0]]).sum(1)) < 0.4 * lengths
    alike = np.abs((axis[bonds[:, 0]] * axis[bonds[:, 1]]).sum(1)) > math.cos(math.radians(20))
    n = len(positions)
    inside = bonds[flat & alike]
    graph = coo_matrix((np.ones(len(inside), dtype=bool), (inside[:, 0], inside[:, 1])), shape=(n, n))
    label = np.where(faulted, connected_components(graph, directed=False)[1], -1)
    numbers = np.flatnonzero(np.bincount(label[faulted], minlength=1) >= _LEAST)
    layers = [np.flatnonzero(label == k) for k in numbers]
    if not layers:
        return ()
    centres = np.stack([positions[rows].mean(0) for rows in layers])
    normals = np.stack([_mean_axis(axis[rows]) for rows in layers])
    spacing = float(np.median(lengths)) * math.sqrt(2 / 3)
    near, next_but_one = np.zeros((2, len(layers), len(layers)), dtype=bool)
    for i, rows in enumerate(layers):
        for j in range(i):
            if abs(normals[i] @ normals[j]) < math.cos(math.radians(15)):
                continue
            gap = centres[j] - centres[i]
            height = abs(gap @ normals[i]) / spacing
            offset = positions[layers[j]][:, None] - positions[rows]
            across = offset - (offset @ normals[i])[..., None] * normals[i]
            if np.linalg.norm(across, axis=-1).min() < 1.2 * spacing:  # they face each other
                near[i, j], next_but_one[i, j] = 0.5 < height < 1.5, 1.5 < height < 2.5
    stacked = connected_components(near, directed=False)[1]
    single = np.bincount(stacked)[stacked] == 1
    joined = near | (next_but_one & single[:, None] & single)
    group = connected_components(joined, directed=False)[1]
    planes = []
    for k in range(group.max() + 1):
        rows = np.flatnonzero(group == k)
        kind = TWIN if len(rows) == 1 else LAMELLA
        if len(rows) == 2:
            kind = FAULT if near[np.ix_(rows, rows)].any() else EXTRINSIC
        members = np.concatenate([layers[r] for r in rows])
        beside = grains.bonds[np.isin(grains.bonds[:, 0], members), 1]
        if (grains.labels[beside[~np.isin(beside, members)]] >= 0).mean() < _IN_GRAINS:
            continue
        planes.append(Plane(kind, members, _mean_axis(normals[rows]), positions[members].mean(0)))
    return tuple(sorted(planes, key=lambda p: -len(p.atoms)))


def _mean_axis(axes: Floats) -> Floats:
    """(3,) unit vector nearest to unit vectors (n, 3) of any sign."""
    return np.asarray(np.linalg.eigh(axes.T @ axes)[1][:, -1])
