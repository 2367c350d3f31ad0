"""GENFIRE: generalised Fourier iterative reconstruction [1]_.

The transforms of the images are laid onto the grid of the volume's transform, padded so that the grid is fine; then the
map's transform is made to agree with them, and the map with positivity and support, in turn. The resolution up to which
it must agree rises during the first half of the iterations and falls again during the second (extension and
suppression).

References
----------
.. [1] Pryor et al., "GENFIRE: A generalized Fourier iterative reconstruction algorithm for high-resolution 3D imaging",
   Sci. Rep. 7, 10409 (2017). doi:10.1038/s41598-017-09847-1
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aet_tilt.reconstruction.fourier_grid import MeasuredGrid, lay_onto_grid
from aet_tilt.reconstruction.problem import Problem, VolumeState
from common.data import InputError
from common.fourier import crop_or_pad, fast_size
from common.iteration import Observer, run


@dataclass(frozen=True)
class GenfireSettings:
    """How GENFIRE goes back and forth.

    iterations : >= 1.
    oversampling : size of the padded box over that of the images, >= 1.
    reach : the largest distance of a grid point from an image's plane, grid steps, (0, 1].
    lowest : the resolution enforced in the first and the last iteration, as a fraction of Nyquist, (0, 1].
    positivity : keep the map >= 0.
    """

    iterations: int = 50
    oversampling: float = 2.0
    reach: float = 0.5
    lowest: float = 0.1
    positivity: bool = True

    def __post_init__(self) -> None:
        if self.iterations < 1 or not (math.isfinite(self.oversampling) and self.oversampling >= 1):
            raise InputError(
                f"GENFIRE has {self.iterations} iterations in a box {self.oversampling} times as large, "
                "expected at least 1 iteration and a factor >= 1"
            )
        if not (0 < self.reach <= 1 and 0 < self.lowest <= 1):
            raise InputError(
                f"GENFIRE's reach is {self.reach} and its lowest resolution {self.lowest}, expected both in (0, 1]"
            )


@dataclass(frozen=True)
class GenfireState(VolumeState):
    """r1 : R factor of the grid points measured, all resolutions. padded : (m, m, m), origin at voxel 0."""

    padded: Tensor


def measure(problem: Problem, settings: GenfireSettings) -> MeasuredGrid:
    """The images on the grid of the padded box."""
    size = fast_size(settings.oversampling * problem.images.shape[-1])
    operator = problem.operator
    measured = lay_onto_grid(problem.images, operator.poses, operator.pixel_size, size, settings.reach)
    return measured._replace(values=measured.values / operator.pixel_size)


def start(problem: Problem, settings: GenfireSettings) -> GenfireState:
    """Nothing."""
    size = fast_size(settings.oversampling * problem.images.shape[-1])
    return GenfireState(0, False, torch.zeros_like(problem.support), 1.0, problem.support.new_zeros(size, size, size))


def enforced_resolution(iteration: int, settings: GenfireSettings) -> float:
    """Cycles per voxel up to which the transform is replaced: rises to Nyquist halfway, and falls again."""
    half = max(1.0, (settings.iterations - 1) / 2)
    rise = 1 - abs(iteration - half) / half
    return 0.5 * (settings.lowest + (1 - settings.lowest) * rise)


def step(state: GenfireState, problem: Problem, measured: MeasuredGrid, settings: GenfireSettings) -> GenfireState:
    """Put the measured values into the transform, then positivity and support onto the map (Pryor et al., fig. 1)."""
    m, d = state.padded.shape[-1], problem.images.shape[-1]
    transform = torch.fft.rfftn(state.padded).flatten()
    present = transform[measured.points]
    r1 = float((present - measured.values).abs().sum() / measured.values.abs().sum())
    chosen = measured.frequencies <= enforced_resolution(state.iteration, settings)
    transform[measured.points] = torch.where(chosen, measured.values, present)
    padded = torch.fft.irfftn(transform.view(m, m, m // 2 + 1), s=(m, m, m))
    values = crop_or_pad(torch.fft.fftshift(padded), d, 3) * problem.support
    if settings.positivity:
        values = values.clamp(min=0)
    padded = torch.fft.ifftshift(crop_or_pad(values, m, 3))
    done = state.iteration + 1 >= settings.iterations
    return GenfireState(state.iteration + 1, done, values, r1, padded)


def genfire(
    problem: Problem,
    settings: GenfireSettings | None = None,
    *,
    name: str = "genfire",
    observers: Sequence[Observer] = (),
) -> GenfireState:
    """The map that GENFIRE finds; ``name`` is that of the run, for the observers."""
    chosen = settings or GenfireSettings()
    measured = measure(problem, chosen)
    return run(name, start(problem, chosen), lambda s: step(s, problem, measured, chosen), observers)
