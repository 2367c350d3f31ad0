"""Rotations as matrices (..., 3, 3) on (x, y, z) columns, ``view = R @ specimen``; degrees unless named _rad."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from common.data import InputError


def euler_to_matrix(angles: Tensor) -> Tensor:
    """RELION's Euler angles to the rotation from specimen to view.

    Parameters
    ----------
    angles : (..., 3) rlnAngleRot, rlnAngleTilt, rlnAnglePsi, degrees.

    Returns
    -------
    (..., 3, 3) ``A = Rz(-psi) Ry(-tilt) Rz(-rot)``; the third row is the direction the beam has in the specimen.

    References
    ----------
    .. [1] Heymann, Chagoyen, Belnap, "Common conventions for interchange and archiving of three-dimensional electron
       microscopy information", J. Struct. Biol. 151, 196 (2005). doi:10.1016/j.jsb.2005.06.001
    """
    rot, tilt, psi = torch.deg2rad(angles).unbind(-1)
    ca, sa, cb, sb, cg, sg = rot.cos(), rot.sin(), tilt.cos(), tilt.sin(), psi.cos(), psi.sin()
    first = torch.stack((cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb), -1)
    second = torch.stack((-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb), -1)
    third = torch.stack((sb * ca, sb * sa, cb), -1)
    return torch.stack((first, second, third), -2)


def matrix_to_euler(rotations: Tensor) -> Tensor:
    """The inverse of :func:`euler_to_matrix`.

    Parameters
    ----------
    rotations : (..., 3, 3).

    Returns
    -------
    (..., 3) rot and psi in [-180, 180], tilt in [0, 180], degrees. Where tilt is 0 or 180 only one of rot and psi is
    determined: rot is then 0.
    """
    r = rotations
    sin_tilt = torch.hypot(r[..., 2, 0], r[..., 2, 1])
    tilt = torch.atan2(sin_tilt, r[..., 2, 2])
    pole = sin_tilt < 8 * torch.finfo(r.dtype).eps
    rot = torch.where(pole, 0.0, torch.atan2(r[..., 2, 1], r[..., 2, 0]))
    # with rot known, undo it and read psi from the second column: exact at the poles and stable near them
    psi_sin = -r[..., 0, 0] * rot.sin() + r[..., 0, 1] * rot.cos()
    psi_cos = -r[..., 1, 0] * rot.sin() + r[..., 1, 1] * rot.cos()
    return torch.rad2deg(torch.stack((rot, tilt, torch.atan2(psi_sin, psi_cos)), -1))


def tilt_angles_of(rotations: Tensor) -> Tensor:
    """(n,) degrees in (-180, 180]: the tilt about y before any in-plane rotation, ``R = Rz(axis) @ Ry(tilt)``."""
    return torch.rad2deg(torch.atan2(-rotations[..., 2, 0], rotations[..., 2, 2]))


def rotation_from_vector(omega_rad: Tensor) -> Tensor:
    """The rotation by ``|omega|`` radian about ``omega`` (Rodrigues); smooth everywhere, zero included.

    Parameters
    ----------
    omega_rad : (..., 3) rotation vector, radian.

    Returns
    -------
    (..., 3, 3).
    """
    square = (omega_rad * omega_rad).sum(-1)
    small = square < 1e-2
    safe = torch.where(small, 1.0, square)
    angle = safe.sqrt()
    sine = torch.where(small, _series(square, (1, -6, 120, -5040, 362880)), angle.sin() / angle)
    versine = torch.where(small, _series(square, (2, -24, 720, -40320, 3628800)), (1 - angle.cos()) / safe)
    cross = cross_matrix(omega_rad)
    identity = torch.eye(3, dtype=omega_rad.dtype, device=omega_rad.device)
    return identity + sine[..., None, None] * cross + versine[..., None, None] * (cross @ cross)


def _series(x: Tensor, denominators: tuple[int, ...]) -> Tensor:
    total = torch.zeros_like(x)
    for denominator in reversed(denominators):
        total = total * x + 1 / denominator
    return total


def cross_matrix(vectors: Tensor) -> Tensor:
    """``K`` with ``K @ v = vectors x v``: (..., 3) to (..., 3, 3)."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    rows = (torch.stack((zero, -z, y), -1), torch.stack((z, zero, -x), -1), torch.stack((-y, x, zero), -1))
    return torch.stack(rows, -2)


