"""Which classes show one and the same view, turned in the plane and shifted, and what merging them gains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spr.class_averages import (
    AveragePrior,
    aligned_to,
    as_images,
    as_sums,
    posterior_averages,
    turned_orders,
    views_of_averages,
)
from spr.orientation_search import log_likelihoods
from spr.ring_images import RingImages

_PARTNERS = 4  # of each class, looked at closely
_GRID = 5  # trial shifts along each axis


@dataclass(frozen=True)
class Merge:
    """Class ``moved``, turned by ``angle`` degrees and shifted back by ``shift`` angstrom, joins class ``kept``.

    gain : nats that the evidence gains.
    """

    kept: int
    moved: int
    angle: float
    shift: tuple[float, float]
    gain: float


@dataclass(frozen=True)
class ClassSums:
    """sums, counts, label_evidence, shares : as in `spr.classification.ClassificationState`."""

    sums: Tensor
    counts: Tensor
    label_evidence: Tensor
    shares: Tensor


@dataclass(frozen=True)
class Alignment:
    """How (p,) classes ``moved`` lie on (p,) classes ``kept``: angles, degrees; shifts (p, 2), angstrom."""

    kept: Tensor
    moved: Tensor
    angles: Tensor
    shifts: Tensor


def align_classes(
    sums: Tensor, counts: Tensor, images: RingImages, prior: AveragePrior, onto: Tensor, *, partners: int
) -> Alignment:
    """Each class on those that it fits best.

    Parameters
    ----------
    sums, counts : of k classes (`spr.orientation_search.Expectation`). images : those they were made of.
    onto : (k, l) booleans, which of the l other classes in the same ``sums`` may be partners; l = k.
    partners : of each class at most.
    """
    averages = posterior_averages(sums, counts, prior)
    pseudo = as_images(sums, counts, images)
    k = len(averages.orders)
    step = 0.28 / float(images.frequencies.max())
    axis = step * (torch.arange(_GRID, device=counts.device, dtype=counts.dtype) - _GRID // 2)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(1, -1, 2).expand(k, -1, -1)
    scores, _ = log_likelihoods(pseudo, torch.arange(k, device=counts.device), grid, views_of_averages(averages, prior))
    best, angle = scores.max(0)  # (k, t, k)
    best, trial = best.max(1)
    best = torch.where(onto, best, -torch.inf)
    value, partner = best.topk(min(partners, k), 1)
    moved = torch.arange(k, device=counts.device)[:, None].expand(partner.shape)[value > -torch.inf]
    kept = partner[value > -torch.inf]
    shift = grid[moved, trial[moved, kept]]
    turn = angle[moved, trial[moved, kept], kept] * (360.0 / prior.n_angles)
    free = pseudo.centres[moved]
    angles, shifts, _ = aligned_to(
        pseudo, moved, averages.orders[kept], turn.to(shift), shift, centres=free, shift_step=step / 2
    )
    return Alignment(kept, moved, angles, shifts)


def best_merges(
    sums: Tensor,
    counts: Tensor,
    probability: Tensor,
    images: RingImages,
    prior: AveragePrior,
    wanted: int | None,
) -> list[Merge]:
    """Merges of disjoint pairs of classes.

    Parameters
    ----------
    sums, counts : of k classes. probability : (n, k) of each image for each class.
    wanted : classes that are to remain: the best merges until then; None: all that gain evidence.

    Notes
    -----
    The gain is that of the variational bound: the evidence of the averages, integrated out; the probability of the
    labels, shares integrated out; less the entropy that the labels lose where images were shared.
    """
    k = counts.shape[1]
    onto = ~torch.eye(k, dtype=torch.bool, device=counts.device)
    pairs = align_classes(sums, counts, images, prior, onto, partners=_PARTNERS)
    pseudo = as_images(sums, counts, images)
    own = posterior_averages(sums, counts, prior).evidence
    joined = sums[:, :, pairs.kept] + as_sums(turned_orders(pseudo, pairs.moved, pairs.angles, pairs.shifts))
    together = posterior_averages(joined, counts[:, pairs.kept] + counts[:, pairs.moved], prior).evidence
    gain = together - own[pairs.kept] - own[pairs.moved]
    gain += _label_gain(probability, pairs.kept, pairs.moved)
    order = gain.argsort(descending=True).tolist()
    angles, shifts, gains = pairs.angles.tolist(), pairs.shifts.tolist(), gain.tolist()
    kept, moved = pairs.kept.tolist(), pairs.moved.tolist()
    chosen: list[Merge] = []
    used: set[int] = set()
    for p in order:
        enough = gains[p] <= 0 if wanted is None else k - len(chosen) <= wanted
        if enough:
            break
        if not used & {kept[p], moved[p]}:
            used |= {kept[p], moved[p]}
            chosen.append(Merge(kept[p], moved[p], angles[p], (shifts[p][0], shifts[p][1]), gains[p]))
    return chosen


def _label_gain(probability: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Nats that the labels gain when classes ``a`` and ``b`` (p,) become one; shares have an even Dirichlet prior."""
    n, k = probability.shape
    size = probability.sum(0).double()
    first, second = probability.T[a].double(), probability.T[b].double()
    both = first + second
    entropy = (torch.xlogy(both, both) - torch.xlogy(first, first) - torch.xlogy(second, second)).sum(1)
    fewer = torch.lgamma(size[a] + size[b] + 1) - torch.lgamma(size[a] + 1) - torch.lgamma(size[b] + 1)
    fewer = fewer + torch.log(torch.tensor((n + k - 1) / (k - 1), dtype=torch.float64))
    return (fewer - entropy).to(probability)


def merge_classes(
    merges: list[Merge],
    sums: Tensor,
    counts: Tensor,
    label_evidence: Tensor,
    shares: Tensor,
    images: RingImages,
) -> ClassSums:
    """Classes with some of them put together (disjoint pairs), in their old order."""
    pseudo = as_images(sums, counts, images)
    moved = torch.tensor([m.moved for m in merges], device=counts.device)
    kept = torch.tensor([m.kept for m in merges], device=counts.device)
    angles = torch.tensor([m.angle for m in merges], device=counts.device, dtype=counts.dtype)
    shifts = torch.tensor([m.shift for m in merges], device=counts.device, dtype=counts.dtype)
    sums = sums.index_add(2, kept, as_sums(turned_orders(pseudo, moved, angles, shifts)))
    counts = counts.index_add(1, kept, counts[:, moved])
    together = shares.index_add(0, kept, shares[moved])
    weighted = label_evidence + shares.log()
    both = torch.logaddexp(weighted[:, kept], weighted[:, moved]) - together[kept].log()
    label_evidence = label_evidence.index_copy(1, kept, both)
    rest = torch.ones_like(shares, dtype=torch.bool).index_fill(0, moved, False)
    return ClassSums(sums[:, :, rest], counts[:, rest], label_evidence[:, rest], together[rest])
