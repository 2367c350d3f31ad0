"""Gradient and curvature of the log-likelihood for what all images share: the atoms, their shape, the focus.

Both are taken after every image's own pose, gain and defocus have been eliminated, so they are those of the profile
likelihood to first order.

The shared vector, in this order: positions (3 n), heights (n), B factors (n, if refined), logs of the widths (c), logits of
the fractions after the first (c - 1), log of the focal spread, defocus shift, contrast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.atoms.image_model import cotangent, tangent
from common.atoms.likelihood import (
    OWN,
    Exposure,
    Measurement,
    Normal,
    Parameters,
    Priors,
    batches,
    expose_views,
    normal_equations,
    own_step,
    real_form,
    views_of,
)


@dataclass(frozen=True)
class Layout:
    """Which shared parameters there are: atoms n, Gaussians c of their shape, whether B factors are refined."""

    atoms: int
    components: int
    b_factors: bool

    @property
    def per_atom(self) -> int:
        return 5 if self.b_factors else 4

    @property
    def size(self) -> int:
        return self.per_atom * self.atoms + 2 * self.components - 1 + 3

    def heights(self) -> slice:
        return slice(3 * self.atoms, 4 * self.atoms)


def layout_of(parameters: Parameters, b_factors: bool) -> Layout:
    return Layout(len(parameters.heights), len(parameters.widths), b_factors)


def rigid_motions(positions: Tensor) -> Tensor:
    """Orthonormal basis (3 n, 6) of the translations and small rotations of all atoms together, which no image sees."""
    n = len(positions)
    axes = torch.eye(3, dtype=positions.dtype, device=positions.device)
    centred = positions - positions.mean(0)
    turns = [torch.linalg.cross(axis.expand(n, 3), centred).flatten() for axis in axes]
    basis = torch.stack([axis.repeat(n) for axis in axes] + turns, 1)
    left, sizes, _ = torch.linalg.svd(basis, full_matrices=False)
    return left[:, sizes > 1e-9 * sizes[0]]


def apply_step(parameters: Parameters, step: Tensor, layout: Layout) -> Parameters:
    """Shared parameters moved by ``step`` (p,)."""
    n, c = layout.atoms, layout.components
    sizes = [3 * n, n, n if layout.b_factors else 0, c, c - 1, 1, 1, 1]
    place, height, b_factor, width, fraction, spread, defocus, contrast = torch.split(step, sizes)
    logits = torch.log(parameters.fractions)
    logits = logits - logits[0] + torch.cat((step.new_zeros(1), fraction))
    return replace(
        parameters,
        positions=parameters.positions + place.reshape(n, 3),
        heights=parameters.heights + height,
        b_factors=parameters.b_factors + b_factor if layout.b_factors else parameters.b_factors,
        widths=parameters.widths * torch.exp(width),
        fractions=torch.softmax(logits, 0),
        focal_spread=parameters.focal_spread * torch.exp(spread[0]),
        defocus_shift=parameters.defocus_shift + defocus[0],
        contrast=parameters.contrast + contrast[0],
    )


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
    """Gauss-Newton curvature (p, p), float64, summed over the images ``rows`` with ``weights`` (m,), poses eliminated."""
    total = torch.zeros(layout.size, layout.size, dtype=torch.float64, device=rows.device)
    views = views_of(parameters)
    for row in rows.split(1):
        part, view = data[row], views[row]
        exposure = expose_views(parameters, view, part)
        normal = normal_equations(exposure, view, part, priors)
        columns = real_form(shared_columns(exposure, normal, parameters, part, layout))
        own = real_form(normal.columns[0, :OWN])
        cross = (columns @ own.T).double()
        diagonal = torch.diagonal(normal.matrix[0])
        floor = torch.diag(diagonal.amax() * 1e-12 * torch.ones_like(diagonal))
        inner = torch.linalg.solve(normal.matrix[0] + floor, cross.T)
        total += weights[row] * ((columns @ columns.T).double() - cross @ inner)
    return total


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
    gradients, profiles_, objectives, steps = [], [], [], []
    views = views_of(parameters)
    for batch in batches(len(data), batch_size, data.level.device):
        part, view = data[batch], views[batch]
        exposure = expose_views(parameters, view, part)
        normal = normal_equations(exposure, view, part, priors)
        step = own_step(normal, torch.full_like(normal.objective, damping))
        rest, profile = unexplained(normal, step)
        gradients.append(shared_gradient(exposure, normal, rest, parameters, part, layout))
        profiles_.append(profile)
        objectives.append(normal.objective)
        steps.append(step)
    return Slope(torch.cat(gradients), torch.cat(profiles_), torch.cat(objectives), torch.cat(steps))
