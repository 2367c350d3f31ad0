"""Gradient and curvature of the log-likelihood for what all images share.

Both are taken after every image's own pose, gain and defocus have been eliminated (Schur complement), so they are those
of the profile likelihood to first order: the atoms only see the residual that no change of an image's own parameters
can
explain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.atoms.image_model import cotangent, tangent
from common.atoms.likelihood import Exposure, Measurement, Parameters, expose_views, real_form, views_of
from common.atoms.pose_fit import OWN, Normal, Priors, normal_equations, own_step
from common.atoms.shared import Layout
from common.parallel import map_over_shards, sum_over_shards


def unexplained(normal: Normal, step: Tensor) -> tuple[Tensor, Tensor]:
    """The residual (b, f) and objective (b,) predicted after each image's own ``step`` (b, 7)."""
    change = step.to(normal.columns.real.dtype)[:, None].to(normal.columns.dtype) @ normal.columns[:, :OWN]
    curved = (step[:, None] @ normal.matrix @ step[..., None])[:, 0, 0] / 2
    return normal.residual + change[:, 0], normal.objective + (step * normal.slope).sum(1) + curved


def shared_gradient(
    exposure: Exposure, normal: Normal, rest: Tensor, parameters: Parameters, data: Measurement, layout: Layout
) -> Tensor:
    """Gradient (b, p) of each image's objective by the shared parameters, for the residual ``rest`` (b, f), float64."""
    drawn, b = exposure.drawn, len(rest)
    n, c = layout.atoms, layout.components
    back = cotangent(exposure.wave, rest * exposure.gain[:, None], data.band)
    rows = drawn.by @ back
    by_weight = (rows * drawn.bx).sum(-1)
    by_x = (rows * drawn.bx * drawn.ux).sum(-1)
    by_y = ((drawn.by * drawn.uy) @ back * drawn.bx).sum(-1)
    by_variance = (rows * drawn.spread_x()).sum(-1) + (drawn.spread_y() @ back * drawn.bx).sum(-1)
    by_weight = by_weight.reshape(b, n, c).double()
    plane = torch.stack((by_x, by_y), -1) * exposure.weights[:, None]
    plane = plane.reshape(b, n, c, 2).sum(2)
    by_variance = (by_variance * exposure.weights).reshape(b, n, c).double()
    by_component = (by_weight * parameters.heights[:, None]).sum(1)
    fractions, widths = parameters.fractions, parameters.widths
    mean = (by_component * fractions).sum(1, keepdim=True)
    parts = [
        (plane @ exposure.rotations[:, :2]).flatten(1).double(),
        (by_weight * fractions).sum(-1),
        by_variance.sum(-1) / (8 * math.pi**2) if layout.b_factors else by_weight.new_zeros(b, 0),
        by_variance.sum(1) * 2 * widths**2,
        (fractions * (by_component - mean))[:, 1:],
    ]
    flat = real_form(normal.columns[:, [7, 6, 5]])
    parts.append((flat @ real_form(rest)[..., None])[..., 0].double())
    return torch.cat(parts, 1)


