"""Merging: one view twice becomes one class, two views stay two."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.noise import extent_and_noise, whiten
from spr.ab_initio import SearchSettings, prepare
from spr.class_averages import as_sums, average_prior, posterior_averages, turned_orders
from spr.class_merging import align_classes, best_merges, merge_classes


@pytest.fixture(scope="module")
def classes(four_views: Any) -> Any:
    """The views 0 and 1 in two parts each: parts turned by 50 degrees against each other; view 2 whole."""
    stack = four_views.stack
    extent, noise = extent_and_noise(stack)
    images, grid = prepare(
        stack,
        whiten(stack, noise),
        noise,
        radius=extent.radius,
        shift_spread=extent.shift_spread,
        settings=SearchSettings(),
    )
    part = torch.arange(100) % 2
    label = torch.where(four_views.label < 2, 2 * four_views.label + part, torch.where(four_views.label == 2, 4, -1))
    turn = torch.where((four_views.label < 2) & (part == 1), 50.0, 0.0)
    orders = turned_orders(images, torch.arange(100), four_views.angles + turn, four_views.shifts)
    member = torch.nn.functional.one_hot(label.clamp(min=0), 5).float() * (label >= 0)[:, None]
    sums = as_sums(orders) @ member
    counts = images.transfer.square().mean(-1).T @ member
    return images, average_prior(images, grid.radius), sums, counts, member


def test_parts_of_a_view_are_merged_and_views_are_not(classes: Any) -> None:
    images, prior, sums, counts, member = classes
    merges = best_merges(sums, counts, member, images, prior, None)
    assert {frozenset((m.kept, m.moved)) for m in merges} == {frozenset((0, 1)), frozenset((2, 3))}
    for m in merges:
        turn = 50.0 if m.kept % 2 else -50.0  # the part that lies turned is brought back, or onto
        assert abs((m.angle - turn + 180) % 360 - 180) < 2
        assert max(abs(s) for s in m.shift) < 0.1
        assert m.gain > 0


def test_merged_class_has_the_evidence_of_its_images_in_one_frame(classes: Any) -> None:
    images, prior, sums, counts, member = classes
    merges = best_merges(sums, counts, member, images, prior, None)
    shares = member.mean(0) / member.mean(0).sum()
    merged = merge_classes(merges, sums, counts, torch.zeros(100, 5), shares, images)
    assert merged.sums.shape[-1] == 3
    torch.testing.assert_close(merged.counts.sum(1), counts.sum(1))
    torch.testing.assert_close(merged.shares.sum(), torch.tensor(1.0))
    before = posterior_averages(sums, counts, prior).evidence.sum()
    after = posterior_averages(merged.sums, merged.counts, prior).evidence.sum()
    assert float(after) > float(before)  # one average of twice the images is better known


def test_as_many_merges_as_are_wanted(classes: Any) -> None:
    images, prior, sums, counts, member = classes
    assert len(best_merges(sums, counts, member, images, prior, 4)) == 1
    assert len(best_merges(sums, counts, member, images, prior, 3)) == 2
    assert best_merges(sums, counts, member, images, prior, 5) == []


def test_partners_are_those_that_are_allowed(classes: Any) -> None:
    images, prior, sums, counts, _ = classes
    onto = torch.zeros(5, 5, dtype=torch.bool)
    onto[1, 4] = onto[3, 2] = True
    found = align_classes(sums, counts, images, prior, onto, partners=1)
    assert list(zip(found.moved.tolist(), found.kept.tolist(), strict=True)) == [(1, 4), (3, 2)]
