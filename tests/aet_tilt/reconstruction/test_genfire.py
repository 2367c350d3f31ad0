import math

import pytest
import torch

from aet_tilt.reconstruction.fourier_grid import grid_frequencies, lay_onto_grid
from aet_tilt.reconstruction.genfire import GenfireSettings, enforced_resolution, genfire
from aet_tilt.reconstruction.problem import make_problem
from aet_tilt.reconstruction.real_space import filtered_back_projection
from common.data import ImageStack, InputError, Poses
from common.rotations import random_rotations


def transform_of(case, size, index):
    """The transform of the phantom itself at grid points, from its atoms."""
    z, y, x = index // (size * (size // 2 + 1)), index // (size // 2 + 1) % size, index % (size // 2 + 1)
    signed = torch.stack([torch.where(axis > size // 2, axis - size, axis) for axis in (x, y, z)], -1)
    k = signed.double() / (size * 0.5)
    phases = torch.exp(-2j * math.pi * (k @ case.centres.double().T)).sum(-1)
    fall = torch.exp(-2 * (math.pi * case.width) ** 2 * k.square().sum(-1))
    return phases * fall * (2 * math.pi * case.width**2) ** 1.5 / 0.5**3


@pytest.mark.parametrize("general", [False, True])
def test_grid_points_take_the_value_of_the_transform(phantom, new_tilts, general):
    poses = Poses(random_rotations(20, generator=torch.Generator().manual_seed(0)), torch.zeros(20, 2))
    poses = poses if general else new_tilts(20)
    poses = Poses(poses.rotations, torch.randn(20, 2, generator=torch.Generator().manual_seed(1)) * 0.3)
    measured = lay_onto_grid(phantom.images(poses), poses, 0.5, 64, 0.1)
    truth = transform_of(phantom, 64, measured.points)
    assert float((measured.values / 0.5 - truth).norm() / truth.norm()) < 0.06
    assert float(measured.frequencies.max()) < 0.5
    assert torch.equal(measured.frequencies, grid_frequencies(64, measured.points).float())


def test_genfire_beats_back_projection(counted, agreement):
    found = genfire(counted, GenfireSettings(iterations=30))
    assert agreement(found.values) > agreement(filtered_back_projection(counted)) + 0.1
    assert bool((found.values >= 0).all())


def test_genfire_takes_any_poses(phantom, agreement):
    poses = Poses(random_rotations(40, generator=torch.Generator().manual_seed(0)), torch.zeros(40, 2))
    problem = make_problem(ImageStack(phantom.images(poses), 0.5), poses)
    found = genfire(problem, GenfireSettings(iterations=20))
    assert agreement(found.values) > 0.97


def test_resolution_is_extended_and_then_suppressed():
    settings = GenfireSettings(iterations=21)
    course = [enforced_resolution(i, settings) for i in range(21)]
    assert course[:11] == sorted(course[:11])
    assert course[10:] == sorted(course[10:], reverse=True)
    assert max(course) == pytest.approx(0.5)
    assert course[0] == pytest.approx(0.05)


def test_wrong_settings_are_named():
    with pytest.raises(InputError, match="reach is 2"):
        GenfireSettings(reach=2.0)
    with pytest.raises(InputError, match=r"0\.5 times"):
        GenfireSettings(oversampling=0.5)
