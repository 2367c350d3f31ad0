import math

import pytest
import torch

from common.data import InputError, Volume
from common.fourier import shift_images
from common.registration import Registration, apply_registration, register_images, register_volumes
from common.rotations import geodesic_distance, random_rotations


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def phantom(d, n=25, sigma=1.2):
    centres = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator()), dim=-1)
    centres = centres * torch.rand(n, 1, generator=generator(1)) ** (1 / 3) * 0.25 * d
    axis = torch.arange(d) - d // 2
    x, y, z = (torch.exp(-((axis - centres[:, i : i + 1]) ** 2) / (2 * sigma**2)) for i in range(3))
    return torch.einsum("nz,ny,nx->zyx", z, y, x)


@pytest.mark.parametrize("n", [16, 17])
def test_shift_of_images_is_found_exactly(n):
    k = torch.fft.fftfreq(n)[:, None] ** 2 + torch.fft.rfftfreq(n) ** 2
    noise = torch.randn(3, n, n, generator=generator(), dtype=torch.float64)
    images = torch.fft.irfft2(torch.fft.rfft2(noise) * (-20 * k).exp(), s=(n, n))
    shifts = torch.tensor([[1.3, -2.7], [0.2, 0.4], [5.5, -6.1]]).double()
    assert torch.allclose(register_images(images, shift_images(images, shifts)), shifts, atol=1e-9)


def test_shift_of_noisy_images_is_found_to_the_noise():
    n = 64
    axis = torch.arange(n) - n // 2
    blob = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 3.0**2)).expand(50, n, n)
    shift = torch.tensor([2.4, -1.1])
    fixed = shift_images(blob, shift) + 0.1 * torch.randn(50, n, n, generator=generator())
    errors = register_images(blob, fixed) - shift
    # Cramér-Rao: sigma_noise / sqrt(sum (d blob / d x)^2) = 0.1 / sqrt(pi / 2)
    assert float(errors.std()) == pytest.approx(0.1 / math.sqrt(math.pi / 2), rel=0.25)


def test_applied_registration_moves_a_point_where_it_says():
    d, voxel = 24, 0.5
    axis = (torch.arange(d) - d // 2).double() * voxel

    def blob(centre):
        x, y, z = (torch.exp(-((axis - c) ** 2) / (2 * 0.8**2)) for c in centre.tolist())
        return z[:, None, None] * y[:, None] * x

    rotation = random_rotations(1, generator=generator(), dtype=torch.float64)[0]
    shift, point = torch.tensor([0.4, -0.3, 0.9]).double(), torch.tensor([1.5, 0.2, -0.7]).double()
    for inverted, sign in ((False, 1.0), (True, -1.0)):
        moved = apply_registration(Volume(blob(point), voxel), Registration(rotation, shift, inverted, 1.0, 0.0))
        assert torch.allclose(moved.values, blob(rotation @ (sign * point) + shift), atol=5e-3)


@pytest.mark.parametrize(("d", "inverted"), [(24, True), (25, False)])
def test_rotation_shift_and_hand_between_noisy_maps_are_found(d, inverted):
    voxel = 0.7
    truth = Registration(
        random_rotations(1, generator=generator(2))[0], torch.tensor([1.1, -0.6, 0.9]), inverted, 1.0, 0.0
    )
    moving = Volume(phantom(d), voxel)
    moved = apply_registration(moving, truth).values
    fixed = Volume(moved + 0.03 * torch.randn(d, d, d, generator=generator(3)), voxel)
    found = register_volumes(moving, fixed)
    assert found.inverted == inverted
    assert float(geodesic_distance(found.rotation, truth.rotation)) < 0.3
    assert torch.allclose(found.shift, truth.shift, atol=0.03)
    assert found.correlation > found.other_hand + 0.2


def test_maps_on_different_grids_are_refused():
    with pytest.raises(InputError, match="resample one"):
        register_volumes(Volume(torch.ones(8, 8, 8), 1.0), Volume(torch.ones(9, 9, 9), 1.0))
