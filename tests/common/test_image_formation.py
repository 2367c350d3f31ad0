"""Optics and images: against closed forms, against each other, and their gradients."""

import math

import pytest
import torch

from common.data import Optics
from common.image_formation import (
    aberration_phase,
    contrast_transfer,
    electron_wavelength,
    focal_series_transfer,
    frequency_grid,
    fresnel_propagator,
    interaction_constant,
    multislice_image,
    phase_object_image,
    wave_transfer,
)
from common.scattering import projected_potential, scattering_factor

DOUBLE = torch.float64


def optics(defocus=-80.0, cs_mm=-0.013, *, n=1, focal_spread=50.0, convergence=0.0, amplitude=0.0, v=None, angle=0.0):
    def same(value):
        return torch.full((n,), value, dtype=DOUBLE)

    rows = torch.tensor([[defocus, defocus if v is None else v, angle]], dtype=DOUBLE).expand(n, 3)
    return Optics(same(300.0), same(cs_mm), same(amplitude), rows, same(focal_spread), same(convergence))


def test_wavelength_and_interaction_constant_at_300_kv():
    voltage = torch.tensor([100.0, 300.0], dtype=DOUBLE)
    assert electron_wavelength(voltage).tolist() == pytest.approx([0.037014, 0.019687], abs=1e-6)
    assert interaction_constant(voltage).tolist() == pytest.approx([9.244e-4, 6.526e-4], rel=1e-3)


def test_overfocus_with_negative_cs_gives_bright_atoms_and_underfocus_dark_ones():
    scattering = scattering_factor("Au", 64, 0.35)
    phase = projected_potential(torch.zeros(1, 1, 2, dtype=DOUBLE), scattering, pixel_size=0.35) * 6.5e-4
    bright = phase_object_image(phase, wave_transfer(optics(-80.0, -0.013), 64, 0.35))
    dark = phase_object_image(phase, wave_transfer(optics(80.0, 0.013), 64, 0.35))
    assert bright[0, 32, 32] > 1.2
    assert dark[0, 32, 32] < 0.8
    assert bright[0, :4].mean().item() == pytest.approx(1, abs=0.02)


def test_ctf_is_zero_where_defocus_alone_gives_multiples_of_pi():
    defocus, box, pixel = 5000.0, 512, 0.5
    kx, ky = frequency_grid(box, pixel, half=True, dtype=DOUBLE, device="cpu")
    k = torch.hypot(kx, ky)[0]
    ctf = contrast_transfer(optics(defocus, 0.0, focal_spread=0.0), box, pixel)[0, 0]
    wavelength = float(electron_wavelength(torch.tensor(300.0, dtype=DOUBLE)))
    zeros = torch.sqrt(torch.arange(1, 6, dtype=DOUBLE) / (wavelength * defocus))
    crossed = k[:-1][ctf[:-1] * ctf[1:] < 0][: len(zeros)]
    assert (crossed - zeros).abs().max() < 1.01 / (box * pixel)


def test_amplitude_contrast_darkens_atoms_at_zero_frequency():
    assert contrast_transfer(optics(5000.0, 2.7, amplitude=0.1), 32, 1.0)[0, 0, 0].item() == pytest.approx(-0.2)


def test_astigmatism_has_u_along_its_angle_and_v_across():
    kx, ky = torch.tensor([[0.3, 0.0]], dtype=DOUBLE), torch.tensor([[0.0, 0.3]], dtype=DOUBLE)
    one = torch.ones(1, dtype=DOUBLE)
    for angle, expected in ((0.0, (200.0, 50.0)), (90.0, (50.0, 200.0))):
        rows = torch.tensor([[200.0, 50.0, angle]], dtype=DOUBLE)
        chi = aberration_phase(kx, ky, wavelength=one, spherical_aberration=0 * one, defocus=rows)[0, 0]
        torch.testing.assert_close(chi, -math.pi * 0.09 * torch.tensor(expected, dtype=DOUBLE))


