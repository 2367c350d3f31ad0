"""Paths through time from measurements of position and of movement: linear Gaussian estimates, as banded systems.

The unknowns are positions x_t (x, y). Given are positions a_t with information (inverse covariance) A_t, movements
r of x_{t + lag} - x_t with their information, and a random walk whose steps have a known variance on each axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solveh_banded
from torch import Tensor

_BLOCK, _MARGIN = 40, 80  # frames; covariances come from the inverse of pieces, cut off where it has decayed


class Path(NamedTuple):
    """positions : (n, 2) of (x, y). covariance : (n, 2, 2)."""

    positions: Tensor
    covariance: Tensor


class Movement(NamedTuple):
    """Measured x_{t + lag} - x_t. displacement : (n - lag, 2). information : (n - lag, 2, 2), 0 where unknown."""

    displacement: Tensor
    information: Tensor


def solve_path(
    absolute: Tensor, information: Tensor, step_variance: float, movements: Mapping[int, Movement] | None = None
) -> Path:
    """The most likely path.

    Parameters
    ----------
    absolute : (n, 2) measured positions, any length unit.
    information : (n, 2, 2) inverse covariance of each; 0 where nothing was measured.
    step_variance : of the random walk from one frame to the next, on each axis; positive.
    movements : measured movements by lag, frames.

    Returns
    -------
    Path, float64; its covariance conditions on the path more than 80 frames away, where it no longer matters.
    """
    n = len(absolute)
    moved = dict(movements or {})
    lags = [1, *moved]
    width = 2 * max(lags) + 2
    upper = np.zeros((width, 2 * n))  # LAPACK's upper form: upper[u + i - j, j] = a[i, j]
    right = np.zeros(2 * n)
    a, info = absolute.detach().cpu().double().numpy(), information.detach().cpu().double().numpy()
    walk = np.broadcast_to(np.eye(2) / step_variance, (max(n - 1, 0), 2, 2))
    _add(upper, right, 0, info, np.einsum("nij,nj->ni", info, a))
    if n > 1:
        _add(upper, right, 1, walk, np.zeros((n - 1, 2)))
    for lag, each in moved.items():
        held = each.information.detach().cpu().double().numpy()
        measured = each.displacement.detach().cpu().double().numpy()
        _add(upper, right, lag, held, np.einsum("nij,nj->ni", held, measured))
    upper[-1] += 1e-9 / step_variance
    positions = solveh_banded(upper, right).reshape(n, 2)
    return Path(torch.from_numpy(positions), torch.from_numpy(_marginals(upper, n)))


def _add(upper: NDArray, right: NDArray, lag: int, information: NDArray, weighted: NDArray) -> None:
    """Add terms |x_{t + lag} - x_t - measured|^2 (lag 0: |x_t - measured|^2) to the normal equations, in place."""
    last, n = len(upper) - 1, len(information)
    for i in range(2):
        for j in range(2):
            term = information[:, i, j]
            ends = (0, lag) if lag else (0,)
            for end in ends:
                if i <= j:
                    upper[last + i - j, 2 * end + j : 2 * (n + end) + j : 2][:n] += term
            if lag:
                upper[last - 2 * lag + i - j, 2 * lag + j : 2 * (n + lag) + j : 2][:n] -= term
        right[2 * lag + i : 2 * (n + lag) + i : 2][:n] += weighted[:, i]
        if lag:
            right[i : 2 * n + i : 2][:n] -= weighted[:, i]


def _marginals(upper: NDArray, n: int) -> NDArray:
    """Diagonal blocks (n, 2, 2) of the inverse of a banded matrix, from overlapping pieces."""
    width, found = len(upper), np.empty((n, 2, 2))
    for first in range(0, n, _BLOCK):
        low, high = max(0, first - _MARGIN), min(n, first + _BLOCK + _MARGIN)
        size = 2 * (high - low)
        dense = np.zeros((size, size))
        for above in range(min(width, size)):
            values = upper[width - 1 - above, 2 * low + above : 2 * high]
            dense[np.arange(size - above), np.arange(above, size)] = values
        dense += np.triu(dense, 1).T
        inverse = np.linalg.inv(dense).reshape(high - low, 2, high - low, 2)
        for t in range(first, min(n, first + _BLOCK)):
            found[t] = inverse[t - low, :, t - low, :]
    return found
