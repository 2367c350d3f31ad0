"""Class averages: their prior, their posterior, and images aligned to them."""

from __future__ import annotations

import math

import pytest
import torch

from spr.class_averages import (
    AveragePrior,
    aligned_to,
    as_images,
    as_sums,
    average_prior,
    disc_covariance,
    order_multiplicity,
    posterior_averages,
    turned_orders,
    views_of_averages,
)
from spr.orientation_search import log_likelihoods
from spr.ring_images import RingImages, ring_transform, ring_vectors


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(rings: torch.Tensor, frequencies: torch.Tensor) -> RingImages:
    weights = 2 * math.pi * frequencies * 30 / rings.shape[-1]
    return RingImages(rings, torch.ones(rings.shape), frequencies, weights, torch.zeros(len(rings), 2), 0.5)


def random_images(n: int, seed: int = 0, n_angles: int = 48) -> RingImages:
    """White noise in a disc of 4 angstrom, on rings."""
    d, pixel = 41, 0.4
    axis = (torch.arange(d) - d // 2) * pixel
    inside = (axis[:, None] ** 2 + axis**2) < 16
    frequencies = torch.arange(3, 9) / 20
    vectors = ring_vectors(frequencies, n_angles)
    images = torch.randn(n, d, d, generator=generator(seed)) * inside
    return plain(ring_transform(images, vectors, pixel), frequencies)


def test_prior_covariance_is_that_of_noise_in_a_disc() -> None:
    images = random_images(3000)
    power = images.rings.abs().square().mean()
    orders = torch.fft.fft(images.rings, dim=-1) / (48 * power.sqrt())
    expected = disc_covariance(images.frequencies, 9, 4.0)
    for order in (0, 1, 4, 8):
        found = (orders[:, :, None, order] * orders[:, None, :, order].conj()).mean(0)
        assert float((found.real - expected[order]).abs().max()) < 0.1 * float(expected[order].max())
        assert float(found.imag.abs().max()) < 0.1 * float(expected[order].max())


def test_orders_of_a_ring_share_its_power() -> None:
    frequencies = torch.tensor([0.2, 0.4])
    covariance = disc_covariance(frequencies, 40, 4.0)
    total = torch.einsum("m,mss->s", order_multiplicity(40, frequencies), covariance)
    torch.testing.assert_close(total, torch.ones(2), atol=1e-4, rtol=0)


def test_posterior_is_that_of_a_linear_gaussian_model() -> None:
    """Against dense algebra, one order at a time."""
    n_orders, s, n_angles = 3, 4, 4
    root = torch.randn(n_orders, s, s, generator=generator(0))
    mean = torch.zeros(n_orders, s)
    mean[0] = torch.randn(s, generator=generator(1))
    weights = torch.rand(s, generator=generator(2)) + 0.5
    prior = AveragePrior(mean, root, weights, n_angles)
    data = torch.complex(*torch.randn(2, n_orders, s, generator=generator(3)))
    data[0] = data[0].real + 0j
    counts = torch.rand(s, 1, generator=generator(4))
    found = posterior_averages(torch.cat((data.real, data.imag), 1)[..., None], counts, prior)
    evidence = 0.0
    for m, multiplicity in enumerate((1.0, 2.0, 1.0)):
        precision = torch.diag(weights * counts[:, 0] / n_angles).to(torch.complex64)
        inverse = torch.linalg.inv((root[m] @ root[m].T).to(torch.complex64))
        seen = data[m] * weights / n_angles
        covariance = torch.linalg.inv(precision + inverse)
        best = covariance @ (seen + inverse @ mean[m].to(torch.complex64))
        torch.testing.assert_close(found.orders[0, m], best, atol=1e-3, rtol=1e-3)
        there = mean[m].to(torch.complex64)
        fit = best.conj() @ (precision + inverse) @ best - there.conj() @ inverse @ there
        evidence += 0.5 * multiplicity * float(fit.real + torch.logdet(covariance @ inverse).real)
    assert float(found.evidence[0]) == pytest.approx(evidence, rel=1e-3, abs=1e-3)


def test_without_images_an_average_is_its_prior() -> None:
    images = random_images(40)
    prior = average_prior(images, 4.0)
    empty = posterior_averages(torch.zeros(25, 12, 1), torch.zeros(6, 1), prior)
    assert float(empty.evidence) == pytest.approx(0, abs=1e-3)
    torch.testing.assert_close(empty.orders[0].real, prior.mean)
    mine = images.rings.abs().square().mean((0, 2)) - images.noise_power
    expected = torch.einsum("m,mi->i", order_multiplicity(25, mine), empty.orders[0].abs().square())
    assert float(empty.power.min()) > 0
    assert bool((expected / 48**2 <= mine.clamp(min=0) + 0.1).all())


@pytest.mark.parametrize(("angle", "shift"), [(75.0, (0.2, -0.3)), (240.0, (-0.4, 0.1)), (33.7, (0.0, 0.0))])
def test_turned_and_shifted_image_is_aligned_back(angle: float, shift: tuple[float, float]) -> None:
    """An image of the average at ``theta + angle``, moved by the shift."""
    average = random_images(1, seed=5)
    orders = torch.fft.fft(average.rings, dim=-1)[..., :25]
    order = torch.arange(25)
    # the image at theta is the average at theta + angle
    turned = orders * torch.polar(torch.ones(25), order * math.radians(angle))
    half = torch.fft.ifft(torch.cat((turned, _mirrored(turned)), -1), dim=-1)[..., :24]
    vectors = average.ring_vectors()
    moved = torch.cat((half, half.conj()), -1)
    phase = -2 * math.pi * (vectors @ torch.tensor(shift))
    image = plain(moved * torch.polar(torch.ones_like(phase), phase), average.frequencies)
    angles, shifts, score = aligned_to(
        image,
        torch.tensor([0]),
        orders.transpose(1, 2),
        torch.tensor([angle + 4.0]),
        torch.tensor([shift]) + 0.15,
        centres=torch.tensor([shift]),
        shift_step=0.15,
        rounds=14,
    )
    assert float((angles - angle).abs()) < 0.3
    assert float((shifts - torch.tensor([shift])).abs().max()) < 0.02
    # and the score is the highest that the grid search gives, up to the power of the average
    weighted = torch.einsum("m,msi->", order_multiplicity(25, score), (orders.abs().square() / 48).permute(2, 1, 0))
    assert float(score) > 0
    assert math.isfinite(float(weighted))


def _mirrored(orders: torch.Tensor) -> torch.Tensor:
    """Orders -m of a ring with ``f(angle + pi) = conj f(angle)``, after order A / 2."""
    sign = torch.ones(orders.shape[-1])
    sign[1::2] = -1
    return (sign * orders)[..., 1:-1].flip(-1).conj()


def test_class_as_image_scores_like_its_members() -> None:
    """The sum of scores of images, all in one pose, is the score of their sum."""
    images = random_images(6, seed=2)
    prior = average_prior(images, 4.0)
    index, none = torch.arange(6), torch.zeros(6)
    sums = as_sums(turned_orders(images, index, none, torch.zeros(6, 2))).sum(2, keepdim=True)
    counts = images.transfer.square().mean(-1).sum(0)[:, None]
    averages = posterior_averages(sums, counts, prior)
    views = views_of_averages(averages, prior)
    single, _ = log_likelihoods(images, index, torch.zeros(6, 1, 2), views)
    whole, _ = log_likelihoods(as_images(sums, counts, images), torch.tensor([0]), torch.zeros(1, 1, 2), views)
    torch.testing.assert_close(single.sum(1, keepdim=True), whole, rtol=1e-4, atol=1e-2)
