"""Signs, constants and images against abTEM, an independent multislice program (the extra ``multislice``)."""

import abtem
import numpy as np
import pytest
import torch
from ase.cluster import Icosahedron

from common.data import Optics
from common.image_formation import (
    contrast_transfer,
    electron_wavelength,
    interaction_constant,
    phase_object_image,
    wave_transfer,
)
from common.noise_spectrum import radius_grid
from common.scattering import atom_potential, projected_potential, scattering_factor
from common.simulation import multislice_images

BOX, PIXEL = 80, 0.35


def optics(defocus, cs_mm):
    n = len(defocus)
    focus = torch.tensor(defocus)
    return Optics(
        torch.full((n,), 300.0),
        torch.tensor(cs_mm),
        torch.zeros(n),
        torch.stack((focus, focus, torch.zeros(n)), 1),
        torch.full((n,), 50.0),
        torch.zeros(n),
    )


def test_wavelength_and_interaction_constant():
    for voltage in (80.0, 200.0, 300.0):
        ours = torch.tensor(voltage, dtype=torch.float64)
        energy = voltage * 1e3
        assert float(electron_wavelength(ours)) == pytest.approx(abtem.core.energy.energy2wavelength(energy), rel=1e-6)
        assert float(interaction_constant(ours)) == pytest.approx(abtem.core.energy.energy2sigma(energy), rel=1e-6)


@pytest.mark.parametrize("symbol", ["C", "N", "O", "Si", "Fe", "Co", "Ni", "Cu", "Pd", "Ag", "Ta", "Pt", "Au"])
def test_scattering_factors(symbol):
    k = np.linspace(0.15, 3.5, 40)  # below, the published fits of one and the same atom differ by 3 %
    strengths, widths = (x.numpy() for x in atom_potential(symbol))
    ours = (strengths * np.exp(-widths * k[:, None] ** 2 / 4)).sum(1)
    lobato = abtem.parametrizations.LobatoParametrization().projected_scattering_factor(symbol)(k**2)
    kirkland = abtem.parametrizations.KirklandParametrization().projected_scattering_factor(symbol)(k**2)
    for theirs in (lobato, kirkland):
        np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=0.005 * ours.max())


def test_lens_transfer():
    """The same defocus, Cs and focal spread mean the same wave."""
    lens = abtem.CTF(energy=300e3, defocus=-80.0, Cs=-13e4, focal_spread=50 * np.sqrt(2))
    k = np.linspace(0, 1.2, 50)
    theirs = lens._evaluate_from_angular_grid(
        (k * float(electron_wavelength(torch.tensor(300.0)))).astype(np.float32), np.zeros(50, np.float32)
    )
    ours = wave_transfer(optics([-80.0], [-0.013]), 240, 1 / 2.4)[0]  # 0.01/angstrom a point
    np.testing.assert_allclose(ours[0, :50].numpy(), np.interp(0.01 * np.arange(50), k, theirs), atol=0.01)


def test_phase_object_images_are_those_of_multislice():
    """Icosahedron of 55 gold atoms, tilted; over- and underfocus, so that bright and dark atoms are both checked."""
    atoms = Icosahedron("Au", 3)
    atoms.rotate(25, "x")
    atoms.rotate(40, "y")
    view = torch.from_numpy(atoms.positions - atoms.positions.mean(0) + [1.0, -2.0, 0.0])
    views, setting = torch.stack((view, view)), optics([-80.0, 90.0], [-0.013, 0.013])
    full = multislice_images(
        atoms.get_chemical_symbols(), views, setting, box_size=BOX, pixel_size=PIXEL, b_factor=0.8
    ).double()
    gold = scattering_factor("Au", BOX, PIXEL).float()
    potential = projected_potential(views[..., :2].float(), gold, pixel_size=PIXEL, b_factors=torch.tensor(0.8))
    phase = potential * interaction_constant(setting.voltage_kv)[:, None, None]
    ours = phase_object_image(phase, wave_transfer(setting, BOX, PIXEL)).double()
    linear = 1 + torch.fft.irfft2(contrast_transfer(setting, BOX, PIXEL) * torch.fft.rfft2(phase), s=(BOX, BOX))
    inside = radius_grid(BOX) * PIXEL < 9
    for image, model, weak, sign in zip(full, ours, linear.double(), (1, -1), strict=True):
        assert np.corrcoef(image[inside], model[inside])[0, 1] > 0.995
        assert 0.9 < np.corrcoef(image[inside], weak[inside])[0, 1] < 0.995
        assert sign * ((image[inside] - image[inside].mean()) ** 3).mean() > 0
