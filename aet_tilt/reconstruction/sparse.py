"""Total variation: the flattest non-negative map that explains few images (compressed sensing) [1]_, [2]_.

References
----------
.. [1] Sidky, Pan, "Image reconstruction in circular cone-beam computed tomography by constrained, total-variation
   minimization", Phys. Med. Biol. 53, 4777 (2008). doi:10.1088/0031-9155/53/17/021
.. [2] Beck, Teboulle, "Fast gradient-based algorithms for constrained total variation image denoising and deblurring
   problems", IEEE Trans. Image Process. 18, 2419 (2009). doi:10.1109/TIP.2009.2028250
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aet_tilt.reconstruction.problem import Problem, VolumeState, r_factor, squared_norm
from common.data import InputError
from common.iteration import Observer, run

_INNER = 6  # dual steps of the denoising in each iteration; they go on from the last iteration's


@dataclass(frozen=True)
class SparseSettings:
    """How flat the map is to be.

    iterations : >= 1.
    weight : of the total variation, over a sixth of the first gradient's steepest voxel, [0, 1). Chosen by held-out
    images: :func:`aet_tilt.reconstruction.methods.choose_method`.
    """

    iterations: int = 60
    weight: float = 0.01

    def __post_init__(self) -> None:
        if self.iterations < 1 or not 0 <= self.weight < 1:
            raise InputError(
                f"total variation has {self.iterations} iterations and a weight of {self.weight}, "
                "expected at least 1 and a weight in [0, 1)"
            )


@dataclass(frozen=True)
class SparseState(VolumeState):
    """ahead : (d, d, d) where the next gradient is taken. dual : (3, d, d, d) of the denoising. inertia : t.

    norm : largest eigenvalue of the normal operator. strength : weight of the total variation.
    """

    ahead: Tensor
    dual: Tensor
    inertia: float
    norm: float
    strength: float


def differences(values: Tensor) -> Tensor:
    """Forward differences along z, y, x: (3, d, d, d), 0 at the far faces."""
    result = values.new_zeros(3, *values.shape)
    for axis in range(3):
        result[axis].narrow(axis, 0, values.shape[axis] - 1).copy_(values.diff(dim=axis))
    return result


def differences_adjoint(fields: Tensor) -> Tensor:
    """The adjoint of :func:`differences`: (d, d, d) from (3, d, d, d)."""
    result = torch.zeros_like(fields[0])
    for axis in range(3):
        inner = fields[axis].narrow(axis, 0, fields.shape[axis + 1] - 1)
        result.narrow(axis, 1, inner.shape[axis]).add_(inner)
        result.narrow(axis, 0, inner.shape[axis]).sub_(inner)
    return result


def denoise(values: Tensor, support: Tensor, strength: float, dual: Tensor) -> tuple[Tensor, Tensor]:
    """The map near ``values`` with less total variation, >= 0 in the support, and the dual to go on from."""
    if strength == 0:
        return values.clamp(min=0) * support, dual
    for _ in range(_INNER):
        current = (values - strength * differences_adjoint(dual)).clamp(min=0) * support
        dual = dual + differences(current) / (12 * strength)
        dual = dual / dual.square().sum(0).sqrt().clamp(min=1)
    return (values - strength * differences_adjoint(dual)).clamp(min=0) * support, dual


def start(problem: Problem, settings: SparseSettings) -> SparseState:
    """Nothing; the weight is set against the gradient there."""
    nothing = torch.zeros_like(problem.support)
    gradient = (problem.operator.backproject(problem.images) * problem.support).abs()
    # in these units the weight does not depend on counts, images or pixels: |differences_adjoint(dual)| <= 6
    strength = settings.weight * float(gradient.max()) / 6
    norm = squared_norm(problem)
    return SparseState(0, False, nothing, 1.0, nothing, differences(nothing), 1.0, norm, strength)


def step(state: SparseState, problem: Problem, settings: SparseSettings) -> SparseState:
    """A gradient step on the squared error, then total variation denoising, accelerated (Beck and Teboulle 2009)."""
    predicted = problem.operator.project(state.ahead)
    gradient = problem.operator.backproject(predicted - problem.images)
    values, dual = denoise(
        state.ahead - gradient / state.norm, problem.support, state.strength / state.norm, state.dual
    )
    inertia = (1 + math.sqrt(1 + 4 * state.inertia**2)) / 2
    ahead = values + ((state.inertia - 1) / inertia) * (values - state.values)
    done = state.iteration + 1 >= settings.iterations
    r1 = r_factor(predicted, problem.images)
    return SparseState(state.iteration + 1, done, values, r1, ahead, dual, inertia, state.norm, state.strength)


def total_variation(
    problem: Problem,
    settings: SparseSettings | None = None,
    *,
    name: str = "sparse",
    observers: Sequence[Observer] = (),
) -> SparseState:
    """The map of least total variation; ``name`` is that of the run."""
    chosen = settings or SparseSettings()
    return run(name, start(problem, chosen), lambda s: step(s, problem, chosen), observers)
