"""How well the images determine each atom: Fisher information, sigmas and the Cramer-Rao bound."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from common.atoms.information import curvature, slope_of
from common.atoms.model import AtomicModel
from common.atoms.refinement import prepare
from common.atoms.shared import RefinementSettings, layout_of, priors_of, rigid_motions, shared_precision
from common.data import ImageStack
from common.iteration import step_generator
from common.noise import NoiseModel


def fisher(
    stack: ImageStack,
    noise: NoiseModel,
    model: AtomicModel,
    settings: RefinementSettings | None = None,
    *,
    n_images: int = 150,
) -> AtomicModel:
    """Add sigmas and the Cramer-Rao bound to a refined model.

    Parameters
    ----------
    stack, noise, model : as they were refined.
    n_images : images from whose derivatives the information is summed, chosen at random and scaled up. With 150 the
        sigmas are within about 1 % of those from all images.

    Returns
    -------
    The model with ``covariance``, ``position_sigma`` and ``cramer_rao_pm``.

    Notes
    -----
    The information of atoms and shared parameters is taken after eliminating each image's own pose, gain and defocus
    (Schur complement) [1]_. Rigid motions, which images cannot see, are projected out. The bound is from the inverse
    information ``H^-1``; the sigmas are from the sandwich ``H^-1 (sum g g') H^-1`` with the measured gradient g of
    each image [2]_, which stays honest where the noise is not as white, or the model not as right, as the likelihood
    says.

    References
    ----------
    .. [1] B. Triggs et al., "Bundle Adjustment - A Modern Synthesis", LNCS 1883, 298 (2000), section 6.1.
    .. [2] H. White, "Maximum likelihood estimation of misspecified models", Econometrica 50, 1 (1982).
    """
    settings = settings or RefinementSettings()
    data = prepare(stack, noise, model.parameters, settings)[1]
    parameters, weights = model.parameters, model.weights
    layout = layout_of(parameters, settings.refine_b_factors)
    priors = priors_of(settings)
    m, n = len(data), layout.atoms
    used = torch.nonzero(weights > 0)[:, 0].cpu()
    rows = used[torch.randperm(len(used), generator=step_generator(settings.seed, 0))[:n_images]].sort().values
    rows = rows.to(weights.device)
    share = float(weights.sum() / weights[rows].sum())
    information = share * curvature(parameters, data, rows, weights, priors=priors, layout=layout)
    information += torch.diag(shared_precision(parameters, settings, layout, data))
    slope = slope_of(parameters, data, priors=priors, layout=layout, damping=1e-7, batch_size=settings.batch_size)
    gradients = weights[:, None] * slope.gradients
    gradients = gradients - weights[:, None] * gradients.sum(0) / weights.sum()
    scatter = gradients.T @ gradients * (m / max(m - 1, 1))
    rigid = rigid_motions(parameters.positions)
    stiff = information.clone()
    stiff[: 3 * n, : 3 * n] += torch.diagonal(information)[: 3 * n].mean() * rigid @ rigid.T
    inverse = torch.linalg.inv(stiff)
    bound = without_rigid(inverse[: 3 * n, : 3 * n], rigid)
    covariance = without_rigid((inverse @ scatter @ inverse)[: 3 * n, : 3 * n], rigid)
    sigma = torch.sqrt(torch.diagonal(covariance).reshape(n, 3).mean(1))
    cramer_rao = 100 * math.sqrt(float(torch.trace(bound)) / n)
    return replace(model, covariance=covariance, position_sigma=sigma, cramer_rao_pm=cramer_rao)


def without_rigid(covariance: Tensor, rigid: Tensor) -> Tensor:
    """Covariance (3 n, 3 n) of what remains after the best rigid fit; ``rigid`` (3 n, k) orthonormal."""
    half = covariance - rigid @ (rigid.T @ covariance)
    return half - (half @ rigid) @ rigid.T
