import math
from dataclasses import replace

import pytest
import torch

from aet_tilt.reconstruction.problem import make_problem
from aet_tilt.reconstruction.real_space import (
    RealSpaceSettings,
    angular_weights,
    filtered_back_projection,
    solve,
    spread_order,
    start,
    step,
)
from common.data import ImageStack, InputError, Poses


def test_filtered_back_projection_of_all_angles_is_the_particle(phantom, agreement):
    poses = Poses.from_tilt_angles(torch.arange(0, 180, 3.0))
    values = filtered_back_projection(make_problem(ImageStack(phantom.images(poses), 0.5), poses))
    truth = phantom.volume
    assert agreement(values) > 0.99
    assert float((values * truth).sum() / truth.square().sum()) == pytest.approx(1, abs=0.03)


def test_angular_weights_fill_the_half_turn_and_spare_the_wedge():
    uneven = torch.tensor([0.0, 1, 2, 4, 8, 16, 32, 64, 100, 140, 160])
    assert float(angular_weights(torch.arange(0, 180, 3.0)).sum()) == pytest.approx(math.pi, rel=1e-5)
    assert float(angular_weights(torch.linspace(-60, 60, 41)).sum()) == pytest.approx(math.radians(123), rel=0.001)
    assert bool((angular_weights(uneven).diff()[1:5] > 0).all())
    once, thrice = torch.linspace(-60, 60, 41), torch.linspace(-60, 60, 41).repeat(3)
    torch.testing.assert_close(3 * angular_weights(thrice), angular_weights(once).repeat(3))


@pytest.mark.parametrize(("method", "iterations"), [("art", 2), ("sart", 3), ("sirt", 60)])
def test_positivity_makes_every_row_method_better_than_back_projection(method, iterations, counted, agreement):
    settings = RealSpaceSettings(method, iterations, 0.4 if method != "sirt" else 1.5)
    found = solve(counted, settings)
    assert agreement(found.values) > agreement(filtered_back_projection(counted)) + 0.05
    assert bool((found.values >= 0).all())
    assert found.r1 < 0.5


def test_conjugate_gradients_lower_the_error_each_time(counted, agreement):
    settings = RealSpaceSettings("cgls", 6)
    state, errors = start(counted, settings), []
    while not state.done:
        state = step(state, counted, settings)
        errors.append(float((counted.operator.project(state.values) - counted.images).norm()))
    assert errors == sorted(errors, reverse=True)
    assert float(state.residual.norm()) == pytest.approx(errors[-1], rel=1e-4)
    assert agreement(state.values) > agreement(filtered_back_projection(counted))


def test_rays_of_a_set_are_solved_at_once(clean):
    one = clean.subset(torch.tensor([15]))
    found = solve(one, RealSpaceSettings("art", 3, 1.0, positivity=False))
    assert float((one.operator.project(found.values) - one.images).norm() / one.images.norm()) < 0.25


def test_nothing_stands_outside_the_support(clean):
    half = replace(clean, support=(torch.arange(32) < 16).float().expand(32, 32, 32).contiguous())
    for method in ("sart", "sirt", "cgls"):
        values = solve(half, RealSpaceSettings(method, 1)).values
        assert float(values[..., 16:].abs().max()) == 0 < float(values.abs().max())


@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_every_image_has_its_turn(n):
    assert sorted(spread_order(n)) == list(range(n))


def test_wrong_settings_are_named():
    with pytest.raises(InputError, match="'mart'"):
        RealSpaceSettings("mart")
    with pytest.raises(InputError, match=r"relaxation 2\.5"):
        RealSpaceSettings("sirt", 10, 2.5)
