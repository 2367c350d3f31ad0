"""What images left out say about one class more."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from common.atoms.model import AtomicModel
from common.atoms.pose_search import PoseSearchSettings
from common.atoms.validation import search_unseen
from common.data import ImageStack
from common.iteration import Observer, run_stage
from common.noise import NoiseModel
from spr.mixture import mixed_likelihood
from spr.seen import Seen
from spr.settings import Settings

_SIGMAS = 3.0  # by which left-out images must ask for one more class
_LEAST_GAIN = 0.5  # nats a left-out image, likewise


def unseen_likelihood(model: AtomicModel, stack: ImageStack, noise: NoiseModel, settings: PoseSearchSettings) -> Tensor:
    """(h,) nats of images that the model has not seen."""
    return search_unseen(model, stack, noise, settings).log_likelihood


def left_out_likelihood(
    seen: Seen, models: Sequence[AtomicModel], settings: Settings, observers: Sequence[Observer]
) -> Tensor:
    """(h, K) nats of every left-out image under every class, its pose searched from nothing."""
    stack, _, noise = seen.part(seen.left_out)
    found = [
        run_stage(
            f"left-out/{k}",
            partial(unseen_likelihood, model, stack, noise, settings.pose_search),
            observers,
        )
        for k, model in enumerate(models, start=1)
    ]
    return torch.stack(found, 1)


def evidence_of(likelihood: Tensor, shares: Tensor, before: Tensor, shares_before: Tensor) -> tuple[float, float]:
    """Mean gain of left-out images by one class more, nats, and its standard error; likelihoods (h, K + 1), (h, K)."""
    gain = mixed_likelihood(likelihood, shares) - mixed_likelihood(before, shares_before)
    return float(gain.mean()), float(gain.std()) / max(len(gain), 1) ** 0.5 if len(gain) > 1 else float("inf")


def believed(gain: float, error: float) -> bool:
    """Whether left-out images ask for a class that gains so many nats each, with this standard error."""
    return gain > max(_LEAST_GAIN, _SIGMAS * error)
