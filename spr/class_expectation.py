"""The posterior of images over class, in-plane angle and shift, and the sums that it gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.parallel import sum_over_shards
from spr.orientation_search import Views, angular_synthesis, averaged_rings, log_likelihoods, log_prior
from spr.ring_images import RingImages

_SCORES = 256  # classes times images at a time; few keep the scores in the processor's cache


@dataclass(frozen=True)
class ClassExpectation:
    """sums, counts : of each class. label_evidence : (b, k), shifts : (b, 2), nats : (b,) of each image."""

    sums: Tensor
    counts: Tensor
    label_evidence: Tensor
    shifts: Tensor
    nats: Tensor


def expect_classes(
    images: RingImages, index: Tensor, trials: Tensor, views: Views, log_labels: Tensor, temperature: float
) -> ClassExpectation:
    """Posterior over class, angle and shift of the images ``index`` (b,), over shards.

    trials : (b, t, 2) angstrom. views : a view for each class. log_labels : (b, k) log probability of the classes.
    """

    def of_shard(rows: Tensor) -> tuple[Tensor, ...]:
        rows = rows.to(index.device)
        part = _expect(images, index[rows], trials[rows], views, log_labels[rows], temperature)
        placed = []
        for values in (part.label_evidence, part.shifts, part.nats):
            placed.append(values.new_zeros(len(index), *values.shape[1:]).index_copy(0, rows, values))
        return (part.sums, part.counts, *placed)

    return ClassExpectation(*sum_over_shards(of_shard, len(index), n_shards=4))


def _expect(
    images: RingImages,
    index: Tensor,
    trials: Tensor,
    views: Views,
    log_labels: Tensor,
    temperature: float,
) -> ClassExpectation:
    n_angles, n_classes = images.rings.shape[-1], views.power.shape[1]
    batch_size = max(4, min(64, _SCORES // n_classes))
    _, to_orders = angular_synthesis(n_angles, views.power)
    sums, counts = torch.zeros_like(views.spectra), torch.zeros_like(views.power)
    rows = []
    for part in torch.arange(len(index), device=index.device).split(batch_size):
        these, trial = index[part], trials[part]
        b, t = trial.shape[:2]
        scores, stacked = log_likelihoods(images, these, trial, views)
        prior = log_prior(images, these, trial)
        scores += (prior - prior.logsumexp(1, keepdim=True))[:, :, None]
        scores /= temperature
        by_trial = scores.logsumexp(0) - math.log(n_angles)  # (b, t, k)
        label_evidence = by_trial.logsumexp(1)
        joint = label_evidence + log_labels[part]
        total = joint.logsumexp(1)
        scores += (log_labels[part] - total[:, None])[:, None] - math.log(n_angles)
        posterior = scores.clamp_(min=-60.0).exp_()
        orders = (to_orders @ posterior.reshape(n_angles, -1)).view(n_angles + 2, -1)
        sums += averaged_rings(stacked, orders)
        weight = orders[0].view(b, t, n_classes).sum(1)
        counts += images.transfer[these].square().mean(-1).T @ weight
        best = (by_trial + log_labels[part][:, None]).logsumexp(2).argmax(1)
        chosen = trial[torch.arange(b, device=trial.device), best]
        rows.append((label_evidence, chosen, temperature * total))
    label_evidence, chosen, nats = (torch.cat(column) for column in zip(*rows, strict=True))
    return ClassExpectation(sums, counts, label_evidence, chosen, nats)
