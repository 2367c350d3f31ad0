"""One Gauss-Newton step of every image's pose against a volume: two shifts, three small turns, scale and offset."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from aet_tilt.reconstruction.operator import make_operator
from common.data import Poses
from common.fourier import irfft2_origin, rfft2_origin
from common.gridding import OVERSAMPLING, interpolate_with_gradient, oversampled_transform
from common.least_squares import least_squares
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
    frequencies, index = slice_frequencies(d, (d - 1) // 2, dtype=values.dtype, device=values.device)
    if angle_sigma is None:
        images_of = make_operator(Poses(rotations, shifts), d, 1.0).project(values)
        model = rfft2_origin(images_of).flatten(1)[:, index]
        turns = model.new_zeros(len(model), 0, len(index))
    else:
        model, turns = _slices_and_turns(values, rotations, shifts, frequencies, index)
    moves = (-2j * math.pi / d * frequencies.T) * model[:, None]
    columns = torch.cat((moves, turns, model[:, None]), 1)
    weights = weights.expand_as(images)
    steps = []
    for part in torch.arange(len(images), device=values.device).split(batch_size):
        these = columns[part]
        spectra = these.new_zeros(*these.shape[:2], d * (d // 2 + 1)).index_copy(2, index, these)
        derivatives = irfft2_origin(spectra.view(*spectra.shape[:2], d, d // 2 + 1), d)
        steps.append(_solve(images[part], weights[part], derivatives, angle_sigma))
    return PoseStep(*(torch.cat(each) for each in zip(*steps, strict=True)))


def _slices_and_turns(
    values: Tensor, rotations: Tensor, shifts: Tensor, frequencies: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Central slices (n, p) of the shifted images, and how they change with turns about the view's axes (n, 3, p)."""
    n, d = len(rotations), values.shape[-1]
    found, slopes = interpolate_with_gradient(oversampled_transform(values), slice_points(rotations, frequencies))
    phases = shift_factors(shifts, d).flatten(1)[:, index]
    view = torch.einsum("npj,nij->npi", slopes.view(n, -1, 3), rotations.to(slopes.dtype))
    k = torch.cat((frequencies, torch.zeros_like(frequencies[:, :1])), -1).to(view.dtype)
    turns = OVERSAMPLING * torch.linalg.cross(view, k.expand_as(view)) * phases[..., None]
    return found.view(n, -1) * phases, turns.mT


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
    movement = least_squares(design.double(), steps.reshape(-1, 1).double())
    return steps - (design @ movement.to(steps)).view(-1, 2)


def turned(rotations: Tensor, turns: Tensor, reference: Tensor) -> Tensor:
    """``exp(turns) @ rotations``, the common turn of the specimen away from ``reference`` (n, 3, 3) undone."""
    moved = rotation_from_vector(turns) @ rotations
    return moved @ nearest_rotation((moved.mT @ reference).mean(0))
