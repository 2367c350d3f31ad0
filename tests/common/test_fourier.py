import math

import pytest
import torch

from common.fourier import (
    crop_or_pad,
    fft2_centred,
    fft3_centred,
    frequencies_2d,
    frequencies_3d,
    ifft2_centred,
    ifft3_centred,
    irfft2_origin,
    irfft3_origin,
    resample_fourier,
    rfft2_origin,
    rfft3_origin,
    rfft_frequencies_2d,
    rfft_frequencies_3d,
    rfft_multiplicity,
    rfft_shell_indices,
    shell_indices,
    shell_mean,
    shell_sum,
    shift_images,
)

SIZES = pytest.mark.parametrize("n", [8, 9])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@SIZES
def test_point_at_the_origin_has_a_flat_real_transform(n):
    image, volume = torch.zeros(n, n).double(), torch.zeros(n, n, n).double()
    image[n // 2, n // 2] = volume[n // 2, n // 2, n // 2] = 1
    for transform in (fft2_centred(image), rfft2_origin(image), fft3_centred(volume), rfft3_origin(volume)):
        assert torch.allclose(transform, torch.ones_like(transform))


@SIZES
def test_transforms_invert(n):
    image, volume = noise(2, n, n), noise(n, n, n)
    assert torch.allclose(ifft2_centred(fft2_centred(image)).real, image)
    assert torch.allclose(irfft2_origin(rfft2_origin(image), n), image)
    assert torch.allclose(ifft3_centred(fft3_centred(volume)).real, volume)
    assert torch.allclose(irfft3_origin(rfft3_origin(volume), n), volume)


@SIZES
def test_a_wave_falls_on_its_frequency(n):
    pixel = 0.5
    x = (torch.arange(n) - n // 2).double() * pixel
    wave = torch.cos(2 * math.pi * (2 / (n * pixel)) * x).expand(n, n)
    k_x, k_y = frequencies_2d(n, pixel, dtype=torch.float64)
    found = fft2_centred(wave).abs() > 1e-6
    assert sorted(k_x[found].tolist()) == pytest.approx([-2 / (n * pixel), 2 / (n * pixel)])
    assert k_y[found].tolist() == [0, 0]
    r_x, r_y = rfft_frequencies_2d(n, pixel, dtype=torch.float64)
    found = rfft2_origin(wave).abs() > 1e-6
    assert r_x[found].tolist() == pytest.approx([2 / (n * pixel)])
    assert r_y[found].tolist() == [0]


@SIZES
def test_volume_frequencies_are_in_order_x_y_z(n):
    z = torch.cos(2 * math.pi / n * (torch.arange(n) - n // 2).double())
    found = fft3_centred(z[:, None, None].expand(n, n, n)).abs() > 1e-6
    for grid, expected in zip(frequencies_3d(n, 1.0), ([0, 0], [0, 0], [-1 / n, 1 / n]), strict=True):
        assert sorted(grid[found].tolist()) == pytest.approx(expected)
    found = rfft3_origin(z[:, None, None].expand(n, n, n)).abs() > 1e-6
    assert sorted(rfft_frequencies_3d(n, 1.0)[2][found].tolist()) == pytest.approx([-1 / n, 1 / n])


@SIZES
def test_parseval_with_the_multiplicity_of_half_transforms(n):
    image = noise(n, n)
    power = (rfft2_origin(image).abs().square() * rfft_multiplicity(n, dtype=torch.float64)).sum() / n**2
    assert torch.allclose(power, image.square().sum())


@SIZES
@pytest.mark.parametrize("ndim", [2, 3])
def test_half_and_full_grids_agree_on_shell_means(n, ndim):
    power = noise(*[n] * ndim)
    full, half = (fft2_centred, rfft2_origin) if ndim == 2 else (fft3_centred, rfft3_origin)
    a = shell_mean(full(power).abs().square(), shell_indices(n, ndim), n // 2 + 1)
    weight = rfft_multiplicity(n, dtype=torch.float64)
    shells = rfft_shell_indices(n, ndim)
    b = shell_sum(half(power).abs().square() * weight, shells, n // 2 + 1)
    b = b / shell_sum(weight.expand(shells.shape), shells, n // 2 + 1)
    assert torch.allclose(a, b)


def test_shell_mean_keeps_leading_dims_and_complex_values():
    values = noise(3, 2, 8, 8) + 1j * noise(3, 2, 8, 8, seed=1)
    shells = shell_indices(8, 2)
    means = shell_mean(values, shells, 5)
    assert means.shape == (3, 2, 5)
    assert torch.allclose(means[1, 1, 3], values[1, 1][shells == 3].mean())


@SIZES
def test_whole_shifts_roll(n):
    image = noise(n, n)
    shifted = shift_images(image, torch.tensor([2.0, -1.0]).double())
    assert torch.allclose(shifted, image.roll((-1, 2), (0, 1)))


@SIZES
def test_fractional_shift_moves_a_wave_by_its_phase(n):
    x = (torch.arange(n) - n // 2).double()
    wave = torch.cos(2 * math.pi * 3 / n * x).expand(n, n)
    shifted = shift_images(wave, torch.tensor([0.37, 0.9]).double())
    assert torch.allclose(shifted, torch.cos(2 * math.pi * 3 / n * (x - 0.37)).expand(n, n))


def test_gradients_of_shifts():
    image, shift = noise(2, 5, 5).requires_grad_(), noise(2, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(shift_images, (image, shift))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("n", "m"), [(8, 11), (8, 5), (9, 12), (9, 4)])
def test_crop_or_pad_keeps_the_origin(n, m, ndim):
    array = noise(*[n] * ndim)
    assert crop_or_pad(array, m, ndim)[(m // 2,) * ndim] == array[(n // 2,) * ndim]
    back = crop_or_pad(crop_or_pad(array, m, ndim), n, ndim)
    assert torch.equal(back, array) if m > n else torch.equal(crop_or_pad(back, m, ndim), crop_or_pad(array, m, ndim))


@pytest.mark.parametrize(("n", "m"), [(8, 8), (8, 9), (8, 16), (9, 10), (9, 18)])
def test_upsampling_loses_nothing(n, m):
    image = noise(2, n, n)
    assert torch.allclose(resample_fourier(resample_fourier(image, m, 2), n, 2), image)


@pytest.mark.parametrize(("n", "m"), [(8, 12), (9, 13), (12, 9), (13, 8)])
def test_resampling_keeps_a_wave_and_its_origin(n, m):
    def wave(size):
        return torch.cos(2 * math.pi / size * (torch.arange(size) - size // 2) + 0.3).double().expand(size, size, size)

    assert torch.allclose(resample_fourier(wave(n), m, 3), wave(m), atol=1e-6)
