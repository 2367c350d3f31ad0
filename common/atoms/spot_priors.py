"""Priors of the refinement of spots, whose widths are learned from the images."""

from __future__ import annotations

import torch
from torch import Tensor

from common.atoms.spot_image import EIGHT_PI2, SpotParameters
from common.atoms.spot_normal import Linearised, Shared
from common.data import ImageStack

_LEAST_SPREAD = 1e-3  # of a prior's learned width, relative to the first


def shared_prior(here: SpotParameters, system: Linearised) -> Shared:
    """Gradient of the prior: single B factors are drawn to their mean."""
    offset = (here.b_factors - here.b_factors.mean()) / EIGHT_PI2
    pull = system.precision.widening
    same = len(pull) == len(offset)
    return Shared(here.heights.new_zeros(len(here.heights), 4), pull * offset if same else 0 * pull)


def own_precision(spread: Tensor, stack: ImageStack, k: int) -> Tensor:
    """(m, 7 + k) inverse variances of the priors on each image's own parameters; infinite where it is kept."""
    angle = torch.deg2rad(spread[0])
    sigmas = torch.stack((angle, angle, angle, spread[1], spread[1], spread[2], spread[3]))
    return torch.cat((sigmas**-2, sigmas.new_zeros(k))).expand(len(stack), -1)


def learned_spread(spread: Tensor, offset: Tensor, variance: Tensor) -> Tensor:
    """The sigmas that make the offsets most likely: ``sum offset^2 / sum (1 - variance / sigma^2)`` (MacKay's update).

    References
    ----------
    .. [1] D. J. C. MacKay, "Bayesian interpolation", Neural Computation 4, 415 (1992), eq. 5.3.
    """
    scale = torch.stack((torch.deg2rad(spread[0]), *spread[1:]))
    columns = ((0, 1, 2), (3, 4), (5,), (6,))
    new = []
    for sigma, which in zip(scale, columns, strict=True):
        if float(sigma) == 0:
            new.append(sigma)
            continue
        part, known = offset[:, which], variance[:, which]
        determined = (1 - known / sigma**2).clamp(min=0).sum().clamp(min=1e-3 * part.numel())
        new.append(((part**2).sum() / determined).sqrt().clamp(0.3 * sigma, 3 * sigma))
    found = torch.stack((torch.rad2deg(new[0]), *new[1:]))
    return torch.maximum(found, _LEAST_SPREAD * spread.new_tensor([0.3, 0.3, 0.1, 0.02]) * (spread > 0))


def prior_merit(offset: Tensor, precision: Tensor) -> float:
    """Nats of the priors of the images' own parameters."""
    return -float(torch.where(torch.isfinite(precision), precision * offset**2, 0.0).sum()) / 2
