from dataclasses import replace
from typing import Any

import pytest
import torch

from aet_tilt.alignment import (
    AlignmentData,
    AlignmentSettings,
    AlignmentState,
    align,
    correct_volume,
    prepare,
    start,
    step,
)
from aet_tilt.angle_refinement import pose_step, turned, without_common_translation
from aet_tilt.common_line import axis_direction, find_tilt_axis
from common.data import ImageStack, InputError, Poses, Volume
from common.fourier import irfft2_origin, rfft2_origin
from common.projection import project
from common.rotations import geodesic_distance, random_rotations, rotation_from_vector

SETTINGS = AlignmentSettings(start="mass", resolution=2.4, max_iterations=6, n_volume_steps=1)


def _apart(found: Poses, true: Poses) -> float:
    """rms of the shifts' errors, pixels, up to a common movement of the specimen."""
    return float(without_common_translation(found.shifts - true.shifts, true.rotations).square().mean().sqrt())


@pytest.fixture(scope="module")
def aligned(case: Any) -> Any:
    return align(case.stack, case.nominal, SETTINGS)


def test_shifts_are_recovered(case: Any, aligned: Any) -> None:
    assert float(case.true.shifts.std()) > 1
    _, starts = prepare(case.stack, case.nominal, SETTINGS)
    assert _apart(starts[0], case.true) < 0.06
    assert _apart(aligned.poses, case.true) < 0.85 * _apart(starts[0], case.true)
    assert _apart(aligned.poses, case.true) < 0.035
    assert torch.equal(aligned.poses.rotations, case.nominal.rotations)
    assert not bool(aligned.misfit.any())


def test_a_strange_image_is_flagged(case: Any) -> None:
    images = case.stack.images.clone()
    images[7] = images[7].T + images[3].flip(0)
    found = align(replace(case.stack, images=images), case.nominal, SETTINGS)
    assert found.misfit.nonzero()[:, 0].tolist() == [7]


def test_images_in_each_others_place_are_flagged(case: Any) -> None:
    order = torch.arange(len(case.stack))
    order[[4, 10]] = order[[10, 4]]
    found = align(case.stack[order], case.nominal, SETTINGS)
    assert found.misfit.nonzero()[:, 0].tolist() == [4, 10]


def test_order_and_brightness_do_not_matter(case: Any, aligned: Any) -> None:
    order = torch.randperm(len(case.stack), generator=torch.Generator().manual_seed(2))
    brightness = 0.5 + torch.rand(len(case.stack), 1, 1, generator=torch.Generator().manual_seed(3))
    stack = replace(case.stack, images=(case.stack.images * brightness)[order])
    other = align(stack, case.nominal[order], SETTINGS)
    away = without_common_translation(other.poses.shifts - aligned.poses.shifts[order], case.true.rotations[order])
    assert float(away.abs().max()) < 0.03


def test_reprojection_alone_finds_shifts_of_pixels(case: Any) -> None:
    assert _apart(case.nominal, case.true) > 1
    found = align(case.stack, case.nominal, replace(SETTINGS, start="given", max_iterations=20))
    assert _apart(found.poses, case.true) < 0.06


def _error(values: torch.Tensor, state: AlignmentState, data: AlignmentData) -> float:
    """The squared error that the corrections of the volume bring down."""
    unit = Poses(state.poses.rotations, state.poses.shifts / data.pixel_size)
    residual = (data.images - project(Volume(values, 1.0), unit).images) * data.weights
    filtered = irfft2_origin(rfft2_origin(residual) * data.filters, residual.shape[-1])
    return float((residual * filtered).sum())


def test_corrections_of_the_volume_converge_on_images_that_no_volume_explains(case: Any) -> None:
    """Noise and a level of its own in each image, with borders that were not measured: the error only falls."""
    levels = 0.3 * torch.randn(len(case.stack), 1, 1, generator=torch.Generator().manual_seed(8))
    data, starts = prepare(case.stack, case.nominal, SETTINGS)
    data = replace(data, images=data.images + levels)
    state = start(data, starts[0])
    errors = []
    for _ in range(6):
        values = correct_volume(state, data, 15)
        errors.append(_error(values, state, data))
        state = replace(state, values=values)
    assert errors == sorted(errors, reverse=True)


