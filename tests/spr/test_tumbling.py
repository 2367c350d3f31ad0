"""Rotational diffusion and jumps from orientations that were made with known ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from common.rotations import point_group, rotation_from_vector
from spr.time_windows import windows_of
from spr.tumbling import continuous, describe_tumbling, describe_wandering


def walk(n: int, degrees: float, *, error: float = 0.0, seed: int = 1) -> Tensor:
    """(n, 3, 3) orientations of a walk with rms steps, each seen with an rms error; degrees."""
    generator = torch.Generator().manual_seed(seed)

    def small(size: float) -> Tensor:
        vectors = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        return rotation_from_vector(math.radians(size) / math.sqrt(3) * vectors)

    now, found = torch.eye(3, dtype=torch.float64), []
    for turn in small(degrees):
        now = turn @ now
        found.append(now)
    return small(error) @ torch.stack(found)


def test_diffusion_is_told_from_the_error_of_the_poses() -> None:
    found = describe_tumbling(walk(6000, 2.0, error=1.5), torch.arange(6000))
    assert found.degrees_per_frame == pytest.approx(2.0, rel=0.06)
    assert found.pose_error == pytest.approx(1.5, rel=0.1)
    assert found.diffusion == pytest.approx(math.radians(2.0) ** 2 / 6, rel=0.12)
    assert len(found.jumps) == 0


def test_jumps_are_found_and_do_not_count_as_diffusion() -> None:
    rotations = walk(2000, 2.0)
    turn = rotation_from_vector(torch.tensor([0.0, math.radians(30.0), 0.0], dtype=torch.float64))
    rotations[700:] = rotations[700:] @ turn
    found = describe_tumbling(rotations, torch.arange(2000))
    assert found.jumps.tolist() == [700]
    assert float(found.jump_degrees[0]) == pytest.approx(30.0, abs=6.0)
    assert found.degrees_per_frame == pytest.approx(2.0, rel=0.1)


def test_frames_that_are_missing_are_no_jumps() -> None:
    frames = torch.cat((torch.arange(0, 500), torch.arange(560, 1500)))
    found = describe_tumbling(walk(1500, 2.0)[frames], frames)
    assert found.jumps.tolist() == []
    assert found.degrees_per_frame == pytest.approx(2.0, rel=0.1)


def test_windows_overlap_by_half_and_cover_the_movie() -> None:
    assert windows_of(torch.arange(100), 40) == [(0, 39), (20, 59), (40, 79), (60, 99)]
    assert windows_of(torch.arange(110), 40)[-1] == (70, 109)
    assert windows_of(torch.arange(40), 40) == []
    assert windows_of(torch.arange(40), 0) == []


def test_poses_of_a_symmetric_particle_are_unfolded() -> None:
    """Each frame found in any of 24 like orientations tells the same tumbling."""
    rotations, group = walk(800, 3.0), point_group("O", dtype=torch.float64)
    chosen = torch.randint(24, (800,), generator=torch.Generator().manual_seed(0))
    mixed = rotations @ group[chosen]
    assert len(describe_tumbling(mixed, torch.arange(800)).lags) == 6
    found = continuous(mixed, group)
    torch.testing.assert_close(found, rotations @ group[chosen[0]], atol=1e-9, rtol=0)


def test_wandering_is_told_from_the_error_of_the_centres() -> None:
    generator = torch.Generator().manual_seed(4)
    way = (0.3 * torch.randn(6000, 2, generator=generator)).cumsum(0)
    frames = torch.cat((torch.arange(0, 3000), torch.arange(3050, 6000)))
    found = describe_wandering((way + 0.5 * torch.randn(6000, 2, generator=generator))[frames], frames)
    assert found.diffusion == pytest.approx(0.3**2 / 2, rel=0.1)
    assert found.error == pytest.approx(0.5, rel=0.1)
