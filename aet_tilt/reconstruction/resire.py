"""RESIRE: real-space iterative reconstruction, gradient descent on the squared error of all images [1]_, [2]_.

References
----------
.. [1] Yang et al., "Determining the three-dimensional atomic structure of an amorphous solid", Nature 592, 60 (2021).
   doi:10.1038/s41586-021-03354-0
.. [2] Pham, Yuan, Rana, Osher, Miao, "Accurate real space iterative reconstruction (RESIRE) algorithm for tomography",
   Sci. Rep. 13, 5624 (2023). doi:10.1038/s41598-023-31124-7
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aet_tilt.reconstruction.problem import Problem, VolumeState, r_factor, squared_norm
from common.data import InputError
from common.iteration import Observer, run


@dataclass(frozen=True)
class ResireSettings:
    """How RESIRE descends.

    iterations : >= 1; it needs 200 and more.
    step : of the largest stable one, (0, 2).
    positivity : keep the map >= 0.
    """

    iterations: int = 200
    step: float = 1.9
    positivity: bool = True

    def __post_init__(self) -> None:
        if self.iterations < 1 or not 0 < self.step < 2:
            raise InputError(
                f"RESIRE has {self.iterations} iterations of step {self.step}, expected at least 1 and a step in (0, 2)"
            )


@dataclass(frozen=True)
class ResireState(VolumeState):
    """norm : largest eigenvalue of the normal operator."""

    norm: float


def start(problem: Problem) -> ResireState:
    """Nothing, and the size of a step."""
    return ResireState(0, False, torch.zeros_like(problem.support), 1.0, squared_norm(problem))


def step(state: ResireState, problem: Problem, settings: ResireSettings) -> ResireState:
    """One step against the gradient of ``|project(values) - images|^2 / 2`` (Pham et al. 2023, algorithm 1)."""
    predicted = problem.operator.project(state.values)
    gradient = problem.operator.backproject(predicted - problem.images)
    values = (state.values - (settings.step / state.norm) * gradient) * problem.support
    if settings.positivity:
        values = values.clamp(min=0)
    done = state.iteration + 1 >= settings.iterations
    return ResireState(state.iteration + 1, done, values, r_factor(predicted, problem.images), state.norm)


def resire(
    problem: Problem,
    settings: ResireSettings | None = None,
    *,
    name: str = "resire",
    observers: Sequence[Observer] = (),
) -> ResireState:
    """The map that RESIRE finds; ``name`` is that of the run, for the observers."""
    chosen = settings or ResireSettings()
    return run(name, start(problem), lambda s: step(s, problem, chosen), observers)
