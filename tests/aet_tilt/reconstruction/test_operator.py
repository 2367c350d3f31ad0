import pytest
import torch

from aet_tilt.reconstruction.levelling import level, turn_images
from aet_tilt.reconstruction.operator import GridOperator, make_operator
from aet_tilt.reconstruction.problem import make_problem, row_band, squared_norm
from aet_tilt.reconstruction.tilt_operator import TiltOperator
from common.data import ImageStack, InputError, Poses
from common.rotations import random_rotations, rotation_from_vector

ANGLES = torch.linspace(-85.0, 170.0, 9, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shifted(poses):
    return Poses(poses.rotations, torch.randn(len(poses), 2, generator=generator(1)).to(poses.rotations))


def random_poses(n, dtype):
    return Poses(random_rotations(n, generator=generator(), dtype=dtype), torch.zeros(n, 2, dtype=dtype))


@pytest.mark.parametrize("d", [12, 15])
@pytest.mark.parametrize("kind", [TiltOperator, GridOperator])
def test_back_projection_is_the_exact_adjoint(d, kind):
    poses = Poses.from_tilt_angles(ANGLES) if kind is TiltOperator else random_poses(9, torch.float64)
    operator = make_operator(shifted(poses), d, 0.7)
    assert isinstance(operator, kind)
    values = torch.randn(d, d, d, generator=generator(2), dtype=torch.float64)
    images = torch.randn(9, d, d, generator=generator(3), dtype=torch.float64)
    there, back = operator.project(values), operator.backproject(images)
    assert float((there * images).sum() - (values * back).sum()) == pytest.approx(0, abs=1e-11 * float(there.norm()))


@pytest.mark.parametrize("box", [32, 33])
def test_projections_are_those_of_atoms_even_in_the_corners_of_the_box(new_phantom, box):
    # atoms out to 0.62 of the box's side from its middle along the diagonal of a slice; width: nothing beyond Nyquist
    case = new_phantom(box, fill=0.3, width=0.75, dtype=torch.float64)
    far = torch.tensor([[0.42, 0.2, 0.42], [-0.4, -0.3, 0.35]], dtype=torch.float64) * box * 0.5
    case = type(case)(torch.cat((case.centres, far)), case.width, case.box)
    poses = shifted(Poses.from_tilt_angles(ANGLES))
    made = make_operator(poses, box, 0.5).project(case.volume)
    # an atom cut by the face of the box is cut in the map and whole in the images
    assert float((made - case.images(poses)).norm() / made.norm()) < 2e-2
    near = type(case)(case.centres[:-2], case.width, case.box)
    made = make_operator(poses, box, 0.5).project(near.volume)
    assert float((made - near.images(poses)).norm() / made.norm()) < 3e-5


def test_matter_outside_an_image_does_not_come_in_at_the_other_side():
    values = torch.zeros(24, 24, 24)
    values[1, 12, 22] = 1  # 11 pixels up, 10 to the right: at 45 degrees it leaves the image
    seen = make_operator(Poses.from_tilt_angles(torch.tensor([-45.0])), 24, 1.0).project(values)
    assert float(seen.abs().max()) < 0.12


def test_both_operators_agree():
    d, poses = 20, shifted(Poses.from_tilt_angles(ANGLES))
    values = torch.zeros(d, d, d, dtype=torch.float64)
    values[6:14, 6:14, 6:14] = torch.rand(8, 8, 8, generator=generator(4), dtype=torch.float64)
    ours, grid = make_operator(poses, d, 0.5), GridOperator(poses, d, 0.5)
    # the gridding in three dimensions leaves out what lies beyond the circle of Nyquist; so compare low frequencies
    for a, b in ((ours.project(values), grid.project(values)),):
        low = (torch.fft.fftfreq(d).abs() < 0.3).nonzero().flatten()
        fa, fb = (torch.fft.fft2(part)[:, low][:, :, low] for part in (a, b))
        assert float((fa - fb).norm() / fa.norm()) < 3e-3


def test_a_subset_projects_like_the_whole():
    operator = make_operator(shifted(Poses.from_tilt_angles(ANGLES)), 14, 0.5)
    values = torch.randn(14, 14, 14, generator=generator(5), dtype=torch.float64)
    index = torch.tensor([7, 0, 3])
    assert torch.allclose(operator.subset(index).project(values), operator.project(values)[index], atol=1e-12)


def test_a_band_of_rows_is_the_middle_of_the_whole():
    poses = shifted(Poses.from_tilt_angles(ANGLES))
    stack = ImageStack(torch.randn(9, 16, 16, generator=generator(6), dtype=torch.float64), 0.5)
    whole = make_problem(stack, poses)
    band = row_band(whole, 6)
    assert band.images.shape == (9, 6, 16)
    assert torch.allclose(
        band.operator.backproject(band.images), whole.operator.backproject(whole.images)[:, 5:11], atol=1e-10
    )


def test_the_squared_norm_bounds_every_map(clean):
    norm = squared_norm(clean)
    values = torch.rand(clean.support.shape, generator=generator(7))
    power = float(clean.operator.project(values).square().sum() / values.square().sum())
    assert 0.5 * norm < power < norm


def test_turned_images_are_those_of_the_turned_specimen(new_phantom):
    case = new_phantom(32, width=0.6, fill=0.28, dtype=torch.float64)
    tilts = Poses.from_tilt_angles(torch.linspace(-60, 60, 7, dtype=torch.float64))
    in_plane = rotation_from_vector(torch.tensor([0.0, 0.0, torch.deg2rad(torch.tensor(31.0))], dtype=torch.float64))
    poses = shifted(Poses(in_plane @ tilts.rotations, tilts.shifts))
    stack, levelled = level(ImageStack(case.images(poses), 0.5), poses)
    assert torch.allclose(levelled.rotations, tilts.rotations, atol=1e-6)
    assert float((stack.images - case.images(levelled)).norm() / stack.images.norm()) < 1e-3


def test_the_turn_back_is_the_adjoint():
    images, others = (torch.randn(3, 15, 15, generator=generator(k), dtype=torch.float64) for k in (8, 9))
    angles = torch.tensor([-40.0, 3.0, 44.0])
    ours, theirs = (turn_images(images, angles) * others).sum(), (images * turn_images(others, -angles)).sum()
    assert float(ours) == pytest.approx(float(theirs), abs=1e-11)


def test_poses_that_mix_the_rows_are_left_as_they_are():
    poses = random_poses(4, torch.float32)
    stack = ImageStack(torch.zeros(4, 8, 8), 1.0)
    assert level(stack, poses) == (stack, poses)


def test_what_does_not_fit_is_refused():
    stack, poses = ImageStack(torch.zeros(3, 8, 8), 1.0), Poses.from_tilt_angles(torch.zeros(3))
    with pytest.raises(InputError, match="2 poses for 3 images"):
        make_problem(stack, poses[torch.arange(2)])
    with pytest.raises(InputError, match="support has shape"):
        make_problem(stack, poses, torch.ones(7, 7, 7))
    with pytest.raises(InputError, match="float64"):
        make_problem(stack, Poses(poses.rotations.double(), poses.shifts.double()))
    with pytest.raises(InputError, match="no images"):
        make_problem(ImageStack(torch.zeros(0, 8, 8), 1.0), poses[torch.arange(0)])
