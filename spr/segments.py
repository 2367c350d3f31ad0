"""Stretches of a movie between jumps, and how far a map reaches along the views: what time alone can tell.

Views of one side say little about the extent of a particle along them: a map that is stretched along the views fits as
well once all tilts are larger by as much (the bas-relief ambiguity [1]_). Rotations about the beam are not changed, so
that Brownian rotation, which is alike about all axes, tells the scale of the tilts.

References
----------
.. [1] Belhumeur, Kriegman and Yuille, "The bas-relief ambiguity", Int. J. Computer Vision 35, 33 (1999).
   doi:10.1023/A:1008154927611
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.rotations import geodesic_distance, vector_from_rotation

_JUMP = 8.0  # usual steps; two frames that lie further apart belong to different stretches
_LAGS = (2, 3, 4, 5, 6)  # frames, over which rotations about different axes are compared
_ONE_SIDE = 0.5  # mean square cosine between the views and their mean axis, from which the views are of one side
_FURTHEST = 1.6  # change of the tilts in one go
_NORMAL = 0.6745  # median over standard deviation of the size of a normal number


def segments_of(rotations: Tensor, frames: Tensor) -> Tensor:
    """Number (n,) of the stretch that each of n frames belongs to; stretches end where the particle jumps.

    rotations : (n, 3, 3). frames : (n,) numbers, rising.
    """
    steps = geodesic_distance(rotations[1:], rotations[:-1])
    expected = steps.median() * torch.sqrt((frames[1:] - frames[:-1]).to(steps))
    jumped = steps > _JUMP * expected.clamp(min=0.1)
    return torch.cat((jumped.new_zeros(1), jumped)).cumsum(0)


def tilt_excess(rotations: Tensor, frames: Tensor, segments: Tensor) -> float:
    """Rms rotation about axes in the image over that about the beam: 1 for Brownian rotation seen at its true scale.

    Only pairs of frames within one stretch count; medians, on which a few wrong orientations have no hold.
    """
    tilt, turn = [], []
    for lag in _LAGS:
        later = torch.searchsorted(frames, frames + lag).clamp(max=len(frames) - 1)
        pair = (frames[later] == frames + lag) & (segments[later] == segments)
        first = pair.nonzero()[:, 0]
        if len(first) < 20:
            continue
        moved = vector_from_rotation(rotations[later[first]].double() @ rotations[first].double().mT).abs()
        variance = (moved.median(0).values / _NORMAL).square()
        tilt.append(float(variance[:2].mean()))
        turn.append(float(variance[2]))
    return math.sqrt(sum(tilt) / sum(turn)) if turn and sum(turn) > 0 else 1.0


def mean_axis(rotations: Tensor) -> tuple[Tensor, float]:
    """The axis (3,) in the particle's frame that the views lie around, and their mean square cosine with it."""
    views = rotations[:, 2].double()
    share, axes = torch.linalg.eigh(views.T @ views / len(views))
    return axes[:, -1].to(rotations), float(share[-1])


def with_tilts(rotations: Tensor, axis: Tensor, factor: float) -> Tensor:
    """Orientations (n, 3, 3) with all tilts against ``axis`` changed by about ``factor``.

    They are those under which the particle, stretched by ``1 / factor`` along the axis, looks most like before.
    """
    stretch = torch.eye(3).to(rotations) + (factor - 1) * torch.outer(axis, axis)
    u, _, vh = torch.linalg.svd(rotations[:, :2] @ stretch, full_matrices=False)
    rows = u @ vh
    return torch.cat((rows, torch.linalg.cross(rows[:, 0], rows[:, 1])[:, None]), 1)


def at_true_scale(rotations: Tensor, frames: Tensor, segments: Tensor) -> Tensor:
    """Orientations whose tilts have the scale of Brownian rotation, where all views are of one side."""
    axis, cosine = mean_axis(rotations)
    if cosine < _ONE_SIDE:
        return rotations
    excess = tilt_excess(rotations, frames, segments)
    return with_tilts(rotations, axis, 1 / min(max(excess, 1 / _FURTHEST), _FURTHEST))