def _quaternions(rotations: Tensor) -> Tensor:
    """Unit quaternions (w, x, y, z), w >= 0, from the best-conditioned row of 4 q q' (Shepperd's method)."""
    r = rotations
    xx, yy, zz = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    wx, wy, wz = r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]
    xy, xz, yz = r[..., 0, 1] + r[..., 1, 0], r[..., 0, 2] + r[..., 2, 0], r[..., 1, 2] + r[..., 2, 1]
    outer = torch.stack(
        (
            torch.stack((1 + xx + yy + zz, wx, wy, wz), -1),
            torch.stack((wx, 1 + xx - yy - zz, xy, xz), -1),
            torch.stack((wy, xy, 1 - xx + yy - zz, yz), -1),
            torch.stack((wz, xz, yz, 1 - xx - yy + zz), -1),
        ),
        -2,
    )
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = torch.take_along_dim(outer, best[..., None, None], -2).squeeze(-2)
    row = row / row.norm(dim=-1, keepdim=True)
    return torch.where(row[..., :1] < 0, -row, row)


def vector_from_rotation(rotations: Tensor) -> Tensor:
    """The rotation vector (radian, length in [0, pi]) of each rotation; accurate near 0 and near pi.

    Parameters
    ----------
    rotations : (..., 3, 3).

    Returns
    -------
    (..., 3) radian. At pi the axis is known up to its sign only, and either is given.
    """
    w, v = _quaternions(rotations).split((1, 3), -1)
    square = (v * v).sum(-1, keepdim=True)
    small = square < 1e-4
    sine = torch.where(small, 1.0, square).sqrt()
    series = 2 * (1 + square * (1 / 6 + square * (3 / 40 + square * (15 / 336))))
    return v * torch.where(small, series, 2 * torch.atan2(sine, w) / sine)


def geodesic_distance(a: Tensor, b: Tensor) -> Tensor:
    """The angle of the rotation between ``a`` and ``b``.

    Parameters
    ----------
    a, b : (..., 3, 3), shapes broadcast.

    Returns
    -------
    (...) in [0, 180] degrees; exact for small angles (no arccos), within 0.05 degree of truth at 180 in float32.
    """
    sine = (a - b).square().sum((-2, -1)).sqrt() / math.sqrt(8)
    cosine = (1 + (a * b).sum((-2, -1))).clamp(min=0).sqrt() / 2
    return torch.rad2deg(2 * torch.atan2(sine, cosine))


def random_rotations(
    n: int,
    *,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """``n`` rotations (n, 3, 3), uniform over SO(3), from normal quaternions."""
    q = torch.randn(n, 4, generator=generator, dtype=torch.float64, device=generator.device)
    w, x, y, z = (q / q.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        torch.stack((1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)), -1),
        torch.stack((2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)), -1),
        torch.stack((2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)), -1),
    )
    return torch.stack(rows, -2).to(dtype=dtype, device=device)


