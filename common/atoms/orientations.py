"""Orientations of crystals modulo their symmetry: misorientation, nearest variant, mean."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from common.atoms.geometry import Floats


def nearest_variants(rotations: Floats, reference: Floats, symmetry: Floats) -> Floats:
    """Of all equivalent descriptions ``R @ S`` of each orientation, the one nearest to a reference.

    Parameters
    ----------
    rotations : (n, 3, 3) crystal axes to the frame of the atoms.
    reference : (3, 3) or (n, 3, 3).
    symmetry : (g, 3, 3) proper rotations S of the point group.

    Returns
    -------
    (n, 3, 3).
    """
    relative = np.swapaxes(np.broadcast_to(reference, rotations.shape), 1, 2) @ rotations
    best = np.einsum("nab,gba->ng", relative, symmetry).argmax(1)
    return np.asarray(rotations @ symmetry[best])


def misorientation(first: Floats, second: Floats, symmetry: Floats) -> tuple[Floats, Floats]:
    """Smallest rotation between orientations of one structure.

    Parameters
    ----------
    first, second : (n, 3, 3) crystal axes to the frame of the atoms.
    symmetry : (g, 3, 3) proper rotations of the point group.

    Returns
    -------
    Angles (n,), degrees, and axes (n, 3), unit vectors in the crystal axes of ``first`` (any when the angle is 0).
    """
    variant = nearest_variants(second, first, symmetry)
    vectors = Rotation.from_matrix(np.swapaxes(first, 1, 2) @ variant).as_rotvec(degrees=True)
    angles = np.linalg.norm(vectors, axis=1)
    axes = np.where(angles[:, None] > 1e-9, vectors / np.maximum(angles, 1e-9)[:, None], np.array([0.0, 0.0, 1.0]))
    return angles, axes


def rotation_vectors(rotations: Floats, reference: Floats) -> Floats:
    """(n, 3) degrees, turns from a reference (3, 3) to each rotation, in the frame of the atoms."""
    return np.asarray(Rotation.from_matrix(rotations @ reference.T).as_rotvec(degrees=True))


def mean_orientation(rotations: Floats, start: Floats, symmetry: Floats) -> tuple[Floats, Floats]:
    """Mean (3, 3) of orientations (n, 3, 3) near ``start``, and the variants (n, 3, 3) that were averaged."""
    mean, variants = start, rotations
    for _ in range(5):
        variants = nearest_variants(rotations, mean, symmetry)
        u, _, vt = np.linalg.svd(variants.mean(0))
        mean = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt
    return np.asarray(mean), variants
