"""Class averages in pixels: turning, adding up, and the agreement of halves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.scattering import projected_atoms
from spr.class_images import (
    class_resolution,
    mean_correlation,
    ring_correlation,
    signal_power,
    sum_images,
    turn_images,
    wiener_averages,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_images_turned_onto_their_view_are_the_view() -> None:
    """Images are made from atoms at the turned positions, so this holds interpolation against no other."""
    positions = 3 * torch.randn(6, 2, generator=generator(0)).clamp(-1.2, 1.2)
    heights, sigmas = torch.ones(6, 1), torch.full((6, 1), 0.5)
    angles = torch.tensor([0.0, 30.0, 90.0, 217.0])
    shifts = torch.tensor([[0.0, 0.0], [1.3, -0.4], [-2.0, 0.7], [0.5, 0.5]])
    a = torch.deg2rad(angles)
    back = torch.stack((a.cos(), a.sin(), -a.sin(), a.cos()), -1).view(-1, 2, 2)
    moved = (back @ positions.T).mT + shifts[:, None]
    images = projected_atoms(moved, heights, sigmas, box_size=44, pixel_size=0.4)
    view = projected_atoms(positions, heights, sigmas, box_size=44, pixel_size=0.4)
    turned = turn_images(images, angles, shifts / 0.4)
    assert float((turned - view).abs().max()) < 0.015 * float(view.max())


def test_average_of_many_is_the_view(four_views: Any) -> None:
    """With the true labels, angles and shifts, and white noise as it is."""
    images = four_views.stack.images
    noise = float(images[:, :5].std())
    transfer = torch.full((len(images), 41, 21), 1 / noise)
    sums = sum_images(
        images / noise,
        transfer,
        four_views.label,
        four_views.angles,
        four_views.shifts / 0.4,
        torch.ones(len(images)),
        4,
    )
    averages = wiener_averages(sums, signal_power(images / noise, transfer, 16.0), 16.0)
    for average, view in zip(averages, four_views.clean, strict=True):
        both = torch.corrcoef(torch.stack((average.flatten(), view.flatten())))
        assert float(both[0, 1]) > 0.95
        assert float((average * view).sum() / (view * view).sum()) == pytest.approx(1, abs=0.15)


def test_batches_change_only_the_rounding(four_views: Any) -> None:
    images = four_views.stack.images[:20]
    transfer = torch.rand(20, 41, 21, generator=generator(0))
    given = (four_views.label[:20], four_views.angles[:20], four_views.shifts[:20], torch.ones(20), 4)
    first, second = (sum_images(images, transfer, *given, batch_size=size) for size in (3, 64))
    torch.testing.assert_close(first.sums, second.sums, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first.weights, second.weights)


def test_ring_correlation_of_the_same_and_of_independent_noise() -> None:
    noise = torch.randn(2, 60, 64, 64, generator=generator(1))
    same = ring_correlation(noise[0], noise[0], 20.0, 0.5)
    torch.testing.assert_close(same.correlation[:, 1:], torch.ones(60, 32))
    other = ring_correlation(noise[0], noise[1], 20.0, 0.5)
    mean, chance = mean_correlation(other, 0.2, 0.9)
    assert float(mean.std()) == pytest.approx(chance, rel=0.3)
    assert float((mean.abs() > 3 * chance).float().mean()) < 0.05
    assert float(same.frequencies[-1]) == pytest.approx(1.0)


def test_resolution_is_where_the_signal_ends() -> None:
    """Noise of halves on a signal that stops at 1/2.5 angstrom."""
    k = torch.fft.fftfreq(64, 0.5)
    radius = torch.sqrt(k[:, None] ** 2 + torch.fft.rfftfreq(64, 0.5) ** 2)
    signal = torch.randn(5, 64, 64, generator=generator(2))
    signal = torch.fft.irfft2(torch.fft.rfft2(signal) * (radius < 0.4), s=(64, 64)) * 3
    halves = [signal + torch.randn(5, 64, 64, generator=generator(seed)) for seed in (3, 4)]
    frc = ring_correlation(*halves, 20.0, 0.5)
    found = class_resolution(frc, 0.2, 0.9)
    assert bool(((found > 1 / 0.52) & (found < 1 / 0.35)).all())
    noise = [torch.randn(5, 64, 64, generator=generator(seed)) for seed in (5, 6)]
    nothing = ring_correlation(*noise, 20.0, 0.5)
    flat = mean_correlation(nothing, 0.2, 0.9)
    assert float(flat[0].abs().max()) < 5 * flat[1]
