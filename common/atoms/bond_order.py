"""Bond-orientational order of Steinhardt, averaged over neighbours as Lechner and Dellago do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from scipy.special import lpmv

from common.atoms.geometry import Floats, Integers, finite_positions
from common.data import InputError


@dataclass(frozen=True)
class BondOrder:
    """q : (n,) >= 0, rotation-invariant size of the order of degree l. w : (n,) its third-order invariant, normalised;
    0 for an atom without neighbours."""

    q: Floats
    w: Floats


def bond_order(atoms: Atoms, bonds: Integers, degree: int, *, averaged: bool = True) -> BondOrder:
    """Steinhardt parameters q_l and w_l of each atom.

    Parameters
    ----------
    atoms : n atoms.
    bonds : (m, 2) neighbouring atoms, each pair both ways (`common.atoms.coordination.bonded_pairs`).
    degree : l, even and in 2..12; 4 and 6 tell fcc, hcp and bcc apart.
    averaged : q_lm averaged over the atom and its neighbours before the invariants are taken ([2]_, eqs. 5 and 6);
        otherwise the plain ones ([1]_, eqs. 1.3 and 1.5).

    Raises
    ------
    InputError : a degree out of its range, or an atom that is not at a finite place.

    References
    ----------
    .. [1] P. J. Steinhardt, D. R. Nelson, M. Ronchetti, Phys. Rev. B 28, 784 (1983).
    .. [2] W. Lechner, C. Dellago, J. Chem. Phys. 129, 114707 (2008).
    """
    if degree not in range(2, 13, 2):
        raise InputError(f"the degree of the bond order is {degree}, expected an even number from 2 to 12")
    positions = finite_positions(atoms, "the atom list", 0)
    n = len(positions)
    vectors = positions[bonds[:, 1]] - positions[bonds[:, 0]]
    harmonics = _harmonics(vectors, degree)
    count = np.maximum(np.bincount(bonds[:, 0], minlength=n), 1)[:, None]
    moments = _sums(harmonics, bonds[:, 0], n) / count
    if averaged:
        near = _sums(moments[bonds[:, 1]], bonds[:, 0], n)
        moments = (moments + near) / (1 + np.bincount(bonds[:, 0], minlength=n))[:, None]
    power = (np.abs(moments) ** 2).sum(1)
    q = np.sqrt(4 * math.pi / (2 * degree + 1) * power)
    w = np.zeros(n)
    for m1 in range(-degree, degree + 1):
        for m2 in range(max(-degree, -degree - m1), min(degree, degree - m1) + 1):
            product = moments[:, m1 + degree] * moments[:, m2 + degree] * moments[:, degree - m1 - m2]
            w += _three_j(degree, m1, m2) * product.real
    return BondOrder(q, w / np.maximum(power, 1e-30) ** 1.5)


def _sums(values: np.ndarray, owner: Integers, n: int) -> np.ndarray:
    """(n, k) sums of complex values (m, k) by owner."""
    columns = [np.bincount(owner, c.real, n) + 1j * np.bincount(owner, c.imag, n) for c in values.T]
    return np.stack(columns, axis=1)


def _harmonics(vectors: Floats, degree: int) -> np.ndarray:
    """Spherical harmonics (m, 2 l + 1) of the vectors' directions, m from -l to l (Condon-Shortley phase)."""
    length = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
    cosine, azimuth = vectors[:, 2] / length, np.arctan2(vectors[:, 1], vectors[:, 0])
    result = np.empty((len(vectors), 2 * degree + 1), dtype=np.complex128)
    for m in range(degree + 1):
        norm = math.sqrt((2 * degree + 1) / (4 * math.pi) * math.factorial(degree - m) / math.factorial(degree + m))
        value = norm * lpmv(m, degree, cosine) * np.exp(1j * m * azimuth)
        result[:, degree + m] = value
        result[:, degree - m] = (-1) ** m * value.conj()
    return result


def _three_j(degree: int, m1: int, m2: int) -> float:
    """Wigner's 3-j symbol (l l l; m1 m2 -m1-m2), by Racah's formula."""
    f, m3 = math.factorial, -m1 - m2
    front = f(degree) ** 3 / f(3 * degree + 1)
    for m in (m1, m2, m3):
        front *= f(degree + m) * f(degree - m)
    total = 0.0
    for k in range(max(0, -m1, m2), min(degree, degree - m1, degree + m2) + 1):
        below = f(k) * f(degree - k) * f(degree - m1 - k) * f(degree + m2 - k) * f(k + m1) * f(k - m2)
        total += (-1) ** k / below
    return (-1) ** m3 * math.sqrt(front) * total
