"""Which class each image is of: shares of the classes, and for movies what neighbours in time say.

Frames of a movie form a hidden Markov chain: a frame stays in the class of the one before, or moves to another. How
often it moves, and between which classes, is estimated from the frames themselves (Baum-Welch [1]_).

References
----------
.. [1] Rabiner, "A tutorial on hidden Markov models and selected applications in speech recognition", Proc. IEEE 77, 257
   (1989). doi:10.1109/5.18626
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_PSEUDO_COUNT = 1.0  # images that each class is given before any are seen
_MOVES = 1.0  # of each class, spread over the others by their shares, before any are seen


@dataclass(frozen=True)
class FrameOrder:
    """The order of images in time.

    order : (n,) the images, series after series, each in order of time.
    gaps : (n,) frames since the one before in ``order``; 0 where a series begins.
    """

    order: Tensor
    gaps: Tensor

    @classmethod
    def of_frames(cls, frames: Tensor, series: Tensor | None = None) -> FrameOrder:
        """From the (n,) frame number of each image, and (n,) which series it is of (one when None).

        Raises
        ------
        ValueError : two images of a series have the same frame number.
        """
        frames = frames.long().cpu()
        series = torch.zeros_like(frames) if series is None else series.long().cpu()
        span = int(frames.max() - frames.min()) + 1
        place = series * span + (frames - frames.min())
        order = place.argsort()
        gaps = torch.cat((torch.zeros(1, dtype=torch.long), frames[order].diff()))
        begins = torch.cat((torch.ones(1, dtype=torch.bool), series[order].diff() != 0))
        gaps = torch.where(begins, 0, gaps)
        if bool(((gaps <= 0) & ~begins).any()):
            raise ValueError("two images of one series have the same frame number")
        return cls(order, gaps)

    def part(self, rows: Tensor) -> FrameOrder:
        """The order of the images ``rows`` (b,) alone, the gaps between them as they are."""
        place = torch.full_like(self.order, -1)
        place[rows.cpu()] = torch.arange(len(rows))
        begins = self.gaps == 0
        time, series = torch.cumsum(self.gaps, 0), torch.cumsum(begins, 0)
        here = place[self.order] >= 0
        since = torch.cat((torch.zeros(1, dtype=torch.long), time[here].diff()))
        same = torch.cat((torch.zeros(1, dtype=torch.bool), series[here].diff() == 0))
        return FrameOrder(place[self.order][here], torch.where(same, since, 0))


@dataclass(frozen=True)
class Labels:
    """What is known of the classes of the images.

    outside : (n, k) log probability of each class from all but the image itself. probability : (n, k) with it.
    transitions : (k, k) probability of the class of the next frame, rows the class of this one. switch_rate : mean
        probability that the next frame is of another class.
    """

    outside: Tensor
    probability: Tensor
    transitions: Tensor
    switch_rate: float


def shares_of(probability: Tensor) -> Tensor:
    """(k,) share of each class of the images, none of them 0."""
    total = probability.sum(0) + _PSEUDO_COUNT
    return total / total.sum()


def independent_labels(evidence: Tensor, shares: Tensor) -> Labels:
    """Labels of images that know nothing of each other.

    evidence : (n, k) log likelihood of each class. shares : (k,).
    """
    outside = shares.log().expand(evidence.shape)
    k = len(shares)
    return Labels(outside, torch.softmax(evidence + outside, 1), shares.expand(k, k).clone(), 1.0)


def first_transitions(n_classes: int, like: Tensor) -> Tensor:
    """A frame stays as often as it moves, anywhere."""
    even = torch.full((n_classes, n_classes), 0.5 / n_classes, device=like.device, dtype=like.dtype)
    return even + 0.5 * torch.eye(n_classes, device=like.device, dtype=like.dtype)


def labels_in_time(evidence: Tensor, shares: Tensor, transitions: Tensor, frames: FrameOrder) -> Labels:
    """Forward-backward over the frames, and the transitions that it makes likely.

    Parameters
    ----------
    evidence : (n, k) log likelihood of each class. shares : (k,), of the first frame of a series.
    transitions : (k, k) of one frame to the next; over a gap of g frames their g-th power.
    """
    n, k = evidence.shape
    seen = evidence.double().cpu()[frames.order]
    likelihood = (seen - seen.max(1, keepdim=True).values).exp()
    start, step = shares.double().cpu(), transitions.double().cpu()
    powers = {0: start.expand(k, k), 1: step}
    for gap in set(frames.gaps.tolist()) - {0, 1}:
        powers[gap] = torch.linalg.matrix_power(step, min(gap, 10**6))
    gaps = frames.gaps.tolist()
    before = torch.empty(n, k, dtype=torch.float64)  # from the past, without the frame itself
    for t in range(n):
        before[t] = (before[t - 1] * likelihood[t - 1]) @ powers[gaps[t]] if t and gaps[t] else start
        before[t] /= before[t].sum()
    after = torch.ones(n, k, dtype=torch.float64)  # from the future
    moves = torch.zeros(k, k, dtype=torch.float64)
    for t in range(n - 2, -1, -1):
        gap = gaps[t + 1]
        if gap:
            coming = likelihood[t + 1] * after[t + 1]
            after[t] = powers[gap] @ coming
            after[t] /= after[t].sum()
            if gap == 1:
                pair = (before[t] * likelihood[t])[:, None] * step * coming
                moves += pair / pair.sum()
    outside = before * after
    outside /= outside.sum(1, keepdim=True)
    back = frames.order.argsort()
    outside = outside.clamp(min=1e-30).log()[back].to(evidence)
    # rotation has no direction in time, so that moves there and back are equally frequent
    counted = (moves + moves.T) / 2 + _MOVES * start
    learned = counted / counted.sum(1, keepdim=True)
    rate = 1 - float(moves.diagonal().sum() / moves.sum()) if float(moves.sum()) else 1.0
    return Labels(outside, torch.softmax(evidence + outside, 1), learned.to(transitions), rate)