def test_a_step_goes_on_where_another_stopped(case: Any) -> None:
    data, starts = prepare(case.stack, case.nominal, SETTINGS)
    one = step(step(start(data, starts[0]), data, SETTINGS), data, SETTINGS)
    again = align(case.stack, case.nominal, replace(SETTINGS, max_iterations=2))
    assert torch.equal(one.poses.shifts, again.poses.shifts)
    assert torch.equal(one.values, again.values)


def _volume(d: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    grid = torch.stack(torch.meshgrid(*[torch.arange(d) - d // 2] * 3, indexing="ij")).float()
    centres = torch.randn(12, 3, generator=generator) * 3
    distances = (grid - centres[:, :, None, None, None]).square().sum(1)
    return torch.exp(-distances / 4.5).sum(0)


def test_pose_steps_find_shifts_and_all_three_angles() -> None:
    """Against the true volume, general rotations: Gauss-Newton converges on the truth."""
    generator = torch.Generator().manual_seed(6)
    values, n = _volume(), 6
    true = Poses(random_rotations(n, generator=generator), torch.randn(n, 2, generator=generator) * 0.3)
    images = project(Volume(values, 1.0), true).images * 1.3 + 0.2
    rotations = rotation_from_vector(torch.randn(n, 3, generator=generator) * 0.01) @ true.rotations
    shifts = torch.zeros(n, 2)
    before = float(geodesic_distance(rotations, true.rotations).max())
    for _ in range(6):
        scale, offset = 1.3, 0.2
        found = pose_step((images - offset) / scale, torch.ones(24, 24), values, rotations, shifts, angle_sigma=5.0)
        rotations, shifts = rotation_from_vector(found.turns) @ rotations, shifts + found.shifts
    assert before > 0.5
    assert float(geodesic_distance(rotations, true.rotations).max()) < 0.02
    torch.testing.assert_close(shifts, true.shifts, atol=2e-3, rtol=0)


def test_pose_step_does_not_depend_on_the_batch(case: Any) -> None:
    values, shifts = _volume(40), torch.zeros(25, 2)
    arguments = (case.stack.images, torch.ones(40, 40), values, case.nominal.rotations, shifts)
    for a, b in zip(*(pose_step(*arguments, angle_sigma=0.1, batch_size=b) for b in (12, 25)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_gauge_of_translation_and_turn() -> None:
    generator = torch.Generator().manual_seed(7)
    rotations = random_rotations(9, generator=generator)
    movement = torch.randn(3, generator=generator)
    steps = (rotations[:, :2] @ movement).view(9, 2)
    assert float(without_common_translation(steps, rotations).abs().max()) < 1e-5
    common = rotation_from_vector(torch.tensor([0.01, -0.02, 0.03]))
    back = turned(rotations @ common, torch.zeros(9, 3), rotations)
    torch.testing.assert_close(back, rotations, atol=1e-5, rtol=0)


def test_tilt_axis_is_found(make: Any) -> None:
    case = make(axis=3.3, dose=400.0)
    turn, coherence = find_tilt_axis(case.stack.images - 3, case.nominal.rotations, 12)
    assert turn == pytest.approx(3.3, abs=0.7)
    assert coherence > 0.9
    settings = replace(SETTINGS, axis_reach=8.0)
    found = align(case.stack, case.nominal, settings)
    assert float(geodesic_distance(found.poses.rotations, case.true.rotations).max()) < 0.7
    seen = axis_direction(case.true.rotations)
    torch.testing.assert_close(seen.norm(dim=-1), torch.ones(25), atol=1e-4, rtol=0)


def test_bad_input_in_one_line(case: Any) -> None:
    few = torch.arange(2)
    empty = case.stack.images.clone()
    empty[4] = 0
    for stack, poses, settings, said in (
        (case.stack, case.nominal[few], SETTINGS, "2 poses for 25 images"),
        (case.stack[few], case.nominal[few], SETTINGS, "at least 3"),
        (case.stack, case.nominal, replace(SETTINGS, resolution=0.0), "resolution is 0"),
        (case.stack, case.nominal, replace(SETTINGS, largest_box=4), "largest_box is 4"),
        (ImageStack(empty, 1.0), case.nominal, SETTINGS, "image 5 is empty"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            align(stack, poses, settings)
        assert "\n" not in str(caught.value)
