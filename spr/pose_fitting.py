"""Poses of images refined against a map by Gauss-Newton steps, off any grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.gridding import OVERSAMPLING, interpolate_channels
from common.rotations import rotation_from_vector
from spr.ring_images import RingImages

_LARGEST_TURN = math.radians(4.0)  # of one Gauss-Newton step; a map at 2 angstrom is linear about so far
_LARGEST_SHIFT = 0.3  # angstrom


@dataclass(frozen=True)
class RefineData:
    """images : on rings, sorted from low to high frequency. half : (n,) 0 or 1. window : side of the map, angstrom.

    shells : (s,) rings in steps of 1 / window. search_shell : last shell that the search used.
    """

    images: RingImages
    half: Tensor
    shells: Tensor
    window: float
    radius: float
    search_shell: float


def fit_poses(
    transform: Tensor,
    data: RefineData,
    index: Tensor,
    rotations: Tensor,
    shifts: Tensor,
    count: int,
    *,
    steps: int,
    shifts_only: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss-Newton on rotation and shift of each image; the best pose on the way is kept.

    Parameters
    ----------
    transform : (m, m, m, 4) `transform_and_slopes` of the map. index : (k,) images.
    rotations, shifts : (k, 3, 3), (k, 2) where to start. count : rings used.
    steps : in all; the first ``shifts_only`` of them move the shift alone.

    Returns
    -------
    Rotations, shifts, and the log likelihood ratio (k,) against no particle, nats.
    """
    images = data.images
    half = images.rings.shape[-1] // 2
    vectors = images.ring_vectors()[:count, :half].reshape(-1, 2)
    measured = images.rings[index, :count, :half].flatten(1)
    transfer = images.transfer[index, :count, :half].flatten(1)
    weight = images.weights[:count].repeat_interleave(half)
    best_rotations, best_shifts, best = rotations, shifts, torch.full_like(shifts[:, 0], -math.inf)
    for number in range(steps + 1):
        model, columns = model_and_columns(transform, rotations, shifts, vectors, transfer, data.window)
        gain = (weight * ((measured.conj() * model).real - model.abs().square() / 2)).sum(1) * 2
        better = gain > best
        best = torch.where(better, gain, best)
        best_rotations = torch.where(better[:, None, None], rotations, best_rotations)
        best_shifts = torch.where(better[:, None], shifts, best_shifts)
        if number == steps:
            break
        free = columns[..., 3:] if number < shifts_only else columns
        weighted = free.conj() * weight[:, None]
        normal = torch.einsum("kqi,kqj->kij", weighted, free).real
        right = torch.einsum("kqi,kq->ki", weighted, measured - model).real
        damped = normal + torch.diag_embed(1e-3 * torch.diagonal(normal, dim1=1, dim2=2) + 1e-6)
        change = torch.linalg.solve(damped, right)
        change = torch.nn.functional.pad(change, (5 - change.shape[1], 0))
        turn, move = limited(change[:, :3], _LARGEST_TURN), limited(change[:, 3:], _LARGEST_SHIFT)
        rotations, shifts = rotation_from_vector(turn) @ rotations, shifts + move
    return best_rotations, best_shifts, best


def limited(vectors: Tensor, longest: float) -> Tensor:
    """Vectors (..., c) cut to a length."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(min=1e-12)
    return vectors * (longest / length).clamp(max=1.0)


def model_and_columns(
    transform: Tensor, rotations: Tensor, shifts: Tensor, vectors: Tensor, transfer: Tensor, window: float
) -> tuple[Tensor, Tensor]:
    """The model of the images' samples (k, q), and its derivatives (k, q, 5) with respect to turn (radian) and shift.

    vectors : (q, 2) frequencies, 1/angstrom. A turn ``w`` takes R to ``exp(w) R``; the view's sample then lies at
    ``R' (k - w x k)``.
    """
    k, q = len(rotations), len(vectors)
    scale = OVERSAMPLING * window
    points = (vectors * scale) @ rotations[:, :2, :]
    values, gradient = interpolate_channels(transform, points.reshape(-1, 3)).split((1, 3), dim=1)
    phase = -2 * math.pi * (shifts @ vectors.T)
    factor = transfer * torch.polar(torch.ones_like(phase), phase)
    model = values.view(k, q) * factor
    in_view = gradient.view(k, q, 3) @ rotations.mT.to(gradient.dtype)
    k_x, k_y = (scale * vectors).unbind(-1)
    turned = torch.stack(
        (-k_y * in_view[..., 2], k_x * in_view[..., 2], k_y * in_view[..., 0] - k_x * in_view[..., 1]), -1
    )
    moved = (-2j * math.pi) * model[..., None] * vectors
    return model, torch.cat((turned * factor[..., None], moved), -1)
