"""Graphene: its lattices are found, and its waves leave while a particle's neighbouring reflection stays."""

from __future__ import annotations

import math

import pytest
import torch

from spr.graphene import coordinates, find_lattices, fit_scales, model_waves

PIXEL, SIZE = 0.4, 200


def waves(angle: float, amplitude: float) -> torch.Tensor:
    x, y = coordinates((SIZE, SIZE), PIXEL)
    image = torch.zeros(SIZE, SIZE)
    for k in range(3):
        direction = math.radians(angle + 60 * k)
        phase = 2 * math.pi / 2.13 * (math.cos(direction) * x + math.sin(direction) * y[:, None])
        image = image + amplitude * torch.cos(phase + k)
    return image


def noise(sigma: float) -> torch.Tensor:
    return sigma * torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_two_sheets_are_found_and_none_where_there_is_none() -> None:
    found = find_lattices(waves(7.0, 0.2) + waves(31.5, 0.1) + noise(0.3), PIXEL)
    assert [round(lattice.angle, 1) for lattice in found] == [7.0, 31.5]
    assert found[0].spacing == pytest.approx(2.13, abs=0.002)
    assert found[0].strain < 0.002
    assert find_lattices(noise(0.3), PIXEL) == ()


def test_a_strained_sheet_is_found_with_its_strain() -> None:
    x, y = coordinates((SIZE, SIZE), PIXEL)
    image = noise(0.2)
    for k in range(3):
        direction = math.radians(10.0 + 60 * k)
        g_x, g_y = math.cos(direction) / 2.13 / 1.01, math.sin(direction) / 2.13  # 1 % longer along x
        image = image + 0.2 * torch.cos(2 * math.pi * (g_x * x + g_y * y[:, None]))
    assert find_lattices(image, PIXEL)[0].strain == pytest.approx(0.01, abs=0.0015)


def test_the_waves_leave_and_a_particles_reflection_beside_them_stays() -> None:
    x, y = coordinates((SIZE, SIZE), PIXEL)
    r = torch.sqrt((x - 40) ** 2 + (y[:, None] - 40) ** 2)
    particle = 0.3 * torch.cos(2 * math.pi / 2.26 * (x * math.cos(0.2) + y[:, None] * math.sin(0.2))) * (r < 12)
    sheet = waves(math.degrees(0.2), 0.2)  # the same direction: 0.027 / angstrom apart
    free = (r > 16).float()
    mean = 1 + sheet + particle + noise(0.02)
    model = model_waves(mean, free, find_lattices(mean, PIXEL), PIXEL)
    frame = 0.8 * sheet + particle
    scales = fit_scales(frame[None], model, torch.zeros(1, 2), free, 0.02**2, 0.2)
    rest = (frame - model.images(torch.zeros(1, 2), scales)[0].view(SIZE, SIZE)) * (r < 12)
    assert float(scales[0, 0]) == pytest.approx(0.8, abs=0.01)
    kept = (rest * particle).sum() / particle.square().sum()
    assert float(kept) == pytest.approx(1.0, abs=0.02)
    assert float((rest - particle).square().mean()) < 0.02 * float((frame * (r < 12) - particle).square().mean())


def test_a_drifting_sheet_keeps_its_phase() -> None:
    mean = 1 + waves(15.0, 0.2) + noise(0.02)
    model = model_waves(mean, torch.ones(SIZE, SIZE), find_lattices(mean, PIXEL), PIXEL)
    shift = torch.tensor([[1.3, -0.7]])
    x, y = coordinates((SIZE, SIZE), PIXEL)
    moved = torch.zeros(SIZE, SIZE)
    for k in range(3):
        direction = math.radians(15.0 + 60 * k)
        path = math.cos(direction) * (x - 1.3) + math.sin(direction) * (y[:, None] + 0.7)
        moved = moved + 0.2 * torch.cos(2 * math.pi / 2.13 * path + k)
    predicted = model.images(shift, torch.ones(1, int(model.group.max()) + 1))[0].view(SIZE, SIZE)
    inner = slice(20, -20)
    assert float((predicted - moved)[inner, inner].std()) < 0.05 * float(moved.std())
