"""Which images a model of atoms explains, and how well it predicts images that it has not seen."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from common.atoms.model import AtomicModel
from common.atoms.pose_search import PoseSearchSettings, search_poses
from common.data import ImageStack, Poses
from common.noise import NoiseModel


def search_unseen(
    model: AtomicModel, stack: ImageStack, noise: NoiseModel, settings: PoseSearchSettings | None = None
) -> AtomicModel:
    """The model with the poses of images that it has not seen, searched from nothing.

    Parameters
    ----------
    model : refined without these images.
    stack, noise : m images left out, raw, and their noise; ``settings.reach`` must cover their shifts.

    Returns
    -------
    The model with m poses; its ``log_likelihood`` and ``correlation`` say how well it predicts each image.

    Notes
    -----
    The search itself fits noise: a wrong model gains about 10 to 30 nats an image too.
    """
    parameters = replace(model.parameters, gains=model.positions.new_zeros(0))
    unseen = replace(model, parameters=parameters, weights=model.weights.new_zeros(0))
    return search_poses(stack, noise, unseen, settings, poses=unknown_poses(len(stack), model.positions))


def unknown_poses(m: int, like: Tensor) -> Poses:
    """Poses of m images of which only is known that the particle is near the centre."""
    eye = torch.eye(3, dtype=torch.float64, device=like.device).expand(m, 3, 3)
    return Poses(eye, eye.new_zeros(m, 2))


def excess(model: AtomicModel) -> Tensor:
    """(m,) how much more each image's pose explains than is expected of a right one, in standard deviations.

    Notes
    -----
    Of an image x with its model M in white noise, ``(<x, M> - |M|^2) / |M|`` is normal with variance 1 when the model
    is right. Centre and spread are those seen over all images (median and median absolute deviation, at least 1).
    """
    # an image of noise may fit a defocus at which the model vanishes: at least half the usual gain is expected of it
    expected = torch.maximum(model.expected, model.expected.median() / 2).clamp(min=1e-6)
    gained = (model.log_likelihood - expected) / torch.sqrt(2 * expected)
    middle = gained.median()
    return (gained - middle) / (1.4826 * (gained - middle).abs().median()).clamp(min=1.0)


def image_weights(model: AtomicModel) -> Tensor:
    """(m,) weights in [0, 1]: near 0 for images that no pose explains, five standard deviations short (`excess`)."""
    return torch.sigmoid(2 * (excess(model) + 5))


def with_robust_weights(model: AtomicModel) -> tuple[AtomicModel, Tensor]:
    """The model with `image_weights`, and the indices of the images that no pose explains (weight < 0.5)."""
    weights = image_weights(model)
    return replace(model, weights=weights), torch.nonzero(weights < 0.5)[:, 0]
