"""One Gauss-Newton step of every image's pose against a volume: two shifts, three small turns, scale and offset."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from common.fourier import irfft2_origin
from common.gridding import OVERSAMPLING, interpolate_with_gradient, oversampled_transform
from common.projection import shift_factors, slice_frequencies, slice_points
from common.rotations import nearest_rotation, rotation_from_vector

_MOST_SHIFT, _MOST_TURN = 0.5, 0.5  # of one step: pixels, degrees


class PoseStep(NamedTuple):
    """shifts (n, 2) pixels, turns (n, 3) radian about the axes of the view, scale (n,) factors and offsets (n,) to be
    added; residual (n,) rms of image minus model before the step, over rms of the image."""

    shifts: Tensor
    turns: Tensor
    scales: Tensor
    offsets: Tensor
    residual: Tensor


def pose_step(
    images: Tensor,
    weights: Tensor,
    values: Tensor,
    rotations: Tensor,
    shifts: Tensor,
    *,
    angle_sigma: float | None,
    batch_size: int = 32,
) -> PoseStep:
    """The step towards the least squares of ``weights * (image - scale * model - offset)``.

    Parameters
    ----------
    images : (n, d, d), scaled to the volume. weights : (d, d) or (n, d, d) >= 0.
    values : (d, d, d) volume.
    rotations, shifts : (n, 3, 3) and (n, 2), pixels.
    angle_sigma : degrees that an image's angles may be off, rms (a Gaussian prior, the noise being the residual's);
        None leaves the angles as they are.

    Notes
    -----
    Exact derivatives of central slices: ``exp(w) R`` moves the point ``R' k`` by ``R' (k x w)``.
    """
    d = values.shape[-1]
    transform = oversampled_transform(values)
    frequencies, index = slice_frequencies(d, (d - 1) // 2, dtype=values.dtype, device=values.device)
    k = torch.cat((frequencies, torch.zeros_like(frequencies[:, :1])), -1)
    weights = weights.expand_as(images)
    steps = []
    for first in range(0, len(images), batch_size):
        part = slice(first, first + batch_size)
        turned, n = rotations[part], len(rotations[part])
        found, slopes = interpolate_with_gradient(transform, slice_points(turned, frequencies))
        phases = shift_factors(shifts[part], d).flatten(1)[:, index]
        model = found.view(n, -1) * phases
        columns = [(-2j * math.pi / d * frequencies[:, i]) * model for i in range(2)]
        if angle_sigma is not None:
            view = torch.einsum("npj,nij->npi", slopes.view(n, -1, 3), turned.to(slopes.dtype))
            turn = OVERSAMPLING * torch.linalg.cross(view, k.to(view.dtype).expand_as(view)) * phases[..., None]
            columns += list(turn.unbind(-1))
        stacked = torch.stack((*columns, model), 1)
        spectra = stacked.new_zeros(n, stacked.shape[1], d * (d // 2 + 1)).index_copy(2, index, stacked)
        derivatives = irfft2_origin(spectra.view(n, -1, d, d // 2 + 1), d)
        steps.append(_solve(images[part], weights[part], derivatives, angle_sigma))
    return PoseStep(*(torch.cat(each) for each in zip(*steps, strict=True)))


def _solve(images: Tensor, weights: Tensor, derivatives: Tensor, angle_sigma: float | None) -> PoseStep:
    """From derivatives (n, c, d, d), the model itself the last, by the normal equations."""
    n = len(images)
    residual = (weights * (images - derivatives[:, -1])).flatten(1)
    columns = torch.cat((derivatives, torch.ones_like(derivatives[:, :1])), 1) * weights[:, None]
    jacobian = columns.flatten(2)
    normal = jacobian @ jacobian.mT
    gradient = (jacobian @ residual[..., None])[..., 0]
    if angle_sigma is not None:
        variance = residual.square().sum(-1) / weights.square().flatten(1).sum(-1).clamp(min=1e-12)
        prior = torch.zeros_like(gradient)
        prior[:, 2:5] = (variance / math.radians(angle_sigma) ** 2)[:, None]
        normal = normal + torch.diag_embed(prior)
    floor = 1e-6 * normal.diagonal(dim1=1, dim2=2) + torch.finfo(images.dtype).tiny
    step = torch.linalg.solve(normal + torch.diag_embed(floor), gradient)
    turns = step[:, 2:5] if angle_sigma is not None else step.new_zeros(n, 3)
    measured = (weights * images).flatten(1).norm(dim=-1).clamp(min=torch.finfo(images.dtype).tiny)
    return PoseStep(
        step[:, :2].clamp(-_MOST_SHIFT, _MOST_SHIFT),
        turns.clamp(-math.radians(_MOST_TURN), math.radians(_MOST_TURN)),
        1 + step[:, -2],
        step[:, -1],
        residual.norm(dim=-1) / measured,
    )


def without_common_translation(steps: Tensor, rotations: Tensor) -> Tensor:
    """Shifts (n, 2) less those of the best common movement of the specimen (three numbers), which no image tells."""
    design = rotations[:, :2].reshape(-1, 3)
    movement = torch.linalg.lstsq(design.double(), steps.reshape(-1, 1).double(), driver="gelsd").solution
    return steps - (design @ movement.to(steps)).view(-1, 2)


def turned(rotations: Tensor, turns: Tensor, reference: Tensor) -> Tensor:
    """``exp(turns) @ rotations``, the common turn of the specimen away from ``reference`` (n, 3, 3) undone."""
    moved = rotation_from_vector(turns) @ rotations
    return moved @ nearest_rotation((moved.mT @ reference).mean(0))
