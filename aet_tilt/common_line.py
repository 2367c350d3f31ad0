"""A first alignment without a volume: centre of mass, the line that all tilts share, and the tilt axis from it.

All images of a tilt series share the central line of their transforms along the tilt axis: the specimen summed over
planes across the axis [1]_.

References
----------
.. [1] Scott et al., "Electron tomography at 2.4-angstrom resolution", Nature 483, 444 (2012). doi:10.1038/nature10934
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.rotations import rotation_from_vector

_FINE = 8  # trial shifts a pixel


def centre_of_mass(images: Tensor, inside: Tensor) -> Tensor:
    """(n, 2) of (x, y), pixels from the origin, of background-free images (n, d, d) within the mask ``inside``."""
    d = images.shape[-1]
    axis = torch.arange(d, dtype=images.dtype, device=images.device) - d // 2
    weight = images * inside
    total = weight.sum((-2, -1))
    sums = torch.stack(((weight.sum(-2) * axis).sum(-1), (weight.sum(-1) * axis).sum(-1)), -1)
    return torch.where(total[:, None] > 0, sums / torch.where(total > 0, total, 1.0)[:, None], 0.0)


def axis_direction(rotations: Tensor) -> Tensor:
    """The tilt axis in each image, (n, 2) of length <= 1: the direction that the beam stays off most."""
    beams = rotations[:, 2].double()
    _, vectors = torch.linalg.eigh(beams.mT @ beams)
    axis = vectors[:, 0]
    axis = axis * (1 if float(axis[axis.abs().argmax()]) > 0 else -1)
    return (rotations[:, :2].double() @ axis).to(rotations.dtype)


def central_lines(images: Tensor, directions: Tensor, n_frequencies: int) -> Tensor:
    """Transforms (n, k) of images (n, d, d) at 1..k steps of 1 / d along unit directions (n, 2), about pixel d // 2."""
    d = images.shape[-1]
    x = torch.arange(d, dtype=images.dtype, device=images.device) - d // 2
    k = torch.arange(1, n_frequencies + 1, dtype=images.dtype, device=images.device)
    turns = -2 * math.pi / d * k[:, None] * x
    along_x, along_y = (
        torch.polar(torch.ones_like(turns), torch.zeros_like(turns))[None] * torch.exp(1j * turns * u[:, None, None])
        for u in directions.unbind(-1)
    )
    return ((images.to(along_x.dtype) @ along_x.mT) * along_y.mT).sum(-2)


def align_lines(lines: Tensor, box_size: int, *, n_rounds: int = 6) -> tuple[Tensor, float]:
    """Positions (n,), pixels, of the lines (n, k) along their direction, mean 0; and their coherence.

    Returns
    -------
    ``lines * exp(2 pi i k position / d)`` agree best; coherence is the share of each frequency's power in
    their mean, averaged over frequencies, [0, 1].
    """
    n, count = lines.shape
    k = 2 * math.pi / box_size * torch.arange(1, count + 1, dtype=lines.real.dtype, device=lines.device)
    trials = torch.arange(-box_size * _FINE // 4, box_size * _FINE // 4 + 1, device=lines.device) / _FINE
    waves = torch.exp(1j * trials[:, None] * k)
    positions = lines.real.new_zeros(n)
    reference = lines[n // 2]
    for round_ in range(n_rounds):
        score = ((lines * reference.conj()) @ waves.mT).real
        best = score.argmax(-1).clamp(1, len(trials) - 2)
        low, middle, high = (torch.take_along_dim(score, (best + j)[:, None], -1)[:, 0] for j in (-1, 0, 1))
        curvature = low - 2 * middle + high
        part = torch.where(curvature < 0, (low - high) / torch.where(curvature < 0, 2 * curvature, 1.0), 0.0)
        positions = trials[best] + part.clamp(-0.5, 0.5) / _FINE
        positions = positions - (positions.median() if round_ == 0 else positions.mean())
        reference = (lines * torch.exp(1j * positions[:, None] * k)).mean(0)
    power = lines.abs().square().mean(0).clamp(min=torch.finfo(lines.real.dtype).tiny)
    return positions, float((reference.abs().square() / power).mean())


def common_line_shifts(images: Tensor, rotations: Tensor, shifts: Tensor, n_frequencies: int) -> Tensor:
    """Shifts (n, 2), pixels, whose components along the tilt axis are those of the common line, their mean kept."""
    directions = axis_direction(rotations)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    found, _ = align_lines(central_lines(images, directions, n_frequencies), images.shape[-1])
    before = (shifts * directions).sum(-1)
    return shifts + ((found - found.mean() + before.mean()) - before)[:, None] * directions


def find_tilt_axis(
    images: Tensor, rotations: Tensor, n_frequencies: int, *, reach: float = 10.0, step: float = 0.5
) -> tuple[float, float]:
    """The in-plane turn (degrees) of all views that makes their common lines agree best, and the coherence there.

    Parameters
    ----------
    images : (n, d, d) without background. rotations : (n, 3, 3) nominal.
    reach, step : degrees about the nominal axis; refined below a step by a parabola.

    Returns
    -------
    ``Rz(turn) @ rotations`` are the views. Some 20 images over 60 degrees or more determine it to half a degree.
    """
    directions = axis_direction(rotations)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    turns = torch.arange(-round(reach / step), round(reach / step) + 1) * step
    scores = []
    for turn in torch.deg2rad(turns).tolist():
        c, s = math.cos(turn), math.sin(turn)
        turned = directions @ directions.new_tensor([[c, s], [-s, c]])
        scores.append(align_lines(central_lines(images, turned, n_frequencies), images.shape[-1])[1])
    best = max(range(len(scores)), key=scores.__getitem__)
    fraction = 0.0
    if 0 < best < len(scores) - 1:
        low, middle, high = scores[best - 1 : best + 2]
        curvature = low - 2 * middle + high
        fraction = (low - high) / (2 * curvature) if curvature < 0 else 0.0
    return float(turns[best]) + fraction * step, scores[best]


def turn_views(rotations: Tensor, degrees: float) -> Tensor:
    """``Rz(degrees) @ rotations``."""
    turn = rotations.new_tensor([0.0, 0.0, math.radians(degrees)])
    return rotation_from_vector(turn) @ rotations
