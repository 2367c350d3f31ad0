"""Where every image belongs among classes that were found: label, angle and shift, off the grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.parallel import map_over_shards
from spr.ab_initio import trial_shifts
from spr.class_averages import aligned_to, posterior_averages, views_of_averages
from spr.classification import ClassificationData, ClassificationSettings, ClassificationState, label_state
from spr.orientation_search import log_likelihoods, log_prior


@dataclass(frozen=True)
class Assignment:
    """Where every image belongs.

    label : (n,) its likeliest class. probability : (n, k). angles : (n,) degrees: the image seen at ``theta`` is the
    average at ``theta + angle``. shifts : (n, 2) of the particle, angstrom. nats : (n,) evidence over no particle.
    """

    label: Tensor
    probability: Tensor
    angles: Tensor
    shifts: Tensor
    nats: Tensor


def assign_classes(
    state: ClassificationState, data: ClassificationData, settings: ClassificationSettings, *, batch_size: int = 32
) -> Assignment:
    """The likeliest class of every image, and its angle and shift in it, off the grid."""
    images, prior = data.images, data.prior
    averages = posterior_averages(state.sums, state.counts, prior)
    views = views_of_averages(averages, prior)
    width = settings.shift_step / float(images.frequencies.max())
    labels = label_state(state, data)
    label = labels.probability.argmax(1)

    def of_shard(rows: Tensor) -> tuple[Tensor, ...]:
        parts = []
        for part in rows.to(label.device).split(batch_size):
            trials = trial_shifts(state.shifts[part], width)
            scores, _ = log_likelihoods(images, part, trials, views)
            scores += log_prior(images, part, trials)[:, :, None]
            every = torch.arange(len(part), device=part.device)
            own = scores[:, every, :, label[part]]  # (b, A, t)
            place = own.flatten(1).argmax(1)
            t = trials.shape[1]
            angle = (place // t) * (360.0 / prior.n_angles)
            shift = trials[every, place % t]
            parts.append(
                aligned_to(
                    images,
                    part,
                    averages.orders[label[part]],
                    angle.to(shift),
                    shift,
                    centres=images.centres[part],
                    shift_step=width / 2,
                )[:2]
            )
        angles, shifts = (torch.cat(column) for column in zip(*parts, strict=True))
        return angles, shifts

    angles, shifts = map_over_shards(of_shard, len(images))
    nats = (state.label_evidence + labels.outside).logsumexp(1)
    return Assignment(label, labels.probability, angles % 360, shifts, nats)
