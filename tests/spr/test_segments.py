"""Stretches of a movie, and tilts at their true scale, on orientations that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from common.rotations import geodesic_distance, rotation_from_vector
from spr.segments import at_true_scale, mean_axis, segments_of, tilt_excess, with_tilts
from spr.time_consensus import shared_orientations

N = 300


def turn(x: float, y: float, z: float) -> Tensor:
    """Rotation by a vector, degrees."""
    return rotation_from_vector(torch.deg2rad(torch.tensor([x, y, z])))


def wandering(n: int = N, degrees: float = 3.0, seed: int = 0) -> Tensor:
    """(n, 3, 3) orientations whose views stay on one side: a walk that is pulled back."""
    generator = torch.Generator().manual_seed(seed)
    vectors = math.radians(degrees) / math.sqrt(3) * torch.randn(n, 3, generator=generator)
    now, found = torch.eye(3), []
    for vector in vectors:
        pulled = vector + torch.tensor([0.06 * float(now[1, 2]), -0.06 * float(now[0, 2]), 0.0])
        now = rotation_from_vector(pulled) @ now
        found.append(now)
    return torch.stack(found)


def test_stretches_end_at_jumps_and_not_at_gaps() -> None:
    rotations, frames = wandering(), torch.arange(N)
    rotations[120:] = rotations[120:] @ turn(0, 40, 0)
    kept = torch.cat((torch.arange(0, 40), torch.arange(60, N)))
    segments = segments_of(rotations[kept], frames[kept])
    assert segments.unique().tolist() == [0, 1]
    assert kept[segments == 1][0] == 120


def test_tilts_come_back_to_their_scale() -> None:
    """Orientations of a map stretched along the views by 1.4, brought back without any image."""
    rotations, frames, one = wandering(2000, seed=3), torch.arange(2000), torch.zeros(2000, dtype=torch.long)
    assert tilt_excess(rotations, frames, one) == pytest.approx(1.0, abs=0.08)
    axis, cosine = mean_axis(rotations)
    assert cosine > 0.5
    wrong = with_tilts(rotations, axis, 1.4)
    assert tilt_excess(wrong, frames, one) > 1.25
    back = at_true_scale(wrong, frames, one)
    before, after = (geodesic_distance(found, rotations).median() for found in (wrong, back))
    assert float(after) < 0.35 * float(before)


def test_tilts_are_changed_along_the_axis_and_undone_by_the_inverse() -> None:
    rotations = wandering()
    axis, _ = mean_axis(rotations)
    torch.testing.assert_close(with_tilts(rotations, axis, 1.0), rotations, atol=1e-5, rtol=0)
    there = with_tilts(rotations, axis, 0.8)
    eye = torch.eye(3).expand(N, 3, 3)
    torch.testing.assert_close(there @ there.mT, eye, atol=1e-5, rtol=0)
    again = with_tilts(there, axis, 1 / 0.8)
    assert float(geodesic_distance(again, rotations).max()) < 1.0


def test_views_of_all_sides_keep_their_scale() -> None:
    generator = torch.Generator().manual_seed(1)
    steps = math.radians(25.0) * torch.randn(400, 3, generator=generator)
    now, found = torch.eye(3), []
    for vector in steps:
        now = rotation_from_vector(vector) @ now
        found.append(now)
    rotations, frames, one = torch.stack(found), torch.arange(400), torch.zeros(400, dtype=torch.long)
    assert torch.equal(at_true_scale(rotations, frames, one), rotations)


def test_starts_share_the_orientations_that_one_rotation_brings_together() -> None:
    rotations = wandering()
    mirror = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    other = mirror @ rotations @ turn(30, -50, 10)
    assert shared_orientations(rotations, other) == pytest.approx(1.0)
    other[: N // 3] = other[: N // 3] @ turn(0, 60, 0)
    assert shared_orientations(rotations, other) == pytest.approx(2 / 3, abs=0.01)
