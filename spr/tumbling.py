"""How a particle tumbles: rotational diffusion and jumps, from its orientations in time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.rotations import geodesic_distance

_LAGS = 6  # frames, of the mean squared rotations that diffusion is read from
_MAXWELL = 1.1263  # rms over median of the angle of a rotation with three normal components
_JUMP = 6.0  # rms steps; a rotation by more is no diffusion


@dataclass(frozen=True)
class Tumbling:
    """lags : (l,) frames. squared : (l,) mean squared rotation over them, degrees^2, jumps left out.

    degrees_per_frame : rms rotation from one frame to the next by diffusion alone. pose_error : rms, degrees, of
        single orientations, from what does not grow with the lag. diffusion : rotational, radian^2 per frame.
    jumps : (j,) frames, counted from the first, before which the particle jumped. jump_degrees : (j,) how far.
    """

    lags: Tensor
    squared: Tensor
    degrees_per_frame: float
    pose_error: float
    diffusion: float
    jumps: Tensor
    jump_degrees: Tensor


def describe_tumbling(rotations: Tensor, frames: Tensor) -> Tumbling:
    """Diffusion and jumps of a particle.

    Parameters
    ----------
    rotations : (n, 3, 3) orientations, n >= 2. frames : (n,) their numbers, rising; gaps are allowed.

    Notes
    -----
    ``<angle^2>(lag) = 6 D lag + 2 error^2`` for isotropic diffusion; the mean square is taken from the median of the
    angles, on which rare jumps have no hold.
    """

    def squared(first: Tensor, second: Tensor) -> float:
        return (_MAXWELL * float(geodesic_distance(rotations[first], rotations[second]).double().median())) ** 2

    t, y = _over_lags(frames, squared)
    slope, level = _line(t, y)
    per_frame = math.sqrt(slope)
    steps = geodesic_distance(rotations[:-1], rotations[1:]).double()
    expected = torch.sqrt(slope * (frames[1:] - frames[:-1]).to(steps) + level).clamp(min=1e-6)
    far = (steps > _JUMP * expected).nonzero()[:, 0]
    diffusion = slope * math.radians(1.0) ** 2 / 6
    return Tumbling(t, y, per_frame, math.sqrt(level / 2), diffusion, frames[far + 1], steps[far])


def continuous(rotations: Tensor, operations: Tensor) -> Tensor:
    """Orientations (n, 3, 3) of a particle that looks alike after ``operations`` (g, 3, 3), chosen to turn least.

    Each frame's orientation is replaced by that of the like ones which is nearest to the frame before.
    """
    now, found = rotations[0], [rotations[0]]
    for alike in rotations[1:, None] @ operations.to(rotations):
        now = alike[geodesic_distance(alike, now.expand_as(alike)).argmin()]
        found.append(now)
    return torch.stack(found)


def _over_lags(frames: Tensor, squared: Callable[[Tensor, Tensor], float]) -> tuple[Tensor, Tensor]:
    """Lags (l,), frames, and what is measured over them: ``squared`` of the rows that lie a lag apart, 10 at least."""
    pairs = {lag: _pairs(frames, lag) for lag in range(1, _LAGS + 1)}
    found = {float(lag): squared(*pair) for lag, pair in pairs.items() if len(pair[0]) >= 10}
    return torch.tensor(list(found), dtype=torch.float64), torch.tensor(list(found.values()), dtype=torch.float64)


def _pairs(frames: Tensor, lag: int) -> tuple[Tensor, Tensor]:
    """Rows of frames that lie ``lag`` apart."""
    place = torch.searchsorted(frames, frames + lag).clamp(max=len(frames) - 1)
    first = (frames[place] == frames + lag).nonzero()[:, 0]
    return first, place[first]


def _line(t: Tensor, y: Tensor) -> tuple[float, float]:
    """Slope and level, neither negative, of a line through points."""
    if len(t) < 2:
        return (float(y[0] / t[0]) if len(t) else 0.0), 0.0
    slope = float(((t - t.mean()) * (y - y.mean())).sum() / (t - t.mean()).square().sum())
    level = float(y.mean()) - slope * float(t.mean())
    if level < 0:
        return float((t * y).sum() / t.square().sum()), 0.0
    return max(slope, 0.0), level


@dataclass(frozen=True)
class Wandering:
    """lags : (l,) frames. squared : (l,) mean squared displacement over them, angstrom^2.

    diffusion : angstrom^2 per frame. error : angstrom, rms on each axis, of single positions.
    """

    lags: Tensor
    squared: Tensor
    diffusion: float
    error: float


def describe_wandering(positions: Tensor, frames: Tensor) -> Wandering:
    """Diffusion of a particle in the plane.

    Parameters
    ----------
    positions : (n, 2) angstrom, n >= 2. frames : (n,) their numbers, rising; gaps are allowed.

    Notes
    -----
    ``<r^2>(lag) = 4 D lag + 4 error^2``.
    """

    def squared(first: Tensor, second: Tensor) -> float:
        return float((positions[second] - positions[first]).double().square().sum(1).mean())

    t, y = _over_lags(frames, squared)
    slope, level = _line(t, y)
    return Wandering(t, y, slope / 4, math.sqrt(level / 4))
