"""EST: equal slope tomography, iterated between the pseudopolar transform and the map [1]_, [2]_.

The rows of each image are transformed, by a fractional Fourier transform, at the points of the pseudopolar line nearest
in slope. In each iteration they replace the samples on their lines; the transform is inverted by conjugate gradients;
then the map is made positive and cut to the support. A few measured lines are never used: the iteration stops when
the error there (R-free) no longer falls.

References
----------
.. [1] Miao, Foerster, Levi, "Equally sloped tomography with oversampling reconstruction", Phys. Rev. B 72, 052103
   (2005). doi:10.1103/PhysRevB.72.052103
.. [2] Scott et al., "Electron tomography at 2.4-angstrom resolution", Nature 483, 444 (2012). doi:10.1038/nature10934
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from aet_tilt.reconstruction.operator import is_single_axis
from aet_tilt.reconstruction.problem import Problem, VolumeState
from aet_tilt.reconstruction.pseudopolar import fractional_fourier, invert_pseudopolar, pseudopolar
from common.data import InputError
from common.fourier import crop_or_pad, shift_images
from common.iteration import Observer, run, step_generator

_ROWS = 16  # slices transformed at once; bounds the memory


@dataclass(frozen=True)
class EstSettings:
    """How EST goes back and forth.

    iterations : at most, >= 1.
    oversampling : of the slices' box, >= 1: the lines lie 35 degrees / (oversampling box size) apart or less.
    inner_steps : conjugate gradient steps of each inversion, >= 1.
    free_fraction : share of the measured lines that is never used, (0, 0.5].
    patience : iterations without a lower R-free before it stops, >= 1.
    positivity : keep the map >= 0.
    seed : of the lines left out.
    """

    iterations: int = 60
    oversampling: float = 1.0
    inner_steps: int = 1
    free_fraction: float = 0.05
    patience: int = 3
    positivity: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if (
            min(self.iterations, self.inner_steps, self.patience) < 1
            or not 0 < self.free_fraction <= 0.5
            or not self.oversampling >= 1
        ):
            raise InputError(
                f"EST has {self.iterations} iterations of {self.inner_steps} steps, a patience of {self.patience} and "
                f"leaves {self.free_fraction} of the lines out, in a box {self.oversampling} times as large, "
                "expected at least 1 of each and a share in (0, 0.5]"
            )


class MeasuredLines(NamedTuple):
    """The images on pseudopolar lines.

    values : (l, r, 2 d) complex, of l lines and r rows, d that of the padded slices. sector, slope : (l,) which line.
    used, free : (l, 1, 2 d) bool, the points that are enforced, and those left out.
    """

    values: Tensor
    sector: Tensor
    slope: Tensor
    used: Tensor
    free: Tensor


@dataclass(frozen=True)
class EstState(VolumeState):
    """values : the best map so far, by R-free. current : (d, d, d) the last. r_free : the lowest, met at ``since``."""

    current: Tensor
    r_free: float
    since: int


def measure(problem: Problem, settings: EstSettings) -> MeasuredLines:
    """The images on the lines nearest in slope; images that share a line are averaged.

    Raises
    ------
    InputError : the poses are not tilts about y.
    """
    poses, pixel = problem.operator.poses, problem.operator.pixel_size
    d = math.ceil(settings.oversampling * problem.images.shape[-1])
    if not is_single_axis(poses):
        raise InputError("EST needs tilts about the y axis, and these poses turn about others: take another method")
    cosine, sine = poses.rotations[:, 0, 0].double(), poses.rotations[:, 0, 2].double()
    flat = cosine.abs() >= sine.abs()
    along, across = torch.where(flat, cosine, sine), torch.where(flat, sine, cosine)
    slope = torch.round(across / along * d)
    radius = (1 + (slope / d).square()).sqrt()
    rows = crop_or_pad(shift_images(problem.images, -poses.shifts / pixel) / pixel, d, 1)
    alpha = (radius * along.sign() / (2 * d))[:, None].expand(rows.shape[:2])
    values = fractional_fourier(rows.to(rows.dtype.to_complex()), alpha, 2 * d)
    k = torch.arange(2 * d, device=rows.device) - d
    inside = (radius[:, None] * k.abs()) < d
    line, number = torch.unique(((~flat).long() * (2 * d + 1) + slope.long() + d), return_inverse=True)
    mean = values.new_zeros(len(line), *values.shape[1:]).index_add(0, number, values)
    mean = mean / torch.bincount(number, minlength=len(line))[:, None, None]
    within = torch.zeros(len(line), 2 * d, dtype=torch.bool, device=rows.device)
    within[number] = inside
    order = torch.randperm(len(line), generator=step_generator(settings.seed, 0)).to(rows.device)
    chosen = torch.zeros_like(within)
    chosen[order[: max(1, round(settings.free_fraction * len(line)))]] = True
    free = within & chosen
    return MeasuredLines(mean, line // (2 * d + 1), line % (2 * d + 1), (within & ~free)[:, None], free[:, None])


def start(problem: Problem) -> EstState:
    """Nothing."""
    nothing = torch.zeros_like(problem.support)
    return EstState(0, False, nothing, 1.0, nothing, float("inf"), 0)


def step(state: EstState, problem: Problem, measured: MeasuredLines, settings: EstSettings) -> EstState:
    """Put the measured lines into the transform, invert it, impose positivity and support (Miao et al., fig. 2)."""
    parts, sums = [], torch.zeros(4, dtype=torch.float64)
    for first in range(0, state.current.shape[1], _ROWS):
        rows = slice(first, first + _ROWS)
        part, more = _step_rows(state.current[:, rows].transpose(0, 1), measured, rows, settings.inner_steps)
        parts.append(part.transpose(0, 1))
        sums += more
    values = torch.cat(parts, 1) * problem.support
    if settings.positivity:
        values = values.clamp(min=0)
    # the error left out was that of the map before this step
    r1, r_free = float(sums[0] / sums[1].clamp(min=1e-30)), float(sums[2] / sums[3].clamp(min=1e-30))
    better = r_free < state.r_free
    since = state.iteration if better else state.since
    best = state.current if better else state.values
    stop = state.iteration - since >= settings.patience
    last = state.iteration + 1 >= settings.iterations
    kept = values if last and not stop and better else best
    return EstState(state.iteration + 1, stop or last, kept, r1, values, min(r_free, state.r_free), since)


def _step_rows(slices: Tensor, measured: MeasuredLines, rows: slice, inner_steps: int) -> tuple[Tensor, Tensor]:
    """The next slices (r, d, d); sums of |error| and |measured| over points used, of squares over those left out."""
    padded = crop_or_pad(slices, measured.values.shape[-1] // 2, 2)
    samples = pseudopolar(padded.to(slices.dtype.to_complex()))
    values = measured.values[:, rows]
    present = samples[:, measured.sector, :, measured.slope]
    error, size = (present - values).abs(), values.abs()
    sums = [(part * measured.used).sum() for part in (error, size)]
    # squares, so that the many points that hold nothing but noise do not drown the few that hold the particle
    sums += [(part.square() * measured.free).sum() for part in (error, size)]
    samples[:, measured.sector, :, measured.slope] = torch.where(measured.used, values, present)
    found = crop_or_pad(invert_pseudopolar(samples, padded, inner_steps), slices.shape[-1], 2)
    return found, torch.stack(sums).double().cpu()


def equal_slope(
    problem: Problem, settings: EstSettings | None = None, *, name: str = "est", observers: Sequence[Observer] = ()
) -> EstState:
    """The map that EST finds; ``name`` is that of the run, for the observers."""
    chosen = settings or EstSettings()
    measured = measure(problem, chosen)
    return run(name, start(problem), lambda s: step(s, problem, measured, chosen), observers)
