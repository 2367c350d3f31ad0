"""Each image's own parameters, fitted with the atoms held: rotation, shift, gain, defocus.

Seven for every image: a rotation (3, a vector in the frame of the view, radian), a shift (2, angstrom), the log of
the gain
and an offset of the defocus (angstrom), the last two with a prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from common.atoms.image_model import lens_tangents, render, tangent
from common.atoms.likelihood import Exposure, Measurement, Parameters, Views, expose_views, real_form
from common.parallel import map_over_shards
from common.rotations import rotation_from_vector

OWN = 7  # parameters of each image


def own_columns(exposure: Exposure, data: Measurement) -> Tensor:
    """Derivatives (b, 8, f) of the model by each image's own parameters, and by the log of the focal spread.

    Without optics the last two columns are zero.
    """
    drawn, w, band = exposure.drawn, exposure.weights, data.band
    x, y, z = exposure.placed.unbind(-1)
    slope_x, slope_y = drawn.bx * drawn.ux, drawn.by * drawn.uy
    tilt_x = render(slope_y, drawn.bx, -w * z)
    tilt_y = render(drawn.by, slope_x, w * z)
    turn = render(torch.cat((slope_y, drawn.by), 1), torch.cat((drawn.bx, slope_x), 1), torch.cat((w * x, -w * y), 1))
    turned = tangent(exposure.wave, torch.stack((tilt_x, tilt_y, turn), 1), band) * exposure.gain[:, None, None]
    step = -2j * math.pi * exposure.model
    moved = torch.stack((step * band.kx, step * band.ky, exposure.model), 1)
    if exposure.wave is None:
        return torch.cat((turned, moved, torch.zeros_like(moved[:, :2])), 1)
    focus = lens_tangents(exposure.wave, band) * exposure.gain[:, None, None]
    return torch.cat((turned, moved, focus), 1)


@dataclass(frozen=True)
class Priors:
    """Standard deviations of the images' own gain (log) and defocus offset (angstrom)."""

    gain: float = 0.05
    defocus: float = 20.0

    def precision(self, like: Tensor) -> Tensor:
        """(7,) diagonal; zero where nothing is known."""
        return like.new_tensor([0.0] * 5 + [self.gain**-2, self.defocus**-2])


@dataclass(frozen=True)
class Normal:
    """The normal equations of each image's own parameters.

    objective : (b,) half the sum of squares plus priors, float64. matrix : (b, 7, 7). slope : (b, 7) gradient.
    residual : (b, f) model minus data. columns : (b, 8, f), `own_columns`.
    """

    objective: Tensor
    matrix: Tensor
    slope: Tensor
    residual: Tensor
    columns: Tensor


def normal_equations(exposure: Exposure, views: Views, data: Measurement, priors: Priors) -> Normal:
    residual = exposure.model - data.spectra
    columns = own_columns(exposure, data)
    flat, rest = real_form(columns[:, :OWN]), real_form(residual)
    own = torch.stack((views.gains, views.defocus), 1)
    precision = priors.precision(own)
    matrix = (flat @ flat.mT).double() + torch.diag(precision)
    slope = (flat @ rest[..., None])[..., 0].double()
    slope[:, 5:] += own * precision[5:]
    half = (rest.double() ** 2).sum(1) / 2 + (own**2 * precision[5:]).sum(1) / 2
    return Normal(half, matrix, slope, residual, columns)


# largest step of an image's own parameters: radian, angstrom, log, angstrom
LARGEST_STEP = (0.08, 0.08, 0.08, 0.3, 0.3, 0.3, 30.0)


def own_step(normal: Normal, damping: Tensor) -> Tensor:
    """Levenberg-Marquardt step (b, 7), limited in length; a column of zeros stays where it is."""
    diagonal = torch.diagonal(normal.matrix, dim1=-2, dim2=-1)
    floor = diagonal.amax(1, keepdim=True) * 1e-12 + 1e-30
    matrix = normal.matrix + torch.diag_embed(diagonal * damping[:, None] + floor)
    step = -torch.linalg.solve(matrix, normal.slope)
    limit = step.new_tensor(LARGEST_STEP)
    return step / (step.abs() / limit).amax(1, keepdim=True).clamp(min=1.0)


def move(views: Views, step: Tensor) -> Views:
    return Views(
        rotation_from_vector(step[:, :3]) @ views.rotations,
        views.shifts + step[:, 3:5],
        views.gains + step[:, 5],
        views.defocus + step[:, 6],
    )


def choose(condition: Tensor, yes: Views, no: Views) -> Views:
    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return Views(*(pick(getattr(yes, f.name), getattr(no, f.name)) for f in fields(yes)))


def fit_views(
    parameters: Parameters,
    views: Views,
    data: Measurement,
    rows: Tensor,
    *,
    priors: Priors,
    iterations: int,
    batch_size: int = 32,
) -> tuple[Views, Tensor]:
    """Refine each view by itself, atoms fixed: Levenberg-Marquardt on its seven parameters.

    Parameters
    ----------
    views : v starting points. rows : (v,) image of ``data`` that each belongs to (several views may share one).

    Returns
    -------
    Views no worse than the start, and their objectives (v,), half the sum of squares plus priors.
    """

    def fit(shard: Tensor) -> tuple[Tensor, ...]:
        fitted = [
            _fit_batch(parameters, views[batch], data[rows[batch]], priors, iterations)
            for batch in shard.to(rows.device).split(batch_size)
        ]
        return tuple(torch.cat(column) for column in zip(*fitted, strict=True))

    *own, objectives = map_over_shards(fit, len(views))
    return Views(*own), objectives


def _fit_batch(
    parameters: Parameters, best: Views, part: Measurement, priors: Priors, iterations: int
) -> tuple[Tensor, ...]:
    normal = normal_equations(expose_views(parameters, best, part), best, part, priors)
    damping = torch.full_like(normal.objective, 1e-3)
    for _ in range(iterations - 1):
        trial = move(best, own_step(normal, damping))
        new = normal_equations(expose_views(parameters, trial, part), trial, part, priors)
        better = new.objective < normal.objective
        best = choose(better, trial, best)
        normal = replace(
            normal,
            objective=torch.where(better, new.objective, normal.objective),
            matrix=torch.where(better[:, None, None], new.matrix, normal.matrix),
            slope=torch.where(better[:, None], new.slope, normal.slope),
        )
        damping = torch.where(better, damping * 0.2, damping * 10)
    # the last step needs no derivatives
    trial = move(best, own_step(normal, damping))
    objective = objective_of(expose_views(parameters, trial, part), trial, part, priors)
    best = choose(objective < normal.objective, trial, best)
    return best.rotations, best.shifts, best.gains, best.defocus, torch.minimum(objective, normal.objective)


def objective_of(exposure: Exposure, views: Views, data: Measurement, priors: Priors) -> Tensor:
    """(b,) half the sum of squares plus priors, float64."""
    own = torch.stack((views.gains, views.defocus), 1)
    rest = real_form(exposure.model - data.spectra)
    return (rest.double() ** 2).sum(1) / 2 + (own**2 * priors.precision(own)[5:]).sum(1) / 2
