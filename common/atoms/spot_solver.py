"""The normal equations of spots solved by preconditioned conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from common.atoms.spot_image import variances
from common.atoms.spot_normal import Linearised, Shared, product
from common.atoms.spot_rendering import spot_information
from common.parallel import sum_over


@dataclass(frozen=True)
class Preconditioner:
    """Inverse of the matrix without what couples atoms to each other. blocks : (n, 4, 4). widening : (g,)."""

    blocks: Tensor
    widening: Tensor

    def apply(self, vector: Shared) -> Shared:
        return Shared((self.blocks @ vector.atoms[..., None])[..., 0], self.widening * vector.widening)


class AtomInformation(NamedTuple):
    """Information of each atom alone: blocks (n, 4, 4) of height and position, and widening (g,)."""

    blocks: Tensor
    widening: Tensor


def atom_information(system: Linearised) -> AtomInformation:
    """What the images say of each atom, all else known."""
    n, pixel = len(system.groups), system.pixel_size

    def of_images(rows: Tensor) -> tuple[Tensor, Tensor]:
        batch = system.batch(rows)
        part = batch.parameters
        flat = spot_information(batch.weight, batch.patches).double()
        scale = part.scales[:, None]
        turn = torch.zeros(len(part.scales), n, 3, 4, dtype=torch.float64, device=flat.device)
        turn[..., 0, 0] = scale
        turn[..., 1:, 1:] = (scale * part.heights)[..., None, None] * part.rotations[:, None, :2] / pixel
        bend = (flat[..., 1, 1] + flat[..., 2, 2]) / (4 * variances(part, pixel))
        each = ((scale * part.heights) ** 2 * bend).sum(0) / pixel**4
        wide = torch.zeros_like(system.precision.widening).index_add(0, system.groups, each)
        return (turn.mT @ flat @ turn).sum(0), wide

    return AtomInformation(*sum_over(of_images, system.rows))


def precondition(system: Linearised, alone: AtomInformation, damping: float) -> Preconditioner:
    blocks, wide = alone
    diagonal = torch.diagonal(blocks, dim1=1, dim2=2)
    extra = damping * diagonal + system.precision.atoms + 1e-12 * diagonal.amax()
    return Preconditioner(
        torch.linalg.inv(blocks + torch.diag_embed(extra)),
        1 / ((1 + damping) * wide + system.precision.widening + 1e-12 * wide.amax()),
    )


def solve(
    system: Linearised, alone: AtomInformation, right: Shared, *, damping: float, tolerance: float, most: int
) -> tuple[Shared, int]:
    """Conjugate gradients on ``(matrix + damping * diagonal) x = right``; x and the number of products.

    alone : of the atoms of the system. tolerance : of the residual in the preconditioner's norm, relative.
    """
    inverse = precondition(system, alone, damping)
    diagonal = Shared(torch.diagonal(alone.blocks, dim1=1, dim2=2), alone.widening) * damping
    found = right * 0.0
    rest, direction = right, inverse.apply(right)
    energy = first = float(rest.dot(direction))
    for k in range(most):
        if energy <= tolerance**2 * first or energy <= 0:
            return found, k
        turned = product(system, direction)
        turned = turned + Shared(diagonal.atoms * direction.atoms, diagonal.widening * direction.widening)
        length = energy / float(direction.dot(turned))
        found, rest = found + direction * length, rest + turned * (-length)
        ahead = inverse.apply(rest)
        before, energy = energy, float(rest.dot(ahead))
        direction = ahead + direction * (energy / before)
    return found, most
