"""Rotations and reflections that map a list of atoms onto itself, nearly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from common.atoms.comparison import rigid_fit

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Operations:
    """Operations ``y -> matrix @ y`` about the atoms' centroid, the identity first.

    matrices : (g, 3, 3) of determinant 1 or -1. targets : (g, n) atom a comes to lie near atom ``targets[:, a]``.
    rmsd : (g,) angstrom, between the moved atoms and those that they come to lie on.
    """

    matrices: Tensor
    targets: Tensor
    rmsd: Tensor

    def __len__(self) -> int:
        return len(self.rmsd)

    def turned(self, vectors: Tensor) -> Tensor:
        """(g, n, 3) what vectors (n, 3) fixed to the atoms become at the atoms that they come to lie on."""
        rotated = torch.einsum("gij,nj->gni", self.matrices, vectors)
        return torch.zeros_like(rotated).scatter_(1, self.targets[..., None].expand_as(rotated), rotated)

    def moved(self, numbers: Tensor) -> Tensor:
        """(g, n) numbers (n,) of the atoms at the atoms that they come to lie on."""
        each = numbers.expand(len(self), -1)
        return torch.zeros_like(each).scatter_(1, self.targets, each)

    def turned_back(self, vectors: Tensor) -> Tensor:
        """Adjoint of `turned`, summed over the operations: (n, 3) from (g, n, 3)."""
        picked = torch.gather(vectors, 1, self.targets[..., None].expand_as(vectors))
        return torch.einsum("gij,gni->nj", self.matrices, picked)

    def moved_back(self, numbers: Tensor) -> Tensor:
        """Adjoint of `moved`, summed over the operations: (n,) from (g, n)."""
        return torch.gather(numbers, 1, self.targets).sum(0)


def pseudo_symmetries(positions: Tensor, *, tolerance: float = 0.4) -> Operations:
    """All rotations and rotoreflections that bring every atom to another (or the same) one.

    Parameters
    ----------
    positions : (n, 3) angstrom.
    tolerance : angstrom, > 0; no atom may come to lie farther from one.

    Returns
    -------
    The operations, each found once; the identity alone for a particle without symmetry.

    Notes
    -----
    Two atoms and the centroid fix an operation of either hand: the outermost atom and the one that spans the widest
    triangle with it are laid on every like pair, and what maps all atoms one to one is refined by least squares.
    """
    points = positions.detach().cpu().double().numpy()
    centred = points - points.mean(0)
    found: dict[tuple[int, ...], tuple[Floats, float]] = {}
    n = len(centred)
    own = tuple(range(n))
    found[own] = (np.eye(3), 0.0)
    tree = cKDTree(centred)
    for matrix in _candidates(centred, tolerance) if n > 3 else ():
        for _ in range(2):
            target = tree.query(centred @ matrix.T)[1]
            if len(np.unique(target)) < n:
                break
            matrix, _ = rigid_fit(centred, centred[target], float(np.linalg.det(matrix)))
        off = np.linalg.norm(centred @ matrix.T - centred[target], axis=1)
        key = tuple(int(t) for t in target)
        if len(set(key)) == n and off.max() < tolerance and key not in found:
            found[key] = (matrix, float(np.sqrt(np.mean(off**2))))
    matrices = np.stack([matrix for matrix, _ in found.values()])
    rmsd = np.array([one for _, one in found.values()])
    return Operations(
        torch.as_tensor(matrices).to(positions),
        torch.as_tensor(np.array(list(found))).to(positions.device),
        torch.as_tensor(rmsd).to(positions),
    )


def _candidates(centred: Floats, tolerance: float) -> list[Floats]:
    """Operations that lay two atoms of a wide triangle with the centroid on two others as far apart."""
    length = np.linalg.norm(centred, axis=1)
    first = int(np.argmax(length))
    second = int(np.argmax(np.linalg.norm(np.cross(centred[first], centred), axis=1)))
    if np.linalg.norm(np.cross(centred[first], centred[second])) < 1e-3:
        return []  # all atoms on one line
    between = np.linalg.norm(centred[:, None] - centred[None], axis=-1)
    like_first = np.abs(length - length[first]) < tolerance
    like_second = np.abs(length - length[second]) < tolerance
    like_pair = np.abs(between - between[first, second]) < 2 * tolerance
    source = _frame(centred[first], centred[second])
    matrices = []
    for a, b in zip(*np.nonzero(like_pair & like_first[:, None] & like_second), strict=True):
        if np.linalg.norm(np.cross(centred[a], centred[b])) < 1e-3:
            continue
        for hand in (1.0, -1.0):
            matrices.append(_frame(centred[a], centred[b]) @ np.diag([1.0, 1.0, hand]) @ source.T)
    return matrices


def _frame(u: Floats, v: Floats) -> Floats:
    """Right-handed orthonormal axes, in columns: along u, in the plane of u and v, and normal to it."""
    x = u / np.linalg.norm(u)
    z = np.cross(u, v)
    z /= np.linalg.norm(z)
    return np.stack([x, np.cross(z, x), z], axis=1)
