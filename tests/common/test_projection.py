import math

import pytest
import torch

from common.data import InputError, Poses, Volume
from common.gridding import interpolate_points, interpolate_with_gradient, largest_shell, oversampled_transform
from common.projection import extract_slices, project, slice_frequencies
from common.rotations import random_rotations, rotation_from_vector

SIZES = pytest.mark.parametrize("d", [32, 33])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(d, voxel, centre, sigma):
    axis = (torch.arange(d).double() - d // 2) * voxel
    x, y, z = (torch.exp(-((axis - c) ** 2) / (2 * sigma**2)) for c in centre.tolist())
    return z[:, None, None] * y[:, None] * x


@SIZES
def test_projection_of_a_gaussian_is_the_analytic_gaussian_at_any_pose_and_shift(d):
    voxel, sigma = 0.7, 1.1
    centre = torch.tensor([1.9, -2.3, 0.8]).double()
    rotations = random_rotations(6, generator=generator(), dtype=torch.float64)
    shifts = torch.randn(6, 2, generator=generator(1), dtype=torch.float64)
    images = project(Volume(gaussian(d, voxel, centre, sigma), voxel), Poses(rotations, shifts)).images
    seen = (rotations @ centre)[:, :2] + shifts
    axis = (torch.arange(d).double() - d // 2) * voxel
    x = torch.exp(-((axis - seen[:, :1]) ** 2) / (2 * sigma**2))
    y = torch.exp(-((axis - seen[:, 1:]) ** 2) / (2 * sigma**2))
    expected = y[:, :, None] * x[:, None, :] * sigma * math.sqrt(2 * math.pi)
    assert float((images - expected).abs().max() / expected.max()) < 1e-3


@SIZES
def test_slices_agree_with_the_exact_sum_over_voxels(d):
    values = torch.randn(d, d, d, generator=generator(), dtype=torch.float64)
    axis = torch.arange(d).double() - d // 2
    voxels = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).flip(-1).reshape(-1, 3)
    inside = voxels.norm(dim=-1) < 0.4 * d
    values = values * inside.view(d, d, d)
    rotation = random_rotations(1, generator=generator(1), dtype=torch.float64)
    frequencies, index = slice_frequencies(d, largest_shell(d), dtype=torch.float64)
    chosen = torch.arange(0, len(index), 5)
    k = frequencies[chosen] @ rotation[0, :2] / d
    exact = torch.exp(-2j * math.pi * (k @ voxels[inside].T)) @ values.flatten()[inside].to(torch.complex128)
    slices = extract_slices(oversampled_transform(values), rotation, d).flatten()[index[chosen]]
    assert float((slices - exact).norm() / exact.norm()) < 6e-4


def test_unturned_projection_sums_over_z():
    volume = gaussian(32, 1.0, torch.tensor([3.0, -1.0, 2.0]), 1.6)
    poses = Poses(torch.eye(3).double()[None], torch.zeros(1, 2).double())
    image = project(Volume(volume, 0.5), poses).images[0]
    assert torch.allclose(image, volume.sum(0) * 0.5, atol=2e-3)


def test_band_limit_keeps_the_shells_inside_it():
    volume = Volume(gaussian(32, 1.0, torch.tensor([3.0, -1.0, 2.0]), 1.0), 1.0)
    poses = Poses(random_rotations(2, generator=generator(), dtype=torch.float64), torch.ones(2, 2).double())
    full = torch.fft.rfft2(project(volume, poses).images)
    cut = torch.fft.rfft2(project(volume, poses, max_shell=6).images)
    k = torch.fft.fftfreq(32)[:, None] ** 2 + torch.fft.rfftfreq(32) ** 2
    inside = k.sqrt() * 32 < 6.5
    assert torch.allclose(cut[:, inside], full[:, inside], atol=1e-9)
    assert float(cut[:, ~inside].abs().max()) < 1e-9


def test_gradients_in_values_rotations_and_shifts():
    d = 6
    values = torch.randn(d, d, d, generator=generator(), dtype=torch.float64).requires_grad_()
    start = random_rotations(2, generator=generator(1), dtype=torch.float64)
    turn = torch.zeros(2, 3).double().requires_grad_()
    shifts = torch.randn(2, 2, generator=generator(2), dtype=torch.float64).requires_grad_()

    def images(values, turn, shifts):
        return project(Volume(values, 0.5), Poses(rotation_from_vector(turn) @ start, shifts)).images

    assert torch.autograd.gradcheck(images, (values, turn, shifts))


def test_interpolated_slopes_are_the_derivatives():
    grid = oversampled_transform(torch.randn(8, 8, 8, generator=generator(), dtype=torch.float64))
    points = torch.randn(20, 3, generator=generator(1), dtype=torch.float64)
    _, slopes = interpolate_with_gradient(grid, points)
    step = 1e-6
    for axis in range(3):
        offset = torch.zeros(3).double()
        offset[axis] = step
        numeric = (interpolate_points(grid, points + offset) - interpolate_points(grid, points - offset)) / (2 * step)
        assert torch.allclose(slopes[:, axis], numeric, atol=1e-6)


def test_stack_without_poses_is_empty():
    empty = project(Volume(torch.ones(8, 8, 8), 1.0), Poses(torch.zeros(0, 3, 3), torch.zeros(0, 2)))
    assert empty.images.shape == (0, 8, 8)


def test_mixed_precision_and_bands_past_nyquist_are_refused():
    volume = Volume(torch.ones(8, 8, 8), 1.0)
    with pytest.raises(InputError, match="float64"):
        project(volume, Poses(torch.eye(3).double()[None], torch.zeros(1, 2).double()))
    with pytest.raises(InputError, match="max_shell is 4, expected 0 to 3"):
        project(volume, Poses(torch.eye(3)[None], torch.zeros(1, 2)), max_shell=4)
