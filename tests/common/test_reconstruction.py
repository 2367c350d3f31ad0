import pytest
import torch

from common.data import ImageStack, InputError, Poses, Volume
from common.projection import project
from common.reconstruction import reconstruct, reconstruct_halves, split_halves
from common.resolution import fourier_shell_correlation
from common.rotations import point_group, random_rotations


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def phantom(d, n=25, sigma=1.2, seed=0):
    """Gaussian atoms within a quarter of the box."""
    centres = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator(seed)), dim=-1)
    centres = centres * torch.rand(n, 1, generator=generator(seed + 1)) ** (1 / 3) * 0.25 * d
    axis = torch.arange(d) - d // 2
    x, y, z = (torch.exp(-((axis - centres[:, i : i + 1]) ** 2) / (2 * sigma**2)) for i in range(3))
    return torch.einsum("nz,ny,nx->zyx", z, y, x)


def poses(n, seed=0):
    return Poses(random_rotations(n, generator=generator(seed)), torch.randn(n, 2, generator=generator(seed + 1)))


@pytest.mark.parametrize("d", [32, 33])
def test_noise_free_projections_give_the_map_back(d):
    truth = Volume(phantom(d), 0.7)
    views = poses(250)
    found = reconstruct(project(truth, views), views)
    # to 2.24 px (shell 14 of 16): the last shells lose half of their window beyond the band
    assert float(fourier_shell_correlation(truth, found).correlation[1:14].min()) > 0.995
    assert float((found.values - truth.values).norm() / truth.values.norm()) < 0.015


def test_more_corrections_come_closer():
    truth, views = Volume(phantom(24), 1.0), poses(150)
    stack = project(truth, views)
    errors = [
        float((reconstruct(stack, views, n_corrections=n).values - truth.values).norm() / truth.values.norm())
        for n in (0, 1, 3)
    ]
    assert errors[0] > 3 * errors[1] > 6 * errors[2]


@pytest.mark.parametrize("half", [True, False])
def test_contrast_transfer_is_undone_even_where_each_image_has_zeros(half):
    d = 32
    truth, views = Volume(phantom(d), 0.7), poses(300)
    k = (torch.fft.fftfreq(d)[:, None] ** 2 + torch.fft.fftfreq(d) ** 2).sqrt()
    strength = 30 + 20 * torch.rand(300, 1, 1, generator=generator(3))
    ctf = torch.sin(strength * k**2 + 0.3)
    images = torch.fft.ifft2(torch.fft.fft2(project(truth, views).images) * ctf).real
    found = reconstruct(ImageStack(images, 0.7), views, ctf=ctf[..., : d // 2 + 1] if half else ctf, n_corrections=3)
    assert float(fourier_shell_correlation(truth, found).correlation[1:14].min()) > 0.99


def test_images_of_weight_zero_do_not_count():
    truth, views = Volume(phantom(16), 1.0), poses(60)
    stack = project(truth, views)
    spoiled = stack.images.clone()
    spoiled[40:] = torch.randn(20, 16, 16, generator=generator(5)) * 100
    weights = (torch.arange(60) < 40).float()
    index = torch.arange(40)
    found = reconstruct(ImageStack(spoiled, 1.0), views, weights=weights)
    assert torch.allclose(found.values, reconstruct(stack[index], views[index]).values, atol=1e-4)


def test_prior_from_the_signal_power_beats_none_on_noisy_images():
    d = 24
    truth, views = Volume(phantom(d), 1.0), poses(60)
    clean = project(truth, views).images
    sigma = 3 * float(clean.std())
    noisy = ImageStack(clean + sigma * torch.randn(clean.shape, generator=generator(4)), 1.0)
    power = torch.fft.fftn(truth.values).abs().square()
    shells = (sum(g**2 for g in torch.meshgrid(*[torch.fft.fftfreq(d) * d] * 3, indexing="ij"))).sqrt().round().long()
    spectrum = torch.zeros(60).index_add(0, shells.flatten(), power.flatten()) / torch.bincount(
        shells.flatten(), minlength=60
    ).clamp(min=1)
    weights = torch.full((60,), sigma**-2)
    plain = reconstruct(noisy, views, weights=weights).values
    wiener = reconstruct(noisy, views, weights=weights, signal_power=spectrum[: d // 2 + 1]).values
    error = [float((v - truth.values).norm() / truth.values.norm()) for v in (plain, wiener)]
    assert error[1] < 0.75
    assert error[1] < 0.6 * error[0]


def test_prior_from_the_fsc_is_the_wiener_factor():
    truth, views = Volume(phantom(24), 1.0), poses(200)
    stack = project(truth, views)
    half = fourier_shell_correlation(truth, truth)
    half = type(half)(half.frequencies, torch.full_like(half.correlation, 0.5), half.counts)
    shrunk, full = reconstruct(stack, views, fsc=half, n_corrections=3), reconstruct(stack, views, n_corrections=3)
    # a correlation of 0.5 means as much noise as signal: half of each coefficient is believed
    scale = float((shrunk.values * full.values).sum() / full.values.square().sum())
    assert scale == pytest.approx(0.5, abs=0.08)


def test_symmetry_stands_for_views():
    group = point_group("D2")
    d = 24
    axis = torch.arange(d) - d // 2
    values = torch.zeros(d, d, d)
    for centre in group @ torch.tensor([3.0, 2.0, 4.0]):
        x, y, z = (torch.exp(-((axis - c) ** 2) / 3) for c in centre)
        values += z[:, None, None] * y[:, None] * x
    truth, views = Volume(values, 1.0), poses(30)
    stack = project(truth, views)
    error = [
        float((reconstruct(stack, views, symmetry=g).values - values).norm() / values.norm()) for g in (None, group)
    ]
    assert error[1] < 0.03
    assert error[1] < 0.5 * error[0]


def test_halves_are_disjoint_complete_and_drawn_by_the_generator():
    first, second = split_halves(11, generator=generator())
    assert (len(first), len(second)) == (6, 5)
    assert sorted(torch.cat((first, second)).tolist()) == list(range(11))
    assert torch.equal(first, split_halves(11, generator=generator())[0])
    assert not torch.equal(first, split_halves(11, generator=generator(1))[0])


def test_half_maps_of_pure_noise_do_not_agree():
    stack = ImageStack(torch.randn(200, 24, 24, generator=generator()), 1.0)
    fsc = fourier_shell_correlation(*reconstruct_halves(stack, poses(200), generator=generator(1)))
    assert float(fsc.correlation[3:].abs().mean()) < 0.1


def test_mismatched_input_is_refused():
    stack = ImageStack(torch.zeros(3, 8, 8), 1.0)
    with pytest.raises(InputError, match="2 poses for 3 images"):
        reconstruct(stack, poses(2))
    with pytest.raises(InputError, match="weights have shape"):
        reconstruct(stack, poses(3), weights=torch.ones(2))
    with pytest.raises(InputError, match="1 images, expected at least two"):
        reconstruct_halves(stack[torch.tensor([0])], poses(1), generator=generator())
