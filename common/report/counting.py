"""What the charts count: viewing directions, neighbours and pairs of atoms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

Array = NDArray[np.float64]


def numbers(values: Tensor | None) -> Array:
    """A tensor on any device as float64; nothing for None."""
    return np.zeros(0) if values is None else np.asarray(values.detach().cpu().double().numpy())


def count_directions(rotations: Tensor) -> tuple[Array, Array, Array]:
    """Images per cell of equal solid angle.

    The beam is +z of the view and ``view = R @ specimen``, so an image looks along the third row of R.

    Returns
    -------
    Counts (rows, columns), and the cell borders: longitude (columns + 1,) and latitude (rows + 1,), radians.
    """
    direction = numbers(rotations)[:, 2, :]
    direction = direction[np.isfinite(direction).all(1)]
    rows = int(np.clip(np.sqrt(len(direction) / 8), 4, 18))  # about four images a cell, if they are spread evenly
    longitude = np.linspace(-np.pi, np.pi, 2 * rows + 1)
    height = np.linspace(-1, 1, rows + 1)
    angle = np.arctan2(direction[:, 1], direction[:, 0])
    counts, _, _ = np.histogram2d(direction[:, 2].clip(-1, 1), angle, bins=(height, longitude))
    return counts, longitude, np.arcsin(height)


def nearest_distances(positions: Array) -> Array:
    """Distance from each atom (n, 3) to its nearest other; empty for fewer than two atoms."""
    if len(positions) < 2:
        return np.zeros(0)
    return np.asarray(cKDTree(positions).query(positions, k=2)[0][:, 1])


def count_pairs(positions: Array, limit: float, bins: int = 120) -> tuple[Array, Array]:
    """Histogram of the distances of all unordered pairs of atoms (n, 3), from 0 to ``limit``.

    Returns
    -------
    Bin borders (bins + 1,), in the unit of the positions, and counts (bins,); a distance on a border counts below it.
    """
    edges = np.linspace(0, limit, bins + 1)
    tree = cKDTree(positions)
    within = tree.count_neighbors(tree, edges).astype(np.float64)  # ordered pairs, and each atom with itself
    within[0] = len(positions)
    return edges, np.diff(within) / 2
