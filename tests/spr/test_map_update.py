"""The next map: held against known maps, and against sums written out on tiny boxes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from common.gridding import OVERSAMPLING, interpolate_points, oversampled_transform, spread_points, transform_size
from common.masks import soft_ball
from common.resolution import shell_correlation
from common.rotations import point_group, random_rotations
from spr.map_update import conjugate_gradients, convolution_kernel, convolve, maximise, rings_from_orders, solve_map
from spr.orientation_search import random_frames, views_of
from spr.ring_images import ring_vectors

BOX = 24
SHELLS = torch.arange(1.0, 9.0)
ANGLES = 48


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def particle(atoms: Tensor | None = None, box: int = BOX) -> Tensor:
    """Gaussian atoms, 1 voxel wide, within a quarter of the box."""
    if atoms is None:
        atoms = (torch.rand(10, 3, generator=generator(3)) - 0.5) * (box / 4)
    axis = torch.arange(box, dtype=torch.float32) - box // 2
    g = [torch.exp(-((axis - atoms[:, i, None]) ** 2) / 2) for i in range(3)]
    return torch.einsum("nz,ny,nx->zyx", g[2], g[1], g[0])


def half_ring_points(rotations: Tensor, shells: Tensor, angles: int) -> Tensor:
    in_plane = (OVERSAMPLING * ring_vectors(shells, angles)[:, : angles // 2]).reshape(-1, 2)
    return (in_plane @ rotations[:, :2, :]).reshape(-1, 3)


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of two maps on the shells in use."""
    return shell_correlation(a, b)[1 : int(SHELLS[-1])]


