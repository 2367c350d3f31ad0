"""Projected potentials: two ways to draw them agree, they add up, and atoms lie where they should."""

import math

import pytest
import torch

from common.data import InputError
from common.scattering import atom_potential, projected_atoms, projected_potential, scattering_factor

DOUBLE = torch.float64


def test_band_limited_atoms_equal_drawn_gaussians_where_these_are_smooth():
    positions = 3 * torch.randn(2, 9, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    strengths, widths = atom_potential("Au")
    drawn = projected_atoms(
        positions,
        strengths.expand(9, 5),
        torch.sqrt((widths + 20) / (8 * math.pi**2)),
        box_size=81,
        pixel_size=0.35,
    )
    thermal = torch.full((9,), 20.0, dtype=DOUBLE)
    band_limited = projected_potential(positions, scattering_factor("Au", 81, 0.35), pixel_size=0.35, b_factors=thermal)
    assert (drawn - band_limited).abs().max() < 2e-3 * drawn.max()


def test_potential_adds_up_to_its_strength():
    positions = torch.tensor([[[0.1, -0.2], [2.0, 1.0]]], dtype=DOUBLE)
    weights = torch.tensor([1.0, 0.5], dtype=DOUBLE)
    potential = projected_potential(
        positions, scattering_factor("Pt", 60, 0.4), pixel_size=0.4, occupancies=weights, b_factors=weights
    )
    strength = 1.5 * float(atom_potential("Pt")[0].sum())
    assert float(potential.sum()) * 0.16 == pytest.approx(strength, rel=1e-9)


def test_an_atom_lies_where_its_position_says():
    for box in (32, 33):
        image = projected_potential(
            torch.tensor([[[1.5, -3.0]]], dtype=DOUBLE), scattering_factor("C", box, 0.5), pixel_size=0.5
        )[0]
        row, column = divmod(int(image.argmax()), box)
        assert (column - box // 2, row - box // 2) == (3, -6)


def test_unknown_elements_are_refused():
    for symbol in ("X", "Zz", ""):
        with pytest.raises(InputError, match="expected a chemical symbol"):
            atom_potential(symbol)
