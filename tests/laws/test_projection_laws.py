"""What the projector, the shifts and the reconstruction obey: adjoint, covariance, batch, dtype."""

import pytest
import torch

from common.data import ImageStack, Poses, Volume
from common.fourier import shift_images
from common.gridding import (
    averaged_transform,
    interpolate_points,
    map_from_transform,
    oversampled_adjoint,
    oversampled_transform,
    spread_points,
)
from common.projection import backproject, extract_slices, insert_slices, project
from common.reconstruction import reconstruct
from common.rotations import random_rotations

SIZES = pytest.mark.parametrize("d", [15, 16])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def noise(device):
    def drawn(*shape, seed=0, dtype=torch.float64):
        return torch.randn(*shape, generator=generator(seed), dtype=dtype).to(device)

    return drawn


@pytest.fixture
def views(noise, device):
    def drawn(n, dtype=torch.float64):
        rotations = random_rotations(n, generator=generator(7), dtype=dtype).to(device)
        return Poses(rotations, noise(n, 2, seed=8, dtype=dtype))

    return drawn


def inner(a, b):
    return float((a * b.conj()).real.sum())


@SIZES
@pytest.mark.parametrize("max_shell", [None, 4])
def test_backprojection_is_the_adjoint_of_projection(d, max_shell, noise, views):
    volume, images, poses = noise(d, d, d), noise(5, d, d, seed=1), views(5)
    forward = project(Volume(volume, 0.6), poses, max_shell=max_shell).images
    back = backproject(ImageStack(images, 0.6), poses, max_shell=max_shell).values
    assert inner(forward, images) == pytest.approx(inner(volume, back), rel=1e-10)


@SIZES
def test_kernels_have_their_adjoints(d, noise, views):
    volume, poses = noise(d, d, d), views(4)
    grid = oversampled_transform(volume)
    other = noise(*grid.shape, seed=2) + 1j * noise(*grid.shape, seed=3)
    assert inner(grid, other) == pytest.approx(inner(volume, oversampled_adjoint(other, d)), rel=1e-10)
    slices = noise(4, d, d // 2 + 1, seed=4) + 1j * noise(4, d, d // 2 + 1, seed=5)
    forward, back = extract_slices(other, poses.rotations, d), insert_slices(slices, poses.rotations)
    assert inner(forward, slices) == pytest.approx(inner(other, back), rel=1e-10)
    points = noise(50, 3, seed=6)
    values = noise(50, seed=7) + 1j * noise(50, seed=8)
    spread = spread_points(values, points, len(other))
    assert inner(interpolate_points(other, points), values) == pytest.approx(inner(other, spread), rel=1e-10)


def test_gradient_of_the_projection_is_the_backprojection(noise, views):
    volume, images, poses = noise(12, 12, 12).requires_grad_(), noise(3, 12, 12, seed=1), views(3)
    (project(Volume(volume, 0.5), poses).images * images).sum().backward()
    assert torch.allclose(volume.grad, backproject(ImageStack(images, 0.5), poses).values, atol=1e-12)


@SIZES
def test_shift_back_is_the_adjoint_of_the_shift(d, noise):
    a, b, shifts = noise(3, d, d), noise(3, d, d, seed=1), noise(3, 2, seed=2)
    assert inner(shift_images(a, shifts), b) == pytest.approx(inner(a, shift_images(b, -shifts)), rel=1e-10)


@SIZES
def test_averaged_transform_is_inverted_by_its_map(d, device):
    axis = torch.arange(d, device=device).double() - d // 2
    x, y, z = (torch.exp(-((axis - c) ** 2) / (2 * 1.5**2)) for c in (1.0, -2.0, 0.5))
    volume = z[:, None, None] * y[:, None] * x
    assert torch.allclose(map_from_transform(averaged_transform(volume), d), volume, atol=2e-3)


@pytest.mark.parametrize("d", [24, 25])
def test_turning_specimen_and_pose_together_changes_nothing(d, noise, views, device):
    axis = torch.arange(d, device=device).double() - d // 2
    centres = noise(6, 3) * d / 10
    turn = random_rotations(1, generator=generator(4), dtype=torch.float64)[0].to(device)

    def atoms(positions):
        x, y, z = (torch.exp(-((axis - positions[:, i : i + 1]) ** 2) / (2 * 1.2**2)) for i in range(3))
        return Volume(torch.einsum("nz,ny,nx->zyx", z, y, x), 1.0)

    poses = views(4)
    still = project(atoms(centres), poses).images
    turned = project(atoms(centres @ turn.T), Poses(poses.rotations @ turn.T, poses.shifts)).images
    assert float((still - turned).abs().max() / still.max()) < 3e-3


def test_batch_size_changes_nothing(noise, views):
    volume, images, poses = noise(12, 12, 12), noise(7, 12, 12, seed=1), views(7)
    stack = ImageStack(images, 1.0)
    for function in (
        lambda size: project(Volume(volume, 1.0), poses, batch_size=size).images,
        lambda size: backproject(stack, poses, batch_size=size).values,
        lambda size: reconstruct(stack, poses, batch_size=size).values,
    ):
        assert torch.allclose(function(2), function(100), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_data(dtype, noise, views):
    poses, volume = views(3, dtype), Volume(noise(8, 8, 8, dtype=dtype), 1.0)
    stack = project(volume, poses)
    assert stack.images.dtype == dtype
    assert backproject(stack, poses).values.dtype == dtype
    assert reconstruct(stack, poses).values.dtype == dtype


def test_single_precision_agrees_with_double(noise, views):
    poses, volume = views(3), noise(16, 16, 16)
    single = Poses(poses.rotations.float(), poses.shifts.float())
    a = project(Volume(volume, 1.0), poses).images
    b = project(Volume(volume.float(), 1.0), single).images
    assert float((a - b).abs().max() / a.abs().max()) < 1e-4