def test_weak_phase_object_images_by_the_ctf():
    phase = 1e-6 * torch.randn(2, 40, 40, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    setting = optics(v=-40.0, angle=30.0, n=2, convergence=0.3, amplitude=0.05)
    image = phase_object_image(phase, wave_transfer(setting, 40, 0.4), amplitude_contrast=setting.amplitude_contrast)
    linear = torch.fft.irfft2(contrast_transfer(setting, 40, 0.4) * torch.fft.rfft2(phase), s=(40, 40))
    # the Nyquist row and column of a real transform cannot hold the astigmatic phase of both signs
    difference = torch.fft.rfft2(image - 1 - linear)[:, torch.arange(40) != 20, :20]
    assert difference.abs().max() < 1e-3 * torch.fft.rfft2(linear).abs().max()


def test_vacuum_is_one():
    images = phase_object_image(torch.zeros(3, 16, 16, dtype=DOUBLE), wave_transfer(optics(n=3), 16, 0.35))
    torch.testing.assert_close(images, torch.ones_like(images))


def test_quadrature_over_focus_gives_the_temporal_envelope_of_a_weak_object():
    phase = 1e-6 * torch.randn(1, 40, 40, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    setting = optics(n=1, focal_spread=30.0)
    transfers, weights = focal_series_transfer(setting, 40, 0.8, n_points=9)
    averaged = phase_object_image(phase, transfers, weights=weights)
    damped = phase_object_image(phase, wave_transfer(setting, 40, 0.8))
    assert (averaged - damped).abs().max() < 1e-3 * (damped - 1).abs().max()


def test_slices_without_thickness_are_one_phase_object():
    slices = torch.rand(3, 2, 24, 24, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    setting = optics(n=2)
    thin = fresnel_propagator(24, 0.35, 0.0, electron_wavelength(setting.voltage_kv))
    transfer = wave_transfer(setting, 24, 0.35)
    torch.testing.assert_close(multislice_image(slices, thin, transfer), phase_object_image(slices.sum(0), transfer))


def test_an_atom_upstream_is_focused_by_as_much_underfocus():
    phase = torch.zeros(2, 1, 32, 32, dtype=DOUBLE)
    phase[0, 0, 16, 16] = 0.5
    setting = optics(12.0 - 80.0)
    step = fresnel_propagator(32, 0.35, 12.0, electron_wavelength(setting.voltage_kv))
    ideal = optics(-80.0, focal_spread=0.0)
    coherent = optics(12.0 - 80.0, focal_spread=0.0)
    upstream = multislice_image(phase, step, wave_transfer(coherent, 32, 0.35))
    torch.testing.assert_close(upstream, phase_object_image(phase[0], wave_transfer(ideal, 32, 0.35)))


def test_gradients_of_the_image_in_everything_that_is_refined():
    scattering = scattering_factor("Au", 12, 0.6)
    generator = torch.Generator().manual_seed(4)

    def image(positions, occupancies, b_factors, defocus, focal_spread, cs_mm):
        setting = Optics(
            torch.full((2,), 300.0, dtype=DOUBLE),
            cs_mm.expand(2),
            torch.zeros(2, dtype=DOUBLE),
            torch.stack((defocus, defocus + 10, torch.full_like(defocus, 20.0)), 1),
            focal_spread.expand(2),
            torch.full((2,), 0.1, dtype=DOUBLE),
        )
        potential = projected_potential(
            positions, scattering, pixel_size=0.6, occupancies=occupancies, b_factors=b_factors
        )
        return phase_object_image(potential * 6.5e-4, wave_transfer(setting, 12, 0.6))

    inputs = (
        torch.randn(2, 3, 2, dtype=DOUBLE, generator=generator),
        torch.tensor([1.0, 0.9, -0.2], dtype=DOUBLE),
        torch.tensor([0.8, 1.2, 0.5], dtype=DOUBLE),
        torch.tensor([-80.0, -60.0], dtype=DOUBLE),
        torch.tensor(50.0, dtype=DOUBLE),
        torch.tensor(-0.013, dtype=DOUBLE),
    )
    assert torch.autograd.gradcheck(image, [x.requires_grad_(True) for x in inputs], fast_mode=True)