def fibonacci_directions(
    n: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """``n`` unit vectors (n, 3), nearly uniform over the sphere: equal steps in z, a golden angle of turn for each."""
    k = torch.arange(n, dtype=torch.float64)
    z = 1 - (2 * k + 1) / n
    radius = (1 - z * z).sqrt()
    azimuth = k * (math.pi * (3 - math.sqrt(5)))
    return torch.stack((radius * azimuth.cos(), radius * azimuth.sin(), z), -1).to(dtype=dtype, device=device)


def rotations_to_directions(directions: Tensor, in_plane_angles: Tensor) -> Tensor:
    """The rotations that bring a direction of the specimen onto the beam, followed by a turn in the image plane.

    Parameters
    ----------
    directions : (..., 3) unit vectors in the specimen.
    in_plane_angles : (...) RELION's psi, degrees; shapes broadcast. The view is turned by ``Rz(-psi)``.

    Returns
    -------
    (..., 3, 3) with ``R @ direction = (0, 0, 1)``.
    """
    rot = torch.rad2deg(torch.atan2(directions[..., 1], directions[..., 0]))
    tilt = torch.rad2deg(torch.atan2(torch.hypot(directions[..., 0], directions[..., 1]), directions[..., 2]))
    return euler_to_matrix(torch.stack(torch.broadcast_tensors(rot, tilt, in_plane_angles), -1))


def rotation_grid(
    n_directions: int,
    n_in_plane: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """A Fibonacci sphere of directions times evenly spaced in-plane angles: (n_directions, n_in_plane, 3, 3)."""
    directions = fibonacci_directions(n_directions, dtype=torch.float64)
    angles = torch.arange(n_in_plane, dtype=torch.float64) * (360 / n_in_plane)
    return rotations_to_directions(directions[:, None], angles).to(dtype=dtype, device=device)


def nearest_rotation(matrices: Tensor) -> Tensor:
    """The proper rotation nearest to each matrix (..., 3, 3) in the Frobenius norm (Kabsch, by SVD)."""
    u, _, vh = torch.linalg.svd(matrices)
    sign = torch.linalg.det(u @ vh).sign()
    return torch.cat((u[..., :2], u[..., 2:] * sign[..., None, None]), -1) @ vh


def mean_rotation(rotations: Tensor, weights: Tensor | None = None) -> Tensor:
    """The chordal mean.

    Parameters
    ----------
    rotations : (..., n, 3, 3).
    weights : (..., n), not negative; equal when None.

    Returns
    -------
    (..., 3, 3), the rotation with the least weighted sum of squared Frobenius distances.
    """
    total = rotations if weights is None else rotations * weights[..., None, None]
    return nearest_rotation(total.sum(-3))


_GOLDEN = (1 + math.sqrt(5)) / 2
_AXES = {
    "T": ((3, (0.0, 0.0, 1.0)), (2, (0.0, math.sqrt(2), 1.0))),
    "O": ((4, (0.0, 0.0, 1.0)), (3, (1.0, 1.0, 1.0))),
    "I1": ((2, (0.0, 0.0, 1.0)), (5, (0.0, 1.0, _GOLDEN))),
    "I2": ((2, (0.0, 0.0, 1.0)), (5, (1.0, 0.0, _GOLDEN))),
}


def point_group(name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Tensor:
    """The rotations of a point group, the identity first.

    Parameters
    ----------
    name : "C<n>" (axis along z), "D<n>" (a twofold along x as well), "T" (threefold along z), "O" (fourfolds along the
        axes), "I1" or "I2": RELION's settings, twofolds along x, y, z, the fivefolds nearest z in the yz plane (I1) or
        in the xz plane (I2). "I" is I1.

    Returns
    -------
    (g, 3, 3).

    Raises
    ------
    InputError : the name is none of these.
    """
    label = "I1" if name.upper() == "I" else name.upper()
    match = re.fullmatch(r"([CD])([1-9]\d{0,2})", label)
    if match:
        axes: tuple[tuple[int, tuple[float, float, float]], ...] = ((int(match[2]), (0.0, 0.0, 1.0)),)
        if match[1] == "D":
            axes = (*axes, (2, (1.0, 0.0, 0.0)))
    elif label in _AXES:
        axes = _AXES[label]
    else:
        raise InputError(f"the point group is {name!r}, expected C<n>, D<n>, T, O, I1 or I2")
    generators = []
    for fold, axis in axes:
        vector = torch.tensor(axis, dtype=torch.float64)
        generators.append(rotation_from_vector(vector / vector.norm() * (2 * math.pi / fold)))
    return _closure(torch.stack(generators)).to(dtype=dtype, device=device)


def _closure(generators: Tensor) -> Tensor:
    """All products of the generators, in the order in which they are found."""
    found = torch.eye(3, dtype=generators.dtype)[None]
    frontier = found
    while len(frontier):
        fresh: list[Tensor] = []
        for candidate in (generators[:, None] @ frontier[None]).reshape(-1, 3, 3):
            known = torch.cat((found, torch.stack(fresh))) if fresh else found
            if float((known - candidate).abs().amax((-2, -1)).min()) > 1e-6:
                fresh.append(candidate)
        frontier = nearest_rotation(torch.stack(fresh)) if fresh else found[:0]
        found = torch.cat((found, frontier))
    return found