def shared_columns(
    exposure: Exposure, normal: Normal, parameters: Parameters, data: Measurement, layout: Layout
) -> Tensor:
    """Derivatives (p, f) of the model of ONE image (b = 1) by the shared parameters."""
    drawn, band = exposure.drawn, data.band
    n, c = layout.atoms, layout.components
    w = exposure.weights.reshape(n, c, 1)
    bx, by, ux, uy = ((x[0].reshape(n, c, -1)) for x in (drawn.bx, drawn.by, drawn.ux, drawn.uy))
    sx, sy = drawn.spread_x()[0].reshape(n, c, -1), drawn.spread_y()[0].reshape(n, c, -1)
    fractions = parameters.fractions.to(w.dtype)[:, None]
    along_x = (w * by).mT @ (ux * bx)
    along_y = (w * by * uy).mT @ bx
    maps = [along_x, along_y, (fractions * by).mT @ bx]
    if layout.b_factors:
        maps.append(((w * by).mT @ sx + (w * sy).mT @ bx) / (8 * math.pi**2))
    shape = []
    for component in range(c):
        own_w, pick = w[:, component], (slice(None), component)
        broader = (own_w * by[pick]).mT @ sx[pick] + (own_w * sy[pick]).mT @ bx[pick]
        shape.append(broader * 2 * float(parameters.widths[component]) ** 2)
    drawn_each = [(parameters.heights.to(w.dtype)[:, None] * by[:, k]).mT @ bx[:, k] for k in range(c)]
    mean = torch.stack([float(f) * one for f, one in zip(parameters.fractions, drawn_each, strict=True)]).sum(0)
    shape += [float(parameters.fractions[k]) * (drawn_each[k] - mean) for k in range(1, c)]
    change = torch.cat((*maps, torch.stack(shape)))
    columns = tangent(exposure.wave, change[None], band)[0] * exposure.gain[0]
    rotation = exposure.rotations[0, :2].to(columns.dtype)
    plane = torch.stack((columns[:n], columns[n : 2 * n]), 1)  # (n, 2, f)
    return torch.cat(((rotation.mT @ plane).flatten(0, 1), columns[2 * n :], normal.columns[0, [7, 6, 5]]))


def curvature(
    parameters: Parameters, data: Measurement, rows: Tensor, weights: Tensor, *, priors: Priors, layout: Layout
) -> Tensor:
    """Gauss-Newton curvature (p, p), float64, over the images ``rows`` with ``weights`` (m,), poses eliminated."""

    def partial(shard: Tensor) -> tuple[Tensor, ...]:
        total = torch.zeros(layout.size, layout.size, dtype=torch.float64, device=rows.device)
        for row in rows[shard.to(rows.device)].split(1):
            total += weights[row] * curvature_of_image(parameters, data, row, priors=priors, layout=layout)
        return (total,)

    return sum_over_shards(partial, len(rows))[0]


def curvature_of_image(
    parameters: Parameters, data: Measurement, row: Tensor, *, priors: Priors, layout: Layout
) -> Tensor:
    """What ONE image, ``row`` (1,), adds to `curvature`: (p, p) float64."""
    part, view = data[row], views_of(parameters)[row]
    exposure = expose_views(parameters, view, part)
    normal = normal_equations(exposure, view, part, priors)
    columns = real_form(shared_columns(exposure, normal, parameters, part, layout))
    own = real_form(normal.columns[0, :OWN])
    cross = (columns @ own.T).double()
    diagonal = torch.diagonal(normal.matrix[0])
    floor = torch.diag(diagonal.amax() * 1e-12 * torch.ones_like(diagonal))
    inner = torch.linalg.solve(normal.matrix[0] + floor, cross.T)
    return (columns @ columns.T).double() - cross @ inner


@dataclass(frozen=True)
class Slope:
    """One pass over all images at the present parameters.

    gradients : (m, p) of each image, poses eliminated. profile : (m,) objectives with the best linear pose change.
    objective : (m,) objectives as they stand. steps : (m, 7) own steps.
    """

    gradients: Tensor
    profile: Tensor
    objective: Tensor
    steps: Tensor


def slope_of(
    parameters: Parameters, data: Measurement, *, priors: Priors, layout: Layout, damping: float, batch_size: int
) -> Slope:
    views = views_of(parameters)

    def partial(shard: Tensor) -> tuple[Tensor, ...]:
        found = []
        for batch in shard.to(data.level.device).split(batch_size):
            part, view = data[batch], views[batch]
            exposure = expose_views(parameters, view, part)
            normal = normal_equations(exposure, view, part, priors)
            step = own_step(normal, torch.full_like(normal.objective, damping))
            rest, profile = unexplained(normal, step)
            gradient = shared_gradient(exposure, normal, rest, parameters, part, layout)
            found.append((gradient, profile, normal.objective, step))
        return tuple(torch.cat(column) for column in zip(*found, strict=True))

    return Slope(*map_over_shards(partial, len(data)))
