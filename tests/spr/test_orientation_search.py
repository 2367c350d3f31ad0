"""Scores of images against views, held against sums over all Fourier coefficients of atoms in known poses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from common.data import ImageStack, Optics
from common.fourier import rfft2_origin
from common.image_formation import contrast_transfer
from common.noise import NoiseModel
from common.rotations import fibonacci_directions, geodesic_distance, random_rotations, rotations_to_directions
from spr.orientation_search import (
    angular_synthesis,
    expectation,
    log_likelihoods,
    log_prior,
    random_frames,
    temperature_for,
    views_of,
)
from spr.ring_images import RingImages, ring_transfer, ring_transform, ring_vectors

BOX, VOXEL, SIGMA = 26, 0.8, 0.6  # of the map: voxels, angstrom; width of an atom, angstrom
SHELLS = torch.arange(1.0, 9.0)
WINDOW = BOX * VOXEL
ANGLES = 64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def atom_positions(n: int = 9) -> Tensor:
    """(n, 3) inside a ball of 4 angstrom."""
    x = torch.randn(n, 3, generator=generator(7), dtype=torch.float64)
    return (
        x / x.norm(dim=1, keepdim=True) * 4 * torch.rand(n, 1, generator=generator(8), dtype=torch.float64) ** (1 / 3)
    )


def map_of(atoms: Tensor) -> Tensor:
    """(d, d, d): Gaussian atoms, whose transform is known in closed form."""
    axis = (torch.arange(BOX, dtype=torch.float64) - BOX // 2) * VOXEL
    g = [torch.exp(-((axis - atoms[:, i, None]) ** 2) / (2 * SIGMA**2)) for i in range(3)]
    return torch.einsum("nz,ny,nx->zyx", g[2], g[1], g[0]).float()


def samples_of(atoms: Tensor, rotation: Tensor, shift: Tensor, vectors: Tensor) -> Tensor:
    """The transform, voxel sums, of the view at (..., 2) frequencies: ``view = R @ specimen``, then the shift."""
    view = (atoms @ rotation.double().T)[:, :2] + shift.double()
    k = vectors.double()
    atom = (2 * math.pi * SIGMA**2) ** 1.5 / VOXEL**3 * torch.exp(-2 * (math.pi * SIGMA) ** 2 * (k**2).sum(-1))
    return atom * torch.exp(-2j * math.pi * (k @ view.T)).sum(-1)


def images_of(poses: Tensor, shifts: Tensor, *, noise: float = 0.0) -> RingImages:
    """Ring images with a transfer that differs from image to image and, mirror-symmetrically, along the rings."""
    frequencies = SHELLS / WINDOW
    vectors = ring_vectors(frequencies, ANGLES)
    angle = torch.atan2(vectors[..., 1], vectors[..., 0])
    sizes = 1 + 0.1 * torch.arange(len(poses))[:, None, None]
    transfer = sizes * (0.2 + 0.03 * torch.cos(2 * angle)) * torch.ones(len(poses), 1, 1)
    atoms = atom_positions()
    clean = torch.stack([samples_of(atoms, r, s, vectors) for r, s in zip(poses, shifts, strict=True)])
    random = torch.randn(2, *clean.shape[:2], ANGLES // 2, generator=generator(3))
    half = noise * torch.complex(random[0], random[1]) / math.sqrt(2)
    rings = clean.to(torch.complex64) * transfer + torch.cat((half, half.conj()), -1)
    weights = torch.linspace(0.5, 1.5, len(SHELLS))
    return RingImages(rings, transfer, frequencies, weights, torch.zeros(len(poses), 2), 0.5)


def in_plane(degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@pytest.mark.parametrize("d", [20, 21])
def test_ring_transform_is_the_sum_over_all_pixels(d: int) -> None:
    images = torch.randn(2, d, d, generator=generator(), dtype=torch.float64)
    vectors = ring_vectors(torch.tensor([0.0, 0.3, 0.71], dtype=torch.float64), 6)
    x = (torch.arange(d, dtype=torch.float64) - d // 2) * 0.4
    wave = torch.exp(-2j * math.pi * (vectors[..., 0, None, None] * x + vectors[..., 1, None, None] * x[:, None]))
    expected = torch.einsum("sayx,nyx->nsa", wave, images.to(wave.dtype)) / d
    torch.testing.assert_close(ring_transform(images, vectors, 0.4), expected)


def test_white_noise_has_variance_one_on_the_rings() -> None:
    images = torch.randn(400, 24, 24, generator=generator())
    power = ring_transform(images, ring_vectors(torch.tensor([0.2, 0.5]), 8), 0.5).abs().square().mean((0, 2))
    torch.testing.assert_close(power, torch.ones(2), atol=0.1, rtol=0)


def test_ring_transform_of_grid_frequencies_is_the_fft() -> None:
    d, pixel = 16, 0.5
    images = torch.randn(3, d, d, generator=generator())
    vectors = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, -4.0]]) / (d * pixel)
    spectra = rfft2_origin(images)
    expected = torch.stack((spectra[:, 0, 3], spectra[:, 2, 0], spectra[:, -4, 1]), 1) / d
    torch.testing.assert_close(ring_transform(images, vectors, pixel), expected, atol=1e-5, rtol=1e-5)


def test_views_are_slices_of_the_transform_of_the_atoms() -> None:
    frames = random_rotations(5, generator=generator())
    weights = torch.linspace(0.5, 1.5, len(SHELLS))
    views = views_of(map_of(atom_positions()), frames, SHELLS, ANGLES, weights)
    vectors = ring_vectors(SHELLS / WINDOW, ANGLES)
    exact = torch.stack([samples_of(atom_positions(), r, torch.zeros(2), vectors) for r in frames])
    orders = torch.fft.fft(exact, dim=-1)[..., : ANGLES // 2 + 1] * weights[:, None]  # (v, s, m)
    found = torch.complex(*views.spectra.split(len(SHELLS), 1)).permute(2, 1, 0)
    assert float((found - orders).abs().max()) < 2e-3 * float(orders.abs().max())
    power = (exact.abs().square().sum(-1) * weights).T.float()
    torch.testing.assert_close(views.power, power, rtol=5e-3, atol=1e-3 * float(power.max()))


def test_log_likelihoods_are_sums_over_all_coefficients() -> None:
    frames = random_rotations(4, generator=generator(1))
    images = images_of(
        random_rotations(3, generator=generator(2)), torch.tensor([[0.3, -0.2], [0, 0], [-0.5, 0.4]]), noise=1
    )
    trials = torch.randn(2, 3, 2, generator=generator(4)) * 0.5
    index = torch.tensor([2, 0])
    views = views_of(map_of(atom_positions()), frames, SHELLS, ANGLES, images.weights)
    scores, _ = log_likelihoods(images, index, trials, views)
    assert scores.shape == (ANGLES, 2, 3, 4)
    vectors = images.ring_vectors()
    for angle, k, t, v in [(0, 0, 0, 0), (5, 1, 2, 3), (40, 0, 1, 2), (63, 1, 0, 1), (17, 1, 1, 1)]:
        # the view is turned by minus the angle, then shifted
        turned = in_plane(-360 * angle / ANGLES) @ frames[v]
        i = int(index[k])
        sample = samples_of(atom_positions(), turned, trials[k, t], vectors)
        cross = (images.rings[i].conj() * images.transfer[i] * sample).real.sum(-1)
        norm = images.transfer[i].square().mean(-1) * sample.abs().square().sum(-1)  # transfer^2 is averaged on rings
        expected = float((images.weights * (cross - 0.5 * norm)).sum())
        size = float((images.weights * norm).sum())
        assert float(scores[angle, k, t, v]) == pytest.approx(expected, abs=3e-3 * size)


def test_expectation_finds_the_true_poses_to_the_step_of_the_grid() -> None:
    directions = rotations_to_directions(fibonacci_directions(500), torch.zeros(500))  # about 9 degrees apart
    truth = random_rotations(12, generator=generator(5))
    shifts = 0.6 * torch.randn(12, 2, generator=generator(6))
    images = images_of(truth, shifts, noise=1)
    views = views_of(map_of(atom_positions()), directions, SHELLS, ANGLES, images.weights)
    offsets = torch.tensor([[0.0, 0.0], [0.4, 0.0], [-0.4, 0.0], [0.0, 0.4], [0.0, -0.4]])
    trials = shifts[:, None] + offsets  # the true shift is the first of five
    found = expectation(images, torch.arange(12), trials, views, 1.0)
    assert float(geodesic_distance(found.rotations, truth).max()) < 9
    torch.testing.assert_close(found.shifts, shifts)
    wrong_sign = expectation(images, torch.arange(12), -trials, views, 1.0)
    assert float(wrong_sign.best.mean()) < 0.9 * float(found.best.mean())


def test_expectation_at_temperature_one_averages_with_the_likelihood() -> None:
    images = images_of(random_rotations(3, generator=generator(2)), torch.zeros(3, 2), noise=1)
    images = RingImages(
        images.rings * 0.05, images.transfer * 0.05, images.frequencies, images.weights, images.centres, 0.5
    )
    views = views_of(
        map_of(atom_positions()), random_rotations(6, generator=generator(1)), SHELLS, ANGLES, images.weights
    )
    trials = torch.randn(3, 2, 2, generator=generator(4)) * 0.3
    index = torch.arange(3)
    for temperature in (1.0, 3.0):
        scores, _ = log_likelihoods(images, index, trials, views)
        total = scores + log_prior(images, index, trials)[:, :, None]
        p = torch.softmax(total.transpose(0, 1).reshape(3, -1) / temperature, 1).view(3, ANGLES, 2, 6)
        found = expectation(images, index, trials, views, temperature)
        counts = torch.einsum("katv,ks->sv", p, images.transfer.square().mean(-1))
        torch.testing.assert_close(found.counts, counts, rtol=1e-4, atol=1e-6)
        # images moved to their trial shifts and turned onto the views, one by one
        vectors = images.ring_vectors()
        phase = 2 * math.pi * torch.einsum("kti,sai->ktsa", trials, vectors)
        centred = (images.rings * images.transfer)[:, None] * torch.polar(torch.ones_like(phase), phase)
        turned = torch.stack([centred.roll(a, -1) for a in range(ANGLES)], 1)  # (k, a, t, s, A)
        expected = torch.einsum("katv,katsb->vsb", p.to(turned.dtype), turned)
        orders = torch.fft.fft(expected, dim=-1)[..., : ANGLES // 2 + 1].permute(2, 1, 0)
        torch.testing.assert_close(
            torch.complex(*found.sums.split(len(SHELLS), 1)), orders, rtol=1e-3, atol=1e-4 * float(orders.abs().max())
        )
        torch.testing.assert_close(found.best, total.transpose(0, 1).reshape(3, -1).amax(1))
        evidence = temperature * torch.logsumexp(total.transpose(0, 1).reshape(3, -1) / temperature, 1)
        torch.testing.assert_close(found.evidence, evidence, rtol=1e-4, atol=1e-3)


def test_log_prior_is_gaussian_about_the_centre() -> None:
    images = images_of(torch.eye(3).expand(2, 3, 3), torch.zeros(2, 2))
    centred = RingImages(
        images.rings, images.transfer, images.frequencies, images.weights, torch.tensor([[1.0, 2.0], [0.0, 0.0]]), 0.5
    )
    prior = log_prior(centred, torch.tensor([0]), torch.tensor([[[1.0, 2.0], [1.5, 2.0], [0.0, 2.0]]]))
    torch.testing.assert_close(prior, torch.tensor([[0.0, -0.5, -2.0]]))


def test_angular_synthesis_and_back_is_the_identity() -> None:
    for n in (8, 48):
        to_angles, to_orders = angular_synthesis(n, torch.zeros(1, dtype=torch.float64))
        torch.testing.assert_close(to_angles @ to_orders, torch.eye(n, dtype=torch.float64), atol=1e-12, rtol=0)
        values = torch.randn(n, generator=generator(), dtype=torch.float64)
        spectrum = torch.fft.rfft(values)
        torch.testing.assert_close(to_orders @ values, torch.view_as_real(spectrum).flatten())


@pytest.mark.parametrize("wanted", [1.5, 20.0, 300.0])
def test_temperature_leaves_the_wanted_number_of_poses(wanted: float) -> None:
    scores = 30 * torch.randn(8, 6000, generator=generator())
    temperature = temperature_for(scores, wanted)
    p = torch.softmax(scores.double() / temperature, 1)
    effective = math.exp(float(-p.square().sum(1).log().mean()))
    if temperature > 1:
        assert effective == pytest.approx(wanted, rel=0.03)
    else:
        assert effective >= wanted


def test_temperature_never_goes_below_one() -> None:
    flat = 0.1 * torch.randn(4, 500, generator=generator())  # already spread over hundreds of poses
    assert temperature_for(flat, 2.0) == 1.0
    assert temperature_for(1000 * flat, 2.0) > 1.0


def noise_model(d: int, n: int) -> NoiseModel:
    """A smooth whitening filter and a different level for every image."""
    y = torch.fft.fftfreq(d)
    x = torch.fft.rfftfreq(d)
    filter_ = 1 / (0.3 + torch.sqrt(y[:, None] ** 2 + x**2))
    return NoiseModel(filter_, torch.ones(d), 1 + 0.1 * torch.arange(n), 1 + 0.05 * torch.arange(n), 5.0)


def test_ring_transfer_is_contrast_transfer_times_whitening() -> None:
    d, pixel, n = 40, 0.4, 3
    optics = Optics(
        voltage_kv=torch.full((n,), 300.0),
        spherical_aberration_mm=torch.full((n,), -0.013),
        amplitude_contrast=torch.tensor([0.0, 0.07, 0.1]),
        defocus=torch.tensor([[-80.0, -80.0, 0.0], [-60.0, -90.0, 30.0], [120.0, 100.0, -50.0]]),
        focal_spread=torch.tensor([40.0, 50.0, 0.0]),
        convergence_mrad=torch.zeros(n),
    )
    noise = noise_model(d, n)
    stack = ImageStack(torch.zeros(n, d, d), pixel, optics)
    places = [(0, 7), (5, 0), (-3, 11), (9, 12), (0, 19)]  # (row, column) of the rfft grid
    grid = torch.tensor([[float(x), float(y)] for y, x in places]) / (d * pixel)
    whole = contrast_transfer(optics, d, pixel) * noise.filter * (noise.mean / noise.scale)[:, None, None]
    expected = torch.stack([whole[:, y, x] for y, x in places], 1)
    found = ring_transfer(optics, noise, grid[None], stack)[:, 0]
    # the filter is read from one row, linearly between its points: off the axes that is near, not exact
    torch.testing.assert_close(found[:, [0, 4]].double(), expected[:, [0, 4]].double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-2, atol=1e-2)


def test_ring_transfer_of_projections_is_the_whitening_alone() -> None:
    d, pixel, n = 40, 0.4, 2
    noise = noise_model(d, n)
    stack = ImageStack(torch.zeros(n, d, d), pixel)
    vectors = ring_vectors(torch.tensor([4.0, 9.0]) / (d * pixel), 8)
    found = ring_transfer(None, noise, vectors, stack)
    expected = noise.filter[0, [4, 9]] / noise.scale[:, None]
    torch.testing.assert_close(found, expected[:, :, None].expand_as(found))


def test_random_frames_are_even_and_differ_from_draw_to_draw() -> None:
    frames = random_frames(200, generator=generator(1))
    torch.testing.assert_close(frames @ frames.mT, torch.eye(3).expand(200, 3, 3), atol=1e-5, rtol=0)
    beams = frames[:, 2]  # the direction of the specimen that lies along the beam
    assert float(beams.mean(0).norm()) < 0.01
    torch.testing.assert_close(beams.T @ beams / 200, torch.eye(3) / 3, atol=0.01, rtol=0)
    other = random_frames(200, generator=generator(2))[:, 2]
    assert float((other @ beams.T).amax(1).min()) < 0.9999
