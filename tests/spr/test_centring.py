"""Where the particle lies: images simulated with known shifts, learned from and whitened as measured ones are."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms
from torch import Tensor

from common.data import ImageStack
from common.noise import estimate_noise, particle_radius, whiten
from common.simulation import gold_cluster, simulate_images
from spr.centring import centre_particles

PIXEL, SPREAD = 0.4, 0.8


@pytest.fixture(scope="module")
def cluster() -> Atoms:
    return gold_cluster(30, generator=torch.Generator().manual_seed(0))


def found_centres(stack: ImageStack) -> Tensor:
    extent = particle_radius(stack)
    white = whiten(stack, estimate_noise(stack)).images
    return centre_particles(white, pixel_size=PIXEL, radius=extent.radius, shift_spread=extent.shift_spread)


@pytest.mark.parametrize(
    ("model", "snr", "dose", "error"),
    [
        ("projection", 1.0, None, 0.2),
        ("projection", 0.2, None, 0.36),
        ("phase_object", None, 2000.0, 0.28),
        ("phase_object", None, 400.0, 0.38),
    ],
)
def test_known_shifts_are_found(
    cluster: Atoms, model: str, snr: float | None, dose: float | None, error: float
) -> None:
    """rms over both axes, angstrom; the shifts themselves have 0.8."""
    data = simulate_images(
        cluster,
        160,
        box_size=56,
        pixel_size=PIXEL,
        model=model,
        snr=snr,
        dose=dose,
        shift_sigma=SPREAD,
        generator=torch.Generator().manual_seed(1),
    )
    difference = found_centres(data.stack) - data.poses.shifts
    rms = float(difference.square().mean().sqrt())
    assert rms < error
    assert float(difference.mean(0).abs().max()) < 4 * rms / 160**0.5  # no direction is preferred


def test_odd_box_and_far_particle(cluster: Atoms) -> None:
    data = simulate_images(
        cluster,
        120,
        box_size=57,
        pixel_size=PIXEL,
        snr=1.0,
        shift_sigma=SPREAD,
        generator=torch.Generator().manual_seed(2),
    )
    centres = found_centres(data.stack)
    difference = centres - data.poses.shifts
    assert float(difference.square().mean().sqrt()) < 0.2
    far = data.poses.shifts.norm(dim=1) > 1.5
    assert int(far.sum()) > 10
    assert float(difference[far].square().mean().sqrt()) < 0.3


def test_turned_images_have_turned_centres(cluster: Atoms) -> None:
    data = simulate_images(
        cluster,
        40,
        box_size=57,
        pixel_size=PIXEL,
        snr=1.0,
        shift_sigma=SPREAD,
        generator=torch.Generator().manual_seed(3),
    )
    white = whiten(data.stack, estimate_noise(data.stack)).images
    options = dict(pixel_size=PIXEL, radius=5.0, shift_spread=SPREAD)
    plain = centre_particles(white, **options)
    # (x, y) goes to (y, -x); an odd box turns about its own middle. The band is estimated on half of Fourier space,
    # which the turn exchanges for the other half: hundredths of an angstrom
    turned = centre_particles(torch.rot90(white, 1, (1, 2)), **options)
    torch.testing.assert_close(turned, torch.stack((plain[:, 1], -plain[:, 0]), 1), atol=0.01, rtol=0)


def test_batch_size_does_not_change_the_result(cluster: Atoms) -> None:
    data = simulate_images(
        cluster, 30, box_size=48, pixel_size=PIXEL, snr=1.0, generator=torch.Generator().manual_seed(4)
    )
    white = whiten(data.stack, estimate_noise(data.stack)).images
    options = dict(pixel_size=PIXEL, radius=5.0, shift_spread=SPREAD)
    few, all_at_once = (centre_particles(white, batch_size=size, **options) for size in (7, 256))
    torch.testing.assert_close(few, all_at_once, atol=1e-4, rtol=0)


def test_pure_noise_is_left_near_the_middle() -> None:
    """With nothing to see, the prior decides: positions stay well inside its spread."""
    white = torch.randn(60, 48, 48, generator=torch.Generator().manual_seed(5))
    centres = centre_particles(white, pixel_size=PIXEL, radius=5.0, shift_spread=SPREAD)
    assert float(centres.square().mean().sqrt()) < 0.5 * SPREAD
