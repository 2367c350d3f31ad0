"""From images to class averages with numbers that say how far to trust them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from common.data import InputError
from spr.class_images import turn_images
from spr.class_pipeline import ClassifiedImages, ClassifySettings, find_classes
from spr.classification import ClassificationSettings

SETTINGS = ClassifySettings(annealing=ClassificationSettings(iterations=12))
N_EMPTY = 6


@pytest.fixture(scope="module")
def views(known_views: Callable[..., Any]) -> Any:
    """Three views; the first six images are empty."""
    made = known_views(torch.arange(90) % 3, 3, 1.0, seed=2)
    images = made.stack.images.clone()
    border = images[:, :5].flatten()
    draw = torch.randint(len(border), (N_EMPTY, 41, 41), generator=torch.Generator().manual_seed(5))
    images[:N_EMPTY] = border[draw]
    return replace(made, stack=replace(made.stack, images=images))


@pytest.fixture(scope="module")
def found(views: Any) -> ClassifiedImages:
    return find_classes(views.stack, SETTINGS)


def test_particles_are_kept_and_empty_images_are_not(views: Any, found: ClassifiedImages) -> None:
    assert not bool(found.kept[:N_EMPTY].any())
    assert float(found.kept[N_EMPTY:].float().mean()) > 0.97
    good = found.kept
    assert adjusted_rand_score(views.label[good], found.label[good]) == 1.0


def test_averages_are_the_views(views: Any, found: ClassifiedImages) -> None:
    assert found.averages.shape[1:] == (41, 41)
    for k in range(len(found.averages)):
        if bool(found.table.rejected[k]):
            continue
        own = (found.label == k) & found.kept
        view = views.clean[int(views.label[own].mode().values)]
        first = int(own.nonzero()[0])  # one image says how the class lies against the view
        angle = views.angles[first] - torch.rad2deg(
            torch.atan2(-found.poses.rotations[first, 1, 0], found.poses.rotations[first, 0, 0])
        )
        shifted = turn_images(found.averages[k][None], angle[None], torch.zeros(1, 2))[0]
        cross = torch.fft.irfft2(torch.fft.rfft2(shifted) * torch.fft.rfft2(view).conj()).max()
        assert float(cross / (shifted.norm() * view.norm())) > 0.9


def test_table_says_how_many_and_how_far_halves_agree(found: ClassifiedImages) -> None:
    table = found.table
    assert found.frc is not None
    assert int(table.images.sum()) == int(found.columns["rlnSelected"].sum()) + int(table.images[table.rejected].sum())
    assert table.images.tolist() == sorted(table.images.tolist(), reverse=True)
    good = ~table.rejected
    assert int(good.sum()) == 3
    assert bool((table.correlation[good] > 0.8).all())
    assert bool((table.resolution[good] < 2.0).all())
    assert found.metrics["classes"] == len(found.averages)
    assert int(found.columns["rlnClassNumber"].min()) == 1
    assert "halves" in found.verdict or "noise" in found.verdict


def test_poses_are_turns_in_the_plane(found: ClassifiedImages) -> None:
    rotations = found.poses.rotations
    torch.testing.assert_close(rotations[:, 2], torch.tensor([0.0, 0.0, 1.0]).expand(90, 3))
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(90))


def test_impossible_numbers_of_classes_are_refused(views: Any) -> None:
    with pytest.raises(InputError, match="0 classes"):
        ClassifySettings(classes=0)
    with pytest.raises(InputError, match="50 classes of 90 images"):
        find_classes(views.stack, replace(SETTINGS, classes=50))
