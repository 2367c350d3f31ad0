"""Labels of images: independent, and in time."""

from __future__ import annotations

import itertools

import pytest
import torch

from spr.class_labels import FrameOrder, first_transitions, independent_labels, labels_in_time


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_marginals_are_those_of_all_paths() -> None:
    """Six frames in two series, one with a gap, against the sum over every path."""
    frames = torch.tensor([4, 1, 2, 7, 5, 9])
    series = torch.tensor([0, 0, 0, 1, 0, 1])
    order = FrameOrder.of_frames(frames, series)
    evidence = torch.randn(6, 3, generator=generator(0))
    shares = torch.tensor([0.5, 0.3, 0.2])
    step = torch.softmax(torch.randn(3, 3, generator=generator(1)), 1)
    found = labels_in_time(evidence, shares, step, order)
    total = torch.zeros(6, 3, dtype=torch.float64)
    path_of = [1, 2, 0, 4], [3, 5]  # rows in order of time
    for labels in itertools.product(range(3), repeat=6):
        weight = torch.tensor(1.0, dtype=torch.float64)
        for rows in path_of:
            weight *= shares[labels[rows[0]]]
            for a, b in itertools.pairwise(rows):
                gap = int(frames[b] - frames[a])
                weight *= torch.linalg.matrix_power(step, gap)[labels[a], labels[b]]
        weight *= torch.stack([evidence[i, k] for i, k in enumerate(labels)]).sum().exp()
        for i, k in enumerate(labels):
            total[i, k] += weight
    expected = total / total.sum(1, keepdim=True)
    torch.testing.assert_close(found.probability.double(), expected, atol=1e-5, rtol=1e-5)
    outside = torch.softmax(found.outside.double() + evidence.double(), 1)
    torch.testing.assert_close(outside, expected, atol=1e-5, rtol=1e-5)


def chain(n: int, k: int, rate: float, seed: int) -> torch.Tensor:
    random = generator(seed)
    moves = torch.rand(n, generator=random) < rate
    steps = torch.where(moves, torch.randint(1, k, (n,), generator=random), 0)
    return steps.cumsum(0) % k


def test_neighbours_in_time_correct_labels_and_the_rate_of_moves_is_found() -> None:
    label = chain(600, 5, 0.06, 3)
    evidence = torch.randn(600, 5, generator=generator(4))
    evidence[torch.arange(600), label] += 1.5
    shares = torch.full((5,), 0.2)
    alone = independent_labels(evidence, shares)
    order = FrameOrder.of_frames(torch.arange(600))
    step = first_transitions(5, shares)
    for _ in range(20):
        found = labels_in_time(evidence, shares, step, order)
        step = found.transitions
    right = [float((labels.probability.argmax(1) == label).float().mean()) for labels in (alone, found)]
    assert right[0] < 0.75
    assert right[1] > 0.9
    assert found.switch_rate == pytest.approx(0.06, abs=0.03)


def test_frames_that_are_far_apart_know_nothing_of_each_other() -> None:
    evidence = torch.randn(4, 3, generator=generator(0))
    shares = torch.tensor([0.5, 0.3, 0.2])
    step = 0.9 * torch.eye(3) + 0.1 * shares
    far = labels_in_time(evidence, shares, step, FrameOrder.of_frames(torch.tensor([0, 10_000, 20_000, 30_000])))
    torch.testing.assert_close(far.probability, independent_labels(evidence, shares).probability, atol=1e-4, rtol=1e-3)


def test_part_of_the_frames_keeps_their_distances() -> None:
    order = FrameOrder.of_frames(torch.tensor([3, 0, 5, 1, 2]), torch.tensor([0, 0, 1, 0, 1]))
    rows = torch.tensor([0, 1, 4])
    part = order.part(rows)
    assert part.order.tolist() == [1, 0, 2]
    assert part.gaps.tolist() == [0, 3, 0]


def test_same_frame_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="same frame number"):
        FrameOrder.of_frames(torch.tensor([1, 2, 2]))
