"""Two atom lists laid on each other: rotation, translation and hand are found, missing and false atoms are allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from common.atoms.geometry import finite_positions
from common.data import InputError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_TRIANGLES = 32
_CANDIDATES_PER_TRIANGLE = 2000
_REFINED_PER_HAND = 64
_SCORED_ATOMS = 150


@dataclass(frozen=True)
class Comparison:
    """How a list of atoms lies on a reference: ``moved = rotation @ (-x if mirrored else x) + translation``.

    pairs : (m, 2) matched atoms, index in the list and in the reference.
    distances : (m,) angstrom, of the matched pairs after the best rigid fit.
    n_atoms, n_reference : lengths of the lists.
    rotation : (3, 3) proper, acts on (x, y, z) columns.
    translation : (3,) angstrom.
    mirrored : the list has the other hand.
    matched_other_hand, rmsd_pm_other_hand : the best that the other hand gives; equal numbers mean that the hand cannot
        be told (zero and NaN when the other hand was not tried).
    """

    pairs: Integers
    distances: Floats
    n_atoms: int
    n_reference: int
    rotation: Floats
    translation: Floats
    mirrored: bool
    matched_other_hand: int
    rmsd_pm_other_hand: float

    @property
    def matched(self) -> int:
        return len(self.pairs)

    @property
    def recall(self) -> float:
        """Fraction of the reference that was found."""
        return self.matched / self.n_reference

    @property
    def precision(self) -> float:
        """Fraction of the list that is in the reference."""
        return self.matched / self.n_atoms

    @property
    def rmsd_pm(self) -> float:
        """Root mean square distance (3D) of the matched pairs; NaN without pairs."""
        return 100 * math.sqrt(float(np.mean(self.distances**2))) if self.matched else math.nan

    def moved(self, atoms: Atoms) -> Atoms:
        """A copy of the atoms in the frame of the reference."""
        copy = atoms.copy()
        sign = -1.0 if self.mirrored else 1.0
        copy.set_positions(sign * atoms.get_positions() @ self.rotation.T + self.translation)
        return copy


@dataclass(frozen=True)
class _Fit:
    rotation: Floats  # (3, 3) with determinant +1, or -1 for the other hand
    translation: Floats
    pairs: Integers
    distances: Floats

    @property
    def rank(self) -> tuple[int, float]:
        return len(self.pairs), -float(np.sum(self.distances**2))


def _better(a: _Fit, b: _Fit) -> bool:
    """More atoms matched, or the same number and clearly nearer (by more than rounding)."""
    (many_a, near_a), (many_b, near_b) = a.rank, b.rank
    return many_a > many_b or (many_a == many_b and near_a > near_b + 1e-6 * many_b)


def compare(
    atoms: Atoms,
    reference: Atoms,
    *,
    tolerance: float = 0.5,
    allow_mirror: bool = True,
    generator: np.random.Generator | None = None,
) -> Comparison:
    """Lay atoms on a reference and count what agrees.

    Parameters
    ----------
    atoms : n >= 3 atoms, in any frame and order; species are ignored.
    reference : m >= 3 atoms.
    tolerance : angstrom, > 0; two atoms match when they are each other's nearest and nearer than this.
    allow_mirror : try the other hand too.
    generator : random triangles; None: a fixed sequence, so that the answer repeats.

    Returns
    -------
    The placement with most matched atoms, then with the least distances. On a tie the hand is kept.

    Raises
    ------
    InputError : fewer than three atoms, atoms in one line, not finite, or a tolerance that is not positive.

    Notes
    -----
    Wide triangles of the list are laid on the congruent ones of the reference (edges within 0.6 tolerance), in both
    hands [1]_. All placements are scored by a blurred overlap; the best distinct ones are refined by least squares [2]_
    on mutual neighbours. One triangle of three right atoms is enough, so a third of the atoms may be missing and false.
    Pseudo-symmetric placements are all refined and the best is kept.

    References
    ----------
    .. [1] Fischler and Bolles, "Random sample consensus", Communications of the ACM 24, 381 (1981).
    .. [2] Kabsch, "A solution for the best rotation to relate two sets of vectors", Acta Cryst. A32, 922 (1976).
    """
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise InputError(f"the tolerance is {tolerance}, expected a positive number of angstrom")
    p = finite_positions(atoms, "the atom list", 3)
    q = finite_positions(reference, "the reference", 3)
    generator = np.random.default_rng(0) if generator is None else generator
    p_mean, q_mean = p.mean(axis=0), q.mean(axis=0)
    p, q = p - p_mean, q - q_mean

    hands = (1.0, -1.0) if allow_mirror else (1.0,)
    rotations, translations = _placements(p, q, 0.6 * tolerance, hands, generator)
    some = p if len(p) <= _SCORED_ATOMS else p[generator.choice(len(p), _SCORED_ATOMS, replace=False)]
    scores = _overlap(some, q, rotations, translations, tolerance)
    best: dict[float, _Fit] = {}
    tree = cKDTree(q)
    for hand in hands:
        mine = np.flatnonzero(np.sign(np.linalg.det(rotations)) == hand)
        chosen = _distinct(mine[np.argsort(-scores[mine], kind="stable")], rotations, translations)
        fits = [_refined(p, q, tree, rotations[k], translations[k], tolerance) for k in chosen]
        best[hand] = max(fits, key=lambda fit: fit.rank)
    winner = -1.0 if allow_mirror and _better(best[-1.0], best[1.0]) else 1.0
    fit, other = best[winner], best.get(-winner)
    mirrored = winner < 0
    return Comparison(
        pairs=fit.pairs,
        distances=fit.distances,
        n_atoms=len(p),
        n_reference=len(q),
        rotation=fit.rotation * winner,
        translation=fit.translation + q_mean - fit.rotation @ p_mean,
        mirrored=mirrored,
        matched_other_hand=0 if other is None else len(other.pairs),
        rmsd_pm_other_hand=math.nan
        if other is None or not len(other.pairs)
        else 100 * math.sqrt(float(np.mean(other.distances**2))),
    )


def same_structure(a: Atoms, b: Atoms, *, tolerance: float = 0.5) -> tuple[float, float]:
    """Do two atom lists show one structure, up to rotation, translation and hand?

    Parameters
    ----------
    a, b : at least three atoms each.
    tolerance : angstrom, as in `compare`.

    Returns
    -------
    Matched atoms as a fraction of the longer list, in [0, 1]; and the RMSD of the matched pairs in pm.

    Raises
    ------
    InputError : as `compare`.

    Notes
    -----
    Chance level: unrelated compact lists of about 70 atoms match 0.15-0.35 within 0.5 A at 30 pm.
    """
    result = compare(a, b, tolerance=tolerance)
    return result.matched / max(result.n_atoms, result.n_reference), result.rmsd_pm


def _placements(
    p: Floats, q: Floats, slack: float, hands: tuple[float, ...], generator: np.random.Generator
) -> tuple[Floats, Floats]:
    """Every way to lay some wide triangles of p on congruent ones of q: (k, 3, 3) of either determinant, (k, 3)."""
    between = np.linalg.norm(q[:, None] - q[None], axis=-1)
    np.fill_diagonal(between, -np.inf)
    rotations, translations = [np.eye(3)[None]], [np.zeros((1, 3))]
    if -1.0 in hands:
        rotations.append(-np.eye(3)[None])
        translations.append(np.zeros((1, 3)))
    for i, j, k in _wide_triangles(p, generator):
        ij, ik, jk = np.linalg.norm([p[i] - p[j], p[i] - p[k], p[j] - p[k]], axis=1)
        a, b = np.nonzero(np.abs(between - ij) < slack)
        if len(a) > _CANDIDATES_PER_TRIANGLE:
            kept = generator.choice(len(a), _CANDIDATES_PER_TRIANGLE, replace=False)
            a, b = a[kept], b[kept]
        row, c = np.nonzero((np.abs(between[a] - ik) < slack) & (np.abs(between[b] - jk) < slack))
        if len(row) > _CANDIDATES_PER_TRIANGLE:
            kept = generator.choice(len(row), _CANDIDATES_PER_TRIANGLE, replace=False)
            row, c = row[kept], c[kept]
        corners = np.stack([q[a[row]], q[b[row]], q[c]], axis=1)
        target, source = _axes(corners), _axes(p[None, [i, j, k]])
        for hand in hands:
            rotation = (target * np.array([1.0, 1.0, hand])) @ source.transpose(0, 2, 1)
            rotations.append(rotation)
            translations.append(corners.mean(axis=1) - rotation @ p[[i, j, k]].mean(axis=0))
    return np.concatenate(rotations), np.concatenate(translations)


def _wide_triangles(p: Floats, generator: np.random.Generator) -> Integers:
    """Random triples (t, 3) of atoms: half with an edge among the longest, which few pairs share, half of any kind."""
    n = len(p)
    first, second = np.triu_indices(n, 1)
    length = np.linalg.norm(p[first] - p[second], axis=1)
    longest = np.argsort(-length, kind="stable")[: max(200, len(length) // 50)]
    draws = 40 * _TRIANGLES
    edge = np.concatenate([generator.choice(longest, draws), generator.integers(0, len(length), draws)])
    triples = np.stack([first[edge], second[edge], generator.integers(0, n, 2 * draws)], axis=1)
    u, v = p[triples[:, 1]] - p[triples[:, 0]], p[triples[:, 2]] - p[triples[:, 0]]
    area = np.linalg.norm(np.cross(u, v), axis=1)
    if not area.max() > 1e-3 * length.max() ** 2:
        raise InputError("the atom list lies on one line, expected atoms in a plane or in space")
    chosen = []
    for part in (slice(0, draws), slice(draws, 2 * draws)):
        wide = np.flatnonzero(area[part] >= max(float(np.quantile(area[part], 0.6)), 1e-3 * length.max() ** 2))
        chosen.append(triples[part][generator.permutation(wide)[: _TRIANGLES // 2]])
    return np.concatenate(chosen)


def _axes(corners: Floats) -> Floats:
    """Right-handed axes (t, 3, 3), in columns, that go with triangles (t, 3, 3)."""
    u = corners[:, 1] - corners[:, 0]
    v = corners[:, 2] - corners[:, 0]
    u = u / np.linalg.norm(u, axis=1, keepdims=True)
    v = v - np.sum(u * v, axis=1, keepdims=True) * u
    v = v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9)
    return np.stack([u, v, np.cross(u, v)], axis=-1)


def _overlap(p: Floats, q: Floats, rotations: Floats, translations: Floats, tolerance: float) -> Floats:
    """Mean over p of ``exp(-d^2 / 2 tolerance^2)``, d to the nearest of q, read from a grid."""
    reach = 2.5 * tolerance
    low = q.min(axis=0) - reach
    spacing = max(tolerance / 2, float((q.max(axis=0) - low + reach).max()) / 128)
    shape = np.ceil((q.max(axis=0) + reach - low) / spacing).astype(int) + 3
    grid = np.zeros(shape, dtype=np.float32)
    steps = np.arange(-math.ceil(reach / spacing), math.ceil(reach / spacing) + 1)
    stencil = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    voxel = np.rint((q - low) / spacing).astype(int)[:, None] + stencil + 1
    inside = ((voxel >= 0) & (voxel < shape)).all(axis=-1)
    distance2 = np.sum(((voxel - 1) * spacing + low - q[:, None]) ** 2, axis=-1)
    value = np.exp(-distance2 / (2 * tolerance**2)).astype(np.float32)
    np.maximum.at(grid, tuple(voxel[inside].T), value[inside])
    grid[[0, -1]] = grid[:, [0, -1]] = grid[:, :, [0, -1]] = 0
    scores = np.empty(len(rotations))
    flat = grid.reshape(-1)
    for start in range(0, len(rotations), 4096):
        part = slice(start, start + 4096)
        moved = p @ rotations[part].transpose(0, 2, 1) + translations[part, None]
        index = np.clip(np.rint((moved - low) / spacing).astype(np.int64) + 1, 0, shape - 1)
        scores[part] = flat[(index[..., 0] * shape[1] + index[..., 1]) * shape[2] + index[..., 2]].mean(axis=1)
    return scores


def _distinct(order: Integers, rotations: Floats, translations: Floats) -> list[int]:
    """The first few of the ordered placements that differ by more than 8 degrees or 1 angstrom."""
    chosen: list[int] = []
    for k in order[: 40 * _REFINED_PER_HAND]:
        if chosen:
            trace = np.einsum("nij,ij->n", rotations[chosen], rotations[k])
            near = np.linalg.norm(translations[chosen] - translations[k], axis=1) < 1.0
            if bool((near & (trace > 1 + 2 * math.cos(math.radians(8)))).any()):
                continue
        chosen.append(int(k))
        if len(chosen) == _REFINED_PER_HAND:
            break
    return chosen


def _refined(p: Floats, q: Floats, tree: cKDTree, rotation: Floats, translation: Floats, tolerance: float) -> _Fit:
    """Rigid least squares on mutual neighbours, from a wide to the final tolerance."""
    for reach in (3, 2, 1.5, 1, 1, 1):
        pairs, _ = _mutual(p @ rotation.T + translation, tree, reach * tolerance)
        if len(pairs) < 3:
            break
        rotation, translation = rigid_fit(p[pairs[:, 0]], q[pairs[:, 1]], float(np.linalg.det(rotation)))
    pairs, distances = _mutual(p @ rotation.T + translation, tree, tolerance)
    return _Fit(rotation, translation, pairs, distances)


def _mutual(moved: Floats, tree: cKDTree, tolerance: float) -> tuple[Integers, Floats]:
    """Pairs (m, 2) that are each other's nearest and nearer than the tolerance, and their distances."""
    distance, nearest = tree.query(moved)
    owner = np.full(tree.n, -1, dtype=np.int64)
    far_first = np.argsort(-distance, kind="stable")
    owner[nearest[far_first]] = far_first  # the nearest one is written last
    index = np.flatnonzero((owner[nearest] == np.arange(len(moved))) & (distance < tolerance))
    return np.stack([index, nearest[index]], axis=1), distance[index]


def rigid_fit(p: Floats, q: Floats, hand: float) -> tuple[Floats, Floats]:
    """Rotation of the given hand (determinant) and translation that lay p on q best ([2] of `compare`)."""
    p_mean, q_mean = p.mean(axis=0), q.mean(axis=0)
    u, _, vt = np.linalg.svd((q - q_mean).T @ (p - p_mean))
    rotation = u @ np.diag([1.0, 1.0, math.copysign(1.0, hand) * float(np.sign(np.linalg.det(u @ vt)))]) @ vt
    return rotation, q_mean - rotation @ p_mean
