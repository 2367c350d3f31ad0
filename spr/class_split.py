"""Where the images around one model of atoms are not alike: some want an atom that others do not have.

Each image's gradient with respect to the atoms' heights, its own pose eliminated, has the Fisher information as its
covariance when all images show one structure. Particles that differ add a direction along which it spreads more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.atoms.information import curvature, slope_of
from common.atoms.model import AtomicModel
from common.atoms.refinement import prepare
from common.atoms.shared import RefinementSettings, layout_of, priors_of
from common.data import ImageStack
from common.iteration import step_generator
from common.noise import NoiseModel

_CURVATURE_IMAGES = 100


@dataclass(frozen=True)
class Split:
    """Two groups of images around one model.

    scores : (m,) of each image along the direction of largest excess, in units of the noise.
    second : (m,) booleans, the group of the higher scores.
    strength : largest variance over that of identical particles, 1 when there is nothing to split.
    """

    scores: Tensor
    second: Tensor
    strength: float


def split_images(
    stack: ImageStack, noise: NoiseModel, model: AtomicModel, settings: RefinementSettings | None = None
) -> Split:
    """Split images by the atoms that they ask for.

    Parameters
    ----------
    stack, noise, model : m images and the model refined with them.
    settings : as the model was refined.

    Returns
    -------
    The two groups and how strongly they differ.

    Notes
    -----
    With the gradient ``g_i`` of image i and the mean information ``H``, ``z_i = H^-1/2 g_i`` has unit covariance when
    all particles are alike (information equality). The largest eigenvalue of m such vectors of n numbers is then about
    ``(1 + sqrt(n / m))^2`` times the median one [1]_. The median takes up what a wrong noise level does to all of them.

    References
    ----------
    .. [1] V. A. Marchenko, L. A. Pastur, Math. USSR Sbornik 1, 457 (1967).
    """
    settings = settings or RefinementSettings()
    data = prepare(stack, noise, model.parameters, settings)[1]
    layout, priors = layout_of(model.parameters, settings.refine_b_factors), priors_of(settings)
    m = len(data)
    slope = slope_of(model.parameters, data, priors=priors, layout=layout, damping=1e-7, batch_size=settings.batch_size)
    gradients = -slope.gradients[:, layout.heights()]
    rows = torch.randperm(m, generator=step_generator(settings.seed, 0))[:_CURVATURE_IMAGES].sort().values
    rows = rows.to(gradients.device)
    ones = torch.ones_like(model.weights)
    information = curvature(model.parameters, data, rows, ones, priors=priors, layout=layout)
    information = information[layout.heights(), layout.heights()] / len(rows)
    return split_gradients(gradients, information, model.weights)


def split_gradients(gradients: Tensor, information: Tensor, weights: Tensor) -> Split:
    """`split_images` from gradients (m, n) and the mean information of an image (n, n)."""
    values, vectors = torch.linalg.eigh(information)
    kept = values > 1e-6 * values[-1]
    white = gradients @ (vectors[:, kept] / values[kept].sqrt())
    weight = weights / weights.sum()
    white = white - weight @ white
    size = torch.linalg.vector_norm(white, dim=1)
    # an image whose pose is wrong has a large gradient in any direction: it must not choose the axis
    usual = (size <= 2 * size.median()) & (weights > 0.5)
    few = white[usual]
    spread, axes = torch.linalg.eigh(few.T @ few / max(len(few), 1))
    ceiling = (1 + math.sqrt(int(kept.sum()) / max(len(few), 1))) ** 2
    strength = float(spread[-1] / spread.median().clamp(min=1e-30)) / ceiling
    axis = axes[:, -1]
    axis = axis * torch.sign(axis[axis.abs().argmax()])  # a sign that does not depend on the solver
    scores = white @ axis
    return Split(scores, scores > two_means(scores[usual]), strength)


def two_means(scores: Tensor) -> float:
    """The border between two groups of numbers (m,): half way between their means."""
    border = float(scores.mean())
    for _ in range(50):
        low, high = scores[scores <= border], scores[scores > border]
        if not len(low) or not len(high):
            break
        moved = (float(low.mean()) + float(high.mean())) / 2
        if moved == border:
            break
        border = moved
    return border