def samples_of(values: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
    points = half_ring_points(rotations, SHELLS, ANGLES)
    return interpolate_points(oversampled_transform(values, int(SHELLS[-1])), points), points


def test_exact_views_give_the_map_back_inside_the_band() -> None:
    truth = particle()
    samples, points = samples_of(truth, random_rotations(50, generator=generator(1)))
    weight = torch.linspace(1, 3, len(SHELLS)).repeat_interleave(ANGLES // 2).repeat(50)
    found = solve_map(
        samples * weight,
        weight,
        points,
        torch.zeros_like(truth),
        max_shell=8,
        support=BOX / 4,
        ridge=1e-6,
        iterations=12,
    )
    assert float(agreement(found, truth).min()) > 0.998
    # with its scale, and not only up to it
    again, _ = samples_of(found, random_rotations(5, generator=generator(9)))
    wanted, _ = samples_of(truth, random_rotations(5, generator=generator(9)))
    assert float((again - wanted).abs().square().sum() / wanted.abs().square().sum()) < 1e-3


def test_noise_free_averages_of_the_expectation_give_the_map_back() -> None:
    truth = particle()
    frames = random_frames(50, generator=generator(1))
    weights = torch.linspace(0.5, 1.5, len(SHELLS))
    views = views_of(truth, frames, SHELLS, ANGLES, weights)
    # 3 images on every view, each seen with the transfer 0.7: sums of transfer x image, counts of transfer^2
    counts = torch.full((len(SHELLS), 50), 3 * 0.7**2)
    unweighted = views.spectra / torch.cat((weights, weights))[:, None]
    found = maximise(
        3 * 0.7**2 * unweighted,
        counts,
        views.points,
        weights,
        SHELLS,
        torch.zeros_like(truth),
        support=BOX / 4,
        ridge=1e-6,
        iterations=12,
    )
    again = views_of(found, frames, SHELLS, ANGLES, weights)
    error = (again.spectra - views.spectra).square().sum() / views.spectra.square().sum()
    assert float(error) < 1e-3


def test_the_last_map_is_kept_where_the_images_agree_with_it() -> None:
    truth = particle() * soft_ball(BOX, BOX / 4, edge=1.5)
    samples, points = samples_of(truth, random_rotations(40, generator=generator(1)))
    ones = torch.ones(len(points))
    found = solve_map(samples, ones, points, truth, max_shell=8, support=BOX / 4, ridge=0.0, iterations=1)
    assert float((found - truth).norm() / truth.norm()) < 0.03


def test_a_stronger_ridge_gives_an_emptier_map() -> None:
    samples, points = samples_of(particle(), random_rotations(20, generator=generator(1)))
    ones = torch.ones(len(points))
    sizes = [
        float(
            solve_map(
                samples, ones, points, torch.zeros(BOX, BOX, BOX), max_shell=8, support=6, ridge=ridge, iterations=6
            ).norm()
        )
        for ridge in (0.01, 1.0, 100.0)
    ]
    assert sizes[0] > 1.2 * sizes[1] > 10 * sizes[2]


def test_the_map_is_empty_outside_its_support() -> None:
    atoms = torch.tensor([[0.0, 0.0, 0.0], [7.0, 0.0, 0.0]])  # the second lies beyond
    samples, points = samples_of(particle(atoms), random_rotations(40, generator=generator(1)))
    found = solve_map(
        samples, torch.ones(len(points)), points, torch.zeros(BOX, BOX, BOX), max_shell=8, support=4, ridge=1e-3
    )
    # what the ridge and the edge let through is nothing
    assert float(found[soft_ball(BOX, 4, edge=1.5) == 0].abs().max()) < 1e-6 * float(found.max())
    assert float(found[BOX // 2, BOX // 2, BOX // 2]) > 0.5


def test_symmetry_is_imposed_when_asked() -> None:
    group = point_group("D2")
    atoms = torch.tensor([[2.0, 3.0, 1.0], [4.0, -1.0, 2.0], [1.0, -3.5, 1.5]])
    truth = particle((atoms @ group.mT).reshape(-1, 3))
    samples, points = samples_of(truth, random_rotations(5, generator=generator(1)))  # few views, four times as many so
    samples = samples + 2 * torch.randn(len(samples), generator=generator(2))  # and noise, which has no symmetry
    ones, empty = torch.ones(len(points)), torch.zeros(BOX, BOX, BOX)
    options = dict(max_shell=8, support=6.5, ridge=0.1, iterations=8)
    plain = solve_map(samples, ones, points, empty, **options)
    symmetric = solve_map(samples, ones, points, empty, symmetry=group, **options)
    # voxel n // 2 is the origin: a twofold about z maps voxel i to d - i along x and y
    inner = (slice(1, None),) * 3
    for axes in ((1, 2), (0, 1), (0, 2)):
        torch.testing.assert_close(
            symmetric[inner].flip(axes), symmetric[inner], atol=2e-3 * float(symmetric.max()), rtol=0
        )
        assert float((plain[inner].flip(axes) - plain[inner]).abs().max()) > 0.1 * float(plain.max())
    assert float(agreement(symmetric, truth).mean()) > float(agreement(plain, truth).mean()) + 0.05


@pytest.mark.parametrize("box", [10, 11])
def test_convolution_with_the_kernel_is_the_normal_operator(box: int) -> None:
    """Sum over all samples of weight x |exp(2 pi i k x)><exp(2 pi i k x)|, written out."""
    shell = 4
    points = half_ring_points(random_rotations(7, generator=generator(1)), torch.arange(1.0, shell + 1), 12)
    density = torch.rand(len(points), generator=generator(2))
    kernel = convolution_kernel(spread_points(density, points, transform_size(shell)), box)
    values = torch.randn(box, box, box, generator=generator(3)) * (soft_ball(box, box / 4, edge=0.0) > 0)
    found = convolve(values, kernel)

    axis = torch.arange(box, dtype=torch.float64) - box // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    place = torch.stack((x, y, z), -1).reshape(-1, 3)
    wave = torch.exp((-2j * math.pi / (OVERSAMPLING * box)) * (points.double() @ place.T))
    expected = (wave.conj().T @ (density * (wave @ values.double().flatten().to(wave.dtype)))).real.view(found.shape)
    inside = soft_ball(box, box / 4, edge=0.0) > 0
    error = (found - expected)[inside].abs().max() / expected[inside].abs().max()
    assert float(error) < 2e-3


def test_rings_from_orders_inverts_the_angular_transform() -> None:
    for n in (8, 16, 48):
        random = torch.randn(2, 3, n // 2, generator=generator())
        half = torch.complex(random[0], random[1])
        ring = torch.cat((half, half.conj()), -1)  # of a real image: conjugate on the other side
        orders = torch.fft.fft(ring, dim=-1)[..., : n // 2 + 1]
        torch.testing.assert_close(rings_from_orders(orders), half, atol=1e-5, rtol=1e-5)


def test_conjugate_gradients_end_at_the_solution() -> None:
    matrix = torch.randn(6, 6, generator=generator(), dtype=torch.float64)
    matrix = matrix @ matrix.T + torch.eye(6)
    truth = torch.randn(6, generator=generator(1), dtype=torch.float64)
    found = conjugate_gradients(lambda v: matrix @ v, matrix @ truth, torch.zeros_like(truth), 6)
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-8)
    # once there, it stays, also when asked for more steps
    more = conjugate_gradients(lambda v: matrix @ v, matrix @ truth, truth, 20)
    torch.testing.assert_close(more, truth)
