"""The model of an image and its derivatives."""

from __future__ import annotations

import math

import pytest
import torch

from common.atoms.image_model import (
    coefficients,
    cotangent,
    expose,
    fourier_band,
    image_from_coefficients,
    lens,
    lens_tangents,
    profiles,
    projected_coefficients,
    render,
    tangent,
)
from common.data import Optics
from common.image_formation import phase_object_image, wave_transfer

BOX, PIXEL = 40, 0.35


def white_band(limit: float, margin: float = 3.0):
    frequencies = torch.linspace(0, 2, 30)
    return fourier_band(BOX, PIXEL, limit, torch.ones(30), frequencies, margin=margin)


def some_optics(contrast: float = 0.0) -> Optics:
    n = torch.ones(2)
    defocus = torch.tensor([[-80.0, -60.0, 20.0], [-50.0, -50.0, 0.0]])
    return Optics(300 * n, -0.013 * n, contrast * n, defocus, 40 * n, 0.2 * n)


def some_phase() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = 3.0 * torch.randn(2, 6, 2, generator=generator)
    drawn = profiles(centres, torch.full((6,), 0.09), white_band(1.0).coordinates)
    return render(drawn.by, drawn.bx, torch.full((6,), 0.3))


def test_gaussians_have_their_integral_and_centre() -> None:
    coordinates = white_band(1.0).coordinates
    drawn = profiles(torch.tensor([[[1.1, -0.4]]]), torch.tensor([0.16]), coordinates)
    image = render(drawn.by, drawn.bx, torch.tensor([2.0]))[0] * PIXEL**2
    assert image.sum() == pytest.approx(2.0, rel=1e-5)
    assert (image.sum(0) @ coordinates) / 2 == pytest.approx(1.1, abs=1e-4)
    assert (image.sum(1) @ coordinates) / 2 == pytest.approx(-0.4, abs=1e-4)


@pytest.mark.parametrize("box", [40, 41])
def test_coefficients_without_drawing_are_those_of_the_drawn_atoms(box) -> None:
    generator = torch.Generator().manual_seed(1)
    band = fourier_band(box, PIXEL, 0.5, torch.linspace(1, 2, 30), torch.linspace(0, 2, 30), margin=math.inf)
    centres = 2.0 * torch.randn(3, 7, 2, generator=generator)
    variance, weights = 0.1 + 0.1 * torch.rand(7, generator=generator), torch.rand(7, generator=generator)
    drawn = profiles(centres, variance, band.coordinates)
    wanted = coefficients(render(drawn.by, drawn.bx, weights), band)
    found = projected_coefficients(centres, variance, weights, band)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-4


def test_white_noise_has_coefficients_of_variance_one() -> None:
    noise = torch.randn(200, BOX, BOX, generator=torch.Generator().manual_seed(0))
    power = coefficients(noise, white_band(1.2, math.inf)).abs() ** 2
    interior = white_band(1.2).kx > 0
    assert power[:, interior].mean() == pytest.approx(2.0, rel=0.01)  # a coefficient and its mirror image


def test_phase_object_is_that_of_image_formation() -> None:
    phase, optics = some_phase(), some_optics(0.1)
    band = white_band(1.4)
    expected = phase_object_image(
        phase, wave_transfer(optics, BOX, PIXEL), amplitude_contrast=optics.amplitude_contrast
    )
    model, _ = expose(phase, lens(optics, band), band)
    assert torch.allclose(model, coefficients(expected, band), atol=2e-3 * float(model.abs().max()))


def test_coarse_grid_gives_the_same_coefficients() -> None:
    phase, optics = some_phase(), some_optics()
    fine, coarse = white_band(0.55, 6.0), white_band(0.55)
    assert coarse.coarse < fine.coarse
    a, b = (expose(phase, lens(optics, band), band)[0] for band in (fine, coarse))
    assert torch.allclose(a, b, atol=1e-5 * float(a.abs().max()))


@pytest.mark.parametrize("model", ["projection", "phase_object"])
def test_cotangent_is_the_adjoint_of_tangent(model: str) -> None:
    generator = torch.Generator().manual_seed(1)
    band = white_band(0.8, math.inf if model == "projection" else 3.0)
    phase = some_phase()
    _, wave = expose(phase, None if model == "projection" else lens(some_optics(0.07), band), band)
    change = torch.randn(2, 1, BOX, BOX, generator=generator)
    forward = tangent(wave, change, band)[:, 0]
    values = torch.view_as_complex(torch.randn(2, len(band.index), 2, generator=generator))
    back = cotangent(wave, values, band)
    left = (forward.conj() * values).real.sum()
    assert left == pytest.approx(float((change[:, 0] * back).sum()), rel=1e-4)


def test_image_from_coefficients_is_the_adjoint() -> None:
    generator = torch.Generator().manual_seed(2)
    band = white_band(0.9)
    image = torch.randn(band.coarse, band.coarse, generator=generator)
    values = torch.view_as_complex(torch.randn(len(band.index), 2, generator=generator))
    left = (coefficients(image, band).conj() * values).real.sum()
    assert left == pytest.approx(float((image * image_from_coefficients(values, band)).sum()), rel=1e-4)


def test_tangents_are_differences() -> None:
    band, phase, optics = white_band(1.0), some_phase().double().float(), some_optics(0.05)
    _, wave = expose(phase, lens(optics, band), band)
    change = torch.randn(2, BOX, BOX, generator=torch.Generator().manual_seed(3))
    step = 1e-3
    ahead, behind = (expose(phase + sign * step * change, lens(optics, band), band)[0] for sign in (1, -1))
    exact = tangent(wave, change[:, None], band)[:, 0]
    assert torch.allclose((ahead - behind) / (2 * step), exact, atol=1e-3 * float(exact.abs().max()))

    def at(defocus: float, spread: float) -> torch.Tensor:
        moved = Optics(
            optics.voltage_kv,
            optics.spherical_aberration_mm,
            optics.amplitude_contrast,
            optics.defocus + torch.tensor([defocus, defocus, 0.0]),
            optics.focal_spread * math.exp(spread),
            torch.zeros(2),
        )
        return expose(phase, lens(moved, band), band)[0]

    still = Optics(*(getattr(optics, name) for name in list(Optics.__dataclass_fields__)[:-1]), torch.zeros(2))
    _, wave = expose(phase, lens(still, band), band)
    by_defocus, by_spread = lens_tangents(wave, band).unbind(1)
    assert torch.allclose((at(1, 0) - at(-1, 0)) / 2, by_defocus, atol=2e-3 * float(by_defocus.abs().max()))
    assert torch.allclose((at(0, 0.01) - at(0, -0.01)) / 0.02, by_spread, atol=2e-3 * float(by_spread.abs().max()))
