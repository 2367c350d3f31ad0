import math

import pytest
import torch

from common.masks import border_mask, grow, soft_ball, soft_disc, tight_mask


@pytest.mark.parametrize("n", [40, 41])
def test_soft_masks_fall_from_one_to_zero_over_the_edge(n):
    c = n // 2
    disc, ball = soft_disc(n, 8, 4), soft_ball(n, 8, 4)
    assert torch.equal(ball[c], disc)
    assert disc[c, c] == disc[c, c + 8] == disc[c - 8, c] == 1
    assert float(disc[c, c + 10]) == pytest.approx(0.5)
    assert disc[c, c + 12] == disc[c + 12, c] == 0


def test_soft_ball_has_the_volume_of_a_ball():
    assert float(soft_ball(48, 15, 0).sum()) == pytest.approx(4 / 3 * math.pi * 15**3, rel=0.01)


def test_border_is_what_lies_outside_the_disc():
    assert torch.equal(border_mask(31, 9.5), soft_disc(31, 9.5, 0) == 0)


def test_growing_a_point_gives_a_ball():
    point = torch.zeros(21, 21, 21, dtype=torch.bool)
    point[10, 10, 10] = True
    assert torch.equal(grow(point, 5), soft_ball(21, 5, 0).bool())


def test_tight_mask_covers_the_particle_and_not_the_box():
    particle = torch.zeros(48, 48, 48)
    particle[14:34, 18:30, 18:30] = 1
    noise = torch.randn(particle.shape, generator=torch.Generator().manual_seed(0))
    mask = tight_mask(particle + 0.3 * noise)
    assert float(mask[particle == 1].min()) > 0.99
    assert float(mask.min()) == 0
    assert float(mask.mean()) < 0.3
    assert float(mask.max()) <= 1


def test_tight_mask_of_an_empty_map_hides_nothing():
    assert torch.equal(tight_mask(torch.zeros(16, 16, 16)), torch.ones(16, 16, 16))
