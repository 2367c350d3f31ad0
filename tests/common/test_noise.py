"""Whitening, the particle's extent and the contrast, on images whose noise and particle are known."""

import math

import pytest
import torch
from ase.build import bulk

from common.data import ImageStack, InputError
from common.noise import contrast_sign, estimate_noise, particle_radius, whiten
from common.noise_spectrum import radius_grid, shell_grid
from common.particle_extent import mean_thickness
from common.simulation import Imaging, gold_cluster, simulate_images


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def coloured_noise(n, box, power, seed):
    white = torch.randn(n, box, box, generator=seeded(seed))
    return torch.fft.irfft2(torch.fft.rfft2(white) * torch.sqrt(power), s=(box, box))


def peaked_power(box):
    """A spectrum with a hump, as amorphous carbon gives in phase contrast, over flat counting noise."""
    shell = shell_grid(box, "cpu") * 64 / box
    return 2 + 6 * torch.exp(-(((shell - 12) / 6) ** 2))


@pytest.fixture(scope="module")
def cluster():
    return gold_cluster(55, generator=seeded(0))


@pytest.mark.parametrize("box", [64, 65])
def test_the_border_becomes_white_with_unit_variance(box):
    power = peaked_power(box)
    images = 50 + coloured_noise(200, box, power, 1)
    particle = (radius_grid(box) < 15) * torch.randn(200, box, box, generator=seeded(2)) * 5
    stack = ImageStack(images + particle, 0.5)
    noise = estimate_noise(stack, radius=9.0)
    white = whiten(stack, noise).images
    border = radius_grid(box) > 22
    assert white[:, border].var().item() == pytest.approx(1, abs=0.02)
    assert white[:, border].mean().item() == pytest.approx(0, abs=0.02)
    assert noise.mean.mean().item() == pytest.approx(50, abs=0.1)
    # the filter that was learned from the border alone is the inverse of the amplitude that made the noise
    inner = (shell_grid(box, "cpu") > 3) & (shell_grid(box, "cpu") < box // 2)
    ratio = (noise.filter * torch.sqrt(power))[inner]
    assert ratio.mean().item() == pytest.approx(1, abs=0.02)
    assert ratio.std() < 0.05
    neighbours = (white[:, :-1, :] * white[:, 1:, :])[:, border[:-1] & border[1:]].mean()
    assert abs(float(neighbours)) < 0.02


def test_ramps_and_levels_of_single_images_are_removed():
    ramp = (torch.arange(64.0) / 10 - 3.2).expand(64, 64)
    level = torch.arange(20.0)[:, None, None]
    flat = torch.randn(20, 64, 64, generator=seeded(3))
    stack = ImageStack(flat + level * ramp + 10 * level, 0.5)
    noise = estimate_noise(stack, radius=8.0)
    white = whiten(stack, noise).images
    assert white[:, :, :10].mean((1, 2)).abs().max() < 0.1
    assert (noise.mean - 10 * torch.arange(20.0)).abs().max() < 0.2


def test_images_with_more_noise_are_scaled_and_equal_ones_are_not():
    images = torch.randn(100, 64, 64, generator=seeded(4))
    equal = estimate_noise(ImageStack(images, 0.5), radius=8.0)
    assert (equal.scale - 1).abs().max() < 0.03
    images = torch.cat((images[:50], 2 * images[50:]))
    noise = estimate_noise(ImageStack(images, 0.5), radius=8.0)
    assert (noise.scale[50:].mean() / noise.scale[:50].mean()).item() == pytest.approx(2, rel=0.02)


def test_batch_size_does_not_change_the_result():
    stack = ImageStack(torch.randn(11, 48, 48, generator=seeded(5)), 0.5)
    one, all_ = (estimate_noise(stack, radius=7.0, batch_size=size) for size in (4, 100))
    torch.testing.assert_close(one.filter, all_.filter)
    torch.testing.assert_close(whiten(stack, one, batch_size=3).images, whiten(stack, all_).images)


def test_counts_become_single_precision_and_double_stays():
    counts = torch.poisson(torch.full((6, 48, 48), 20.0), generator=seeded(13))
    results = []
    for dtype in (torch.int16, torch.float32, torch.float64):
        stack = ImageStack(counts.to(dtype), 0.5)
        results.append(whiten(stack, estimate_noise(stack, radius=7.0)).images)
    assert [x.dtype for x in results] == [torch.float32, torch.float32, torch.float64]
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[1].double(), results[2], atol=1e-4, rtol=0)


