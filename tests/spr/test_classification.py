"""Classes of images whose views are known, and what every classification obeys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from common.data import ImageStack, InputError
from common.io.checkpoint import CheckpointObserver
from common.iteration import State
from common.noise import extent_and_noise, whiten
from spr.ab_initio import SearchSettings, prepare
from spr.class_assignment import Assignment, assign_classes
from spr.class_averages import posterior_averages, views_of_averages
from spr.class_expectation import expect_classes
from spr.class_labels import FrameOrder
from spr.classification import (
    ClassificationData,
    ClassificationSettings,
    classification_data,
    classify,
    first_classes,
    start,
    step,
)

SETTINGS, SHORT = ClassificationSettings(iterations=16), ClassificationSettings(iterations=4)


def data_of(stack: ImageStack) -> ClassificationData:
    extent, noise = extent_and_noise(stack)
    images, grid = prepare(
        stack,
        whiten(stack, noise),
        noise,
        radius=extent.radius,
        shift_spread=extent.shift_spread,
        settings=SearchSettings(),
    )
    return classification_data(images, grid.radius)


@pytest.fixture(scope="module")
def data(four_views: Any) -> ClassificationData:
    return data_of(four_views.stack)


@pytest.fixture(scope="module")
def found(data: ClassificationData) -> Assignment:
    return assign_classes(classify(data, SETTINGS, seed=0), data, SETTINGS)


def test_classes_are_the_views_and_as_many(four_views: Any, found: Assignment) -> None:
    assert found.probability.shape == (100, 4)
    assert adjusted_rand_score(four_views.label, found.label) == 1.0


def test_angles_and_shifts_are_those_of_the_images(four_views: Any, found: Assignment) -> None:
    """Up to the angle and shift that are free in each class."""
    for label in range(4):
        own = four_views.label == label
        turned = torch.polar(torch.ones(int(own.sum())), torch.deg2rad(found.angles[own] - four_views.angles[own]))
        error = torch.rad2deg((turned / turned.mean()).angle())
        assert float(error.square().mean().sqrt()) < 1.5
        # what is left of the shift, as the class sees it, is the same for all its images
        a = torch.deg2rad(found.angles[own])
        turn = torch.stack((a.cos(), -a.sin(), a.sin(), a.cos()), -1).view(-1, 2, 2)
        left = (turn @ (found.shifts - four_views.shifts)[own][..., None])[..., 0]
        assert float((left - left.mean(0)).square().mean().sqrt()) < 0.08


def test_images_turned_by_a_right_angle_fall_into_the_same_classes(four_views: Any, found: Assignment) -> None:
    """Rows run down, so that ``rot90`` with -1 turns x onto y: by +90 degrees."""
    turned = data_of(replace(four_views.stack, images=torch.rot90(four_views.stack.images, -1, (1, 2))))
    again = assign_classes(classify(turned, SETTINGS, seed=0), turned, SETTINGS)
    assert adjusted_rand_score(found.label, again.label) == 1.0
    for label in range(4):
        own = four_views.label == label
        change = torch.polar(torch.ones(int(own.sum())), torch.deg2rad(again.angles[own] - found.angles[own]))
        assert float(torch.rad2deg((change / change.mean()).angle()).abs().median()) < 1.0
    moved = torch.stack((-found.shifts[:, 1], found.shifts[:, 0]), 1)
    assert float((again.shifts - moved).norm(dim=1).median()) < 0.15


def test_as_many_classes_as_are_wanted(four_views: Any, data: ClassificationData) -> None:
    state = classify(data, SHORT, seed=0, wanted=2)
    assert state.n_classes == 2
    label = assign_classes(state, data, SETTINGS).label
    for view in range(4):  # views stay whole
        assert len(label[four_views.label == view].unique()) == 1


def test_neighbours_in_time_help_weak_frames(known_views: Callable[..., Any]) -> None:
    """A particle that stays in a view for 20 frames, at a signal where an image alone is often taken for another."""
    label = torch.arange(160) // 20 % 4
    weak = known_views(label, 4, 0.06, seed=3)
    alone = data_of(weak.stack)
    in_time = replace(alone, frames=FrameOrder.of_frames(torch.arange(160)))
    scores = []
    for problem in (alone, in_time):
        state = classify(problem, SETTINGS, seed=0, wanted=4)
        scores.append(adjusted_rand_score(label, assign_classes(state, problem, SETTINGS).label))
    assert scores[1] > scores[0] + 0.2
    assert scores[1] > 0.7
    assert state.switch_rate < 0.15


class StopAt:
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def resume(self, name: str, first: State) -> State | None:
        return None

    def observe(self, name: str, state: State) -> None:
        if state.iteration == self.iteration:
            raise KeyboardInterrupt


def tensors_of(state: State) -> dict[str, Tensor]:
    plain = {f.name: getattr(state, f.name) for f in fields(state)}
    plain |= vars(plain.pop("merging"))
    return {name: torch.as_tensor(value).clone() for name, value in plain.items()}


def same_bits(a: State, b: State) -> bool:
    left, right = tensors_of(a), tensors_of(b)
    return all(left[name].numpy().tobytes() == right[name].numpy().tobytes() for name in left)


@pytest.fixture(scope="module")
def few(data: ClassificationData) -> ClassificationData:
    return ClassificationData(data.images[torch.arange(24)], data.prior)


def test_same_seed_same_classes(few: ClassificationData) -> None:
    first, again, other = (classify(few, SHORT, seed=seed) for seed in (3, 3, 4))
    assert same_bits(first, again)
    assert not torch.equal(first.label_evidence, other.label_evidence[:, : first.n_classes].expand(24, -1))


@pytest.mark.parametrize("iteration", [2, 7])
def test_stopped_classification_goes_on_bit_for_bit(few: ClassificationData, tmp_path: Path, iteration: int) -> None:
    whole = classify(few, SHORT, seed=3)
    with pytest.raises(KeyboardInterrupt):
        classify(few, SHORT, seed=3, observers=[CheckpointObserver(tmp_path, interval=0), StopAt(iteration)])
    resumed = classify(few, SHORT, seed=3, observers=[CheckpointObserver(tmp_path, interval=0)])
    assert same_bits(whole, resumed)


def test_step_leaves_its_input_alone(few: ClassificationData) -> None:
    state = start(few, 3, seed=0)
    before, rings = tensors_of(state), few.images.rings.clone()
    assert same_bits(step(state, few, SHORT, seed=0), step(state, few, SHORT, seed=0))
    after = tensors_of(state)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(rings, few.images.rings)


def test_posteriors_add_up(few: ClassificationData) -> None:
    """Without a transfer the counts of all classes are the images; labels and sums do not depend on their order."""
    state = start(few, 3, seed=0)
    views = views_of_averages(posterior_averages(state.sums, state.counts, few.prior), few.prior)
    index, labels = torch.arange(24), torch.zeros(24, 3)
    trials = few.images.centres[:, None]
    found = expect_classes(few.images, index, trials, views, labels, 2.0)
    square = few.images.transfer.square().mean(-1).sum(0)
    torch.testing.assert_close(found.counts.sum(1), square, rtol=1e-4, atol=1e-4)
    back = index.flip(0)
    again = expect_classes(few.images, back, trials[back], views, labels, 2.0)
    torch.testing.assert_close(again.sums, found.sums, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(again.label_evidence.flip(0), found.label_evidence, rtol=1e-4, atol=1e-3)


def test_annealing_begins_with_more_classes_than_are_wanted() -> None:
    assert first_classes(1, 100) == 1
    assert first_classes(5, 200) == 10
    assert first_classes(5, 12) == 5
    assert 2 <= first_classes(None, 30) < first_classes(None, 900) <= 60


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="1 iterations"):
        ClassificationSettings(iterations=1)
    with pytest.raises(InputError, match="share of poses"):
        ClassificationSettings(effective_poses=0.0)
