"""Real-space methods: ART, SART, SIRT, CGLS, and filtered back-projection as their start and yardstick.

References
----------
.. [1] Gordon, Bender, Herman, "Algebraic reconstruction techniques (ART) for three-dimensional electron microscopy and
   X-ray photography", J. Theor. Biol. 29, 471 (1970). doi:10.1016/0022-5193(70)90109-8
.. [2] Andersen, Kak, "Simultaneous algebraic reconstruction technique (SART)", Ultrason. Imaging 6, 81 (1984).
   doi:10.1177/016173468400600107
.. [3] Gilbert, "Iterative methods for the three-dimensional reconstruction of an object from projections",
   J. Theor. Biol. 36, 105 (1972). doi:10.1016/0022-5193(72)90180-4
.. [4] Hestenes, Stiefel, "Methods of conjugate gradients for solving linear systems",
   J. Res. Natl. Bur. Stand. 49, 409 (1952). doi:10.6028/jres.049.044
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from aet_tilt.reconstruction.problem import Problem, VolumeState, r_factor
from common.data import InputError
from common.iteration import Observer, run
from common.rotations import tilt_angles_of

Family = Literal["art", "sart", "sirt", "cgls"]
_SAME_ANGLE = 1e-3  # degrees
_SETS = 3  # rays this many pixels apart do not overlap: a set of them is one Kaczmarz step for each of its rays


@dataclass(frozen=True)
class RealSpaceSettings:
    """How the equations of the rays are solved.

    method : art (ray after ray), sart (image after image), sirt (all at once) or cgls (conjugate gradients).
    iterations : passes over all images, >= 1.
    relaxation : of a step of ART, SART and SIRT, (0, 2).
    positivity : keep the map >= 0; not for CGLS.
    """

    method: Family = "sirt"
    iterations: int = 100
    relaxation: float = 1.0
    positivity: bool = True

    def __post_init__(self) -> None:
        if self.method not in ("art", "sart", "sirt", "cgls"):
            raise InputError(f"the real-space method is {self.method!r}, expected art, sart, sirt or cgls")
        if self.iterations < 1 or not 0 < self.relaxation < 2:
            raise InputError(
                f"{self.method} has {self.iterations} iterations with relaxation {self.relaxation}, "
                "expected at least 1 and a relaxation in (0, 2)"
            )


@dataclass(frozen=True)
class RealSpaceState(VolumeState):
    """lengths : (n, d, d) of the rays within the support. rays : (d, d, d) through each voxel.

    direction, residual : of CGLS, (d, d, d) and (n, d, d); empty otherwise. energy : of the gradient (CGLS).
    """

    lengths: Tensor
    rays: Tensor
    direction: Tensor
    residual: Tensor
    energy: float


def start(problem: Problem, settings: RealSpaceSettings) -> RealSpaceState:
    """Nothing, and the sums over rays and voxels by which steps are divided."""
    operator, nothing = problem.operator, torch.zeros_like(problem.support)
    empty = nothing.new_zeros(0)
    if settings.method == "cgls":
        direction = operator.backproject(problem.images) * problem.support
        energy = float(direction.square().sum())
        return RealSpaceState(0, energy == 0, nothing, 1.0, empty, empty, direction, problem.images, energy)
    lengths = operator.project(problem.support)
    # rays that only graze the support say nothing and would be divided by nearly nothing
    lengths = torch.where(lengths > 0.5 * operator.pixel_size, lengths, math.inf)
    rays = operator.backproject(torch.ones_like(problem.images)).clamp(min=operator.pixel_size)
    return RealSpaceState(0, False, nothing, 1.0, lengths, rays, empty, empty, 0.0)


def step(state: RealSpaceState, problem: Problem, settings: RealSpaceSettings) -> RealSpaceState:
    """One pass over all images."""
    if settings.method == "cgls":
        return _conjugate_gradients(state, problem, settings)
    done = state.iteration + 1 >= settings.iterations
    if settings.method == "sirt":
        predicted = problem.operator.project(state.values)
        correction = problem.operator.backproject((problem.images - predicted) / state.lengths) / state.rays
        values = _constrained(state.values + settings.relaxation * correction, problem, settings)
        r1 = r_factor(predicted, problem.images)
    else:
        values, r1 = _row_action(state, problem, settings)
    return RealSpaceState(
        state.iteration + 1, done, values, r1, state.lengths, state.rays, state.direction, state.residual, 0.0
    )


def _constrained(values: Tensor, problem: Problem, settings: RealSpaceSettings) -> Tensor:
    values = values * problem.support
    return values.clamp(min=0) if settings.positivity else values


def _row_action(state: RealSpaceState, problem: Problem, settings: RealSpaceSettings) -> tuple[Tensor, float]:
    """Kaczmarz steps, one image after another in an order that keeps neighbours in time far apart in angle."""
    values, difference = state.values, 0.0
    columns = torch.arange(problem.images.shape[-1], device=values.device) % _SETS
    sets = [columns == k for k in range(_SETS)] if settings.method == "art" else [columns >= 0]
    for number in spread_order(len(problem.operator)):
        index = torch.tensor([number], device=values.device)
        one = problem.operator.subset(index)
        for k, chosen in enumerate(sets):
            residual = problem.images[index] - one.project(values)
            if k == 0:
                difference += float(residual.abs().sum())
            ratio = residual / state.lengths[index] * chosen
            # a ray passes each voxel on its way with a weight of one pixel, so this is a' r / |a|^2
            correction = one.backproject(ratio) / problem.operator.pixel_size
            values = _constrained(values + settings.relaxation * correction, problem, settings)
    return values, difference / max(float(problem.images.abs().sum()), 1e-30)


def spread_order(n: int) -> list[int]:
    """0 .. n - 1 in steps near the golden section of n, each once: images used in a row differ much in angle."""
    stride = max(1, round(n * (math.sqrt(5) - 1) / 2))
    while math.gcd(stride, n) != 1:
        stride += 1
    return [(k * stride) % n for k in range(n)]


def _conjugate_gradients(state: RealSpaceState, problem: Problem, settings: RealSpaceSettings) -> RealSpaceState:
    """One step of CGLS (Hestenes and Stiefel 1952, section 10) on the voxels of the support."""
    along = problem.operator.project(state.direction)
    length = state.energy / float(along.square().sum())
    values, residual = state.values + length * state.direction, state.residual - length * along
    gradient = problem.operator.backproject(residual) * problem.support
    energy = float(gradient.square().sum())
    direction = gradient + (energy / state.energy) * state.direction
    r1 = float(residual.abs().sum() / problem.images.abs().sum())
    done = state.iteration + 1 >= settings.iterations or energy <= 1e-12 * state.energy
    return RealSpaceState(state.iteration + 1, done, values, r1, state.lengths, state.rays, direction, residual, energy)


def solve(
    problem: Problem, settings: RealSpaceSettings, *, name: str = "real-space", observers: Sequence[Observer] = ()
) -> RealSpaceState:
    """The map that ART, SART, SIRT or CGLS finds; ``name`` is that of the run."""
    return run(name, start(problem, settings), lambda s: step(s, problem, settings), observers)


def angular_weights(angles: Tensor) -> Tensor:
    """The part of the half turn that each angle (n,), degrees, stands for: half the way to both neighbours, radian.

    A missing wedge is not filled: the images at its sides stand for no more than usual there. Images of one angle share
    its part.
    """
    rounded = (angles.double() / _SAME_ANGLE).round() * _SAME_ANGLE
    different, which, count = (rounded % 180).unique(return_inverse=True, return_counts=True)
    if len(different) == 1:
        return angles.new_full((len(angles),), math.pi / len(angles))
    gaps = torch.cat((different[1:], different[:1] + 180)) - different
    usual = gaps.median()
    gaps = torch.where(gaps > 2.5 * usual, usual, gaps)
    weights = torch.deg2rad((gaps + gaps.roll(1)) / 2) / count
    return weights[which].to(angles)


def filtered_back_projection(problem: Problem) -> Tensor:
    """Back-projection of ramp-filtered images; positivity and support are not imposed.

    The ramp runs along x, so that the poses should be tilts about y within a few degrees; the angles may lie unevenly.

    Returns
    -------
    (d, d, d), units of the images per angstrom.
    """
    operator, d = problem.operator, problem.images.shape[-1]
    weights = angular_weights(tilt_angles_of(operator.poses.rotations))
    size = 2 * d
    # the transform of the band-limited ramp's samples, not |k| itself, whose mean is wrong (Kak, Slaney, eq. 3.61)
    x = torch.fft.ifftshift(torch.arange(size, device=weights.device) - size // 2)
    odd = x % 2 == 1
    samples = torch.where(odd, -1 / (math.pi * x.double().abs().clamp(min=1)) ** 2, 0.0)
    samples[0] = 0.25
    ramp = torch.fft.rfft(samples).real.to(weights)
    spectrum = torch.fft.rfft(problem.images, n=size, dim=-1) * ramp
    filtered = torch.fft.irfft(spectrum, n=size, dim=-1)[..., :d] * weights[:, None, None]
    # each voxel takes one pixel of every image; the ramp is in cycles per pixel
    return operator.backproject(filtered) / operator.pixel_size**2