def test_a_model_image_passes_the_same_filter(cluster):
    """The formula in `whiten`: subtracting the filtered model leaves white noise where the particle was."""
    clean = simulate_images(cluster, 40, generator=seeded(6)).stack.images
    counts = 60 * (1 + 0.1 * clean) + coloured_noise(40, 80, 9 * peaked_power(80), 7)
    noise = estimate_noise(ImageStack(counts, 0.35), radius=10.0)
    white = whiten(ImageStack(counts, 0.35), noise).images
    model = torch.fft.irfft2(noise.filter * torch.fft.rfft2(0.1 * clean), s=(80, 80))
    model = model * (noise.mean / noise.scale)[:, None, None]
    inside = radius_grid(80) < 18
    assert (white[:, inside] ** 2).mean() > 1.3
    assert ((white - model)[:, inside] ** 2).mean().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(("model", "noise"), [("projection", {"snr": 0.2}), ("phase_object", {"dose": 200.0})])
def test_the_particle_radius_is_found(cluster, model, noise):
    carbon = 0.0 if model == "projection" else 20.0
    data = simulate_images(cluster, 60, box_size=64, model=model, carbon_thickness=carbon, generator=seeded(8), **noise)
    extent = particle_radius(data.stack)
    outermost = float((cluster.positions**2).sum(1).max() ** 0.5)
    ball = float(((cluster.positions**2).sum(1).mean() * 5 / 3) ** 0.5)
    assert ball - 1 < extent.radius < outermost + 1
    assert extent.shift_spread == pytest.approx(0.7, abs=0.5)


@pytest.mark.parametrize(("cs_mm", "defocus_range", "sign"), [(-0.013, (-110.0, -50.0), 1), (0.013, (50.0, 110.0), -1)])
def test_bright_and_dark_atoms_are_told_apart(cluster, cs_mm, defocus_range, sign):
    imaging = Imaging(spherical_aberration_mm=cs_mm, defocus_range=defocus_range)
    data = simulate_images(
        cluster,
        50,
        box_size=64,
        model="phase_object",
        dose=400.0,
        carbon_thickness=20.0,
        imaging=imaging,
        generator=seeded(9),
    )
    contrast = contrast_sign(data.stack)
    assert contrast.sign == sign
    assert contrast.significance > 3


def test_contrast_of_pure_noise_is_not_determined():
    stack = ImageStack(torch.randn(60, 64, 64, generator=seeded(10)), 0.35)
    assert contrast_sign(stack).significance < 3.5


def test_noise_free_images_stay_finite(cluster):
    stack = simulate_images(cluster, 8, generator=seeded(11)).stack
    assert bool(torch.isfinite(whiten(stack, estimate_noise(stack)).images).all())


def test_images_that_cannot_be_used_are_named():
    images = torch.randn(4, 32, 32, generator=seeded(12))
    images[2] = 7.0
    with pytest.raises(InputError, match=r"image 3 is constant \(7\)"):
        estimate_noise(ImageStack(images, 0.5))
    with pytest.raises(InputError, match="empty"):
        estimate_noise(ImageStack(images[:0], 0.5))
    good = ImageStack(images[:2], 0.5)
    with pytest.raises(InputError, match="cut larger boxes"):
        estimate_noise(good, radius=9.0)
    with pytest.raises(InputError, match="expected a positive"):
        estimate_noise(good, radius=math.nan)
    with pytest.raises(InputError, match="noise model is of 2 images"):
        whiten(ImageStack(images[:1], 0.5), estimate_noise(good, radius=5.0))


@pytest.mark.parametrize(("half", "aspect"), [(9.0, 3.0), (7.0, 0.4)], ids=["needle", "disc"])
def test_the_length_of_a_particle_that_is_no_ball_is_found(half, aspect):
    lattice = bulk("Au", cubic=True) * (8, 8, 8)
    lattice.positions -= lattice.positions.mean(0) + 0.3
    across = half / aspect if aspect > 1 else half
    along = half if aspect > 1 else half * aspect
    x, y, z = lattice.positions.T
    particle = lattice[(x**2 + y**2) / across**2 + z**2 / along**2 < 1]
    data = simulate_images(particle, 60, box_size=72, snr=0.5, generator=seeded(11))
    extent = particle_radius(data.stack)
    assert 0.85 * half < extent.radius < 1.35 * half
    assert extent.shift_spread < 1.5


@pytest.mark.parametrize("aspect", [0.4, 1.0, 2.5])
def test_the_mean_thickness_of_an_ellipsoid_holds_its_volume(aspect):
    radius = 60.0
    r = torch.arange(0.0, 61.0, 0.25, dtype=torch.float64)
    halves = mean_thickness(r, radius, aspect, steps=400)
    axes = (radius, radius / aspect, radius / aspect) if aspect > 1 else (radius, radius, radius * aspect)
    volume = 4 / 3 * math.pi * math.prod(axes)
    assert torch.trapezoid(2 * math.pi * r * 2 * halves, r).item() == pytest.approx(volume, rel=0.01)
    assert halves[0].item() < radius if aspect != 1 else halves[0].item() == radius
