"""What differs between two structures, atom by atom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from common.atoms.comparison import compare, rigid_fit
from common.report import StructureDifference

_SAME_PLACE = 0.5  # angstrom; atoms nearer than this after superposition are one atom, moved or not
_SIGNIFICANT = 5.0  # sigmas of the difference of two positions


@dataclass(frozen=True)
class Differences:
    """Two structures laid on each other; positions in angstrom, in the frame of the first.

    first, second : numbers of the classes, from 1. mirrored : the second was turned into its mirror image, which
    projection images cannot tell apart.
    pairs : (m, 2) atoms that are in both, from 0. distances : (m,) angstrom. significance : (m,) distances over their
    sigma along one axis, 0 where there are none.
    only_first, only_second : atoms without a partner. positions_first, positions_second : (n, 3).
    """

    first: int
    second: int
    mirrored: bool
    pairs: np.ndarray
    distances: np.ndarray
    significance: np.ndarray
    only_first: np.ndarray
    only_second: np.ndarray
    positions_first: np.ndarray
    positions_second: np.ndarray

    @property
    def moved(self) -> np.ndarray:
        """(m,) booleans: atoms that are in both, in places that differ by more than five sigmas."""
        return self.significance > _SIGNIFICANT


def differences(first: Atoms, second: Atoms, numbers: tuple[int, int] = (1, 2)) -> Differences:
    """Lay the second structure on the first, in either hand, and say what differs.

    Parameters
    ----------
    first, second : at least three atoms; array "position_sigma" (angstrom) where it is known.
    numbers : of the classes.
    """
    match = compare(second, first, tolerance=_SAME_PLACE)
    placed = match.moved(second).positions
    pairs = match.pairs[:, ::-1]
    pairs = pairs[np.argsort(pairs[:, 0])]
    a, b = first.positions[pairs[:, 0]], placed[pairs[:, 1]]
    placed, b = _settled(a, b, placed, pairs)
    distances = np.linalg.norm(a - b, axis=1)
    significance = np.zeros(len(pairs))
    if all("position_sigma" in atoms.arrays for atoms in (first, second)):
        sigmas = [atoms.arrays["position_sigma"][pairs[:, k]] for k, atoms in enumerate((first, second))]
        significance = distances / np.hypot(*sigmas)
    return Differences(
        *numbers,
        match.mirrored,
        pairs,
        distances,
        significance,
        np.setdiff1d(np.arange(len(first)), pairs[:, 0]),
        np.setdiff1d(np.arange(len(second)), pairs[:, 1]),
        first.positions,
        placed,
    )


def _settled(a: np.ndarray, b: np.ndarray, placed: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The superposition by the atoms that stay, so that those which move do not drag the others along."""
    for _ in range(5):
        distance = np.linalg.norm(a - b, axis=1)
        stay = distance <= max(2.5 * float(np.median(distance)), 1e-9)
        if stay.sum() < 4:
            break
        rotation, translation = rigid_fit(b[stay], a[stay], 1.0)
        placed = placed @ rotation.T + translation
        b = placed[pairs[:, 1]]
    return placed, b


def describe(difference: Differences) -> str:
    """The difference in one sentence."""
    hand = " (mirror image)" if difference.mirrored else ""
    one, two = len(difference.only_first), len(difference.only_second)
    return (
        f"Class {difference.second}{hand} against class {difference.first}: {len(difference.pairs)} atoms in both, "
        f"{int(difference.moved.sum())} of them moved by more than five sigmas; {one} only in class "
        f"{difference.first}, {two} only in class {difference.second}."
    )


def rows_of(difference: Differences, *, everything: bool = False) -> list[StructureDifference]:
    """The atoms that differ, those that moved furthest first; with ``everything`` those that stay too."""
    one = difference
    rows = []
    for k in np.argsort(-one.distances, kind="stable"):
        if everything or one.moved[k]:
            i, j = (int(x) for x in one.pairs[k])
            places = (_place(one.positions_first[i]), _place(one.positions_second[j]))
            what = "moved" if one.moved[k] else "same"
            rows.append(
                StructureDifference(i + 1, j + 1, float(one.distances[k]), float(one.significance[k]), *places, what)
            )
    for i in one.only_first.tolist():
        what = f"only in class {one.first}"
        rows.append(StructureDifference(i + 1, None, None, None, _place(one.positions_first[i]), None, what))
    for j in one.only_second.tolist():
        what = f"only in class {one.second}"
        rows.append(StructureDifference(None, j + 1, None, None, None, _place(one.positions_second[j]), what))
    return rows


def _place(position: np.ndarray) -> tuple[float, float, float]:
    x, y, z = position.tolist()
    return x, y, z
