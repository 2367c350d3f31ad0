"""Atoms at the maxima of maps whose atoms are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from common.rotations import rotation_from_vector
from spr.atomic_map import atomic_map, atoms_of, draw_atoms, like_in_shells

BOX, VOXEL, RADIUS, BOND = 40, 0.55, 8.0, 2.8


def packed(seed: int = 0) -> Tensor:
    """Atoms no nearer to each other than a bond, without any lattice."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(1, 3)
    for place in (2 * torch.rand(6000, 3, generator=generator) - 1) * RADIUS:
        if place.norm() < RADIUS - 1 and (chosen - place).norm(dim=1).min() > BOND:
            chosen = torch.cat((chosen, place[None]))
    return chosen


def blurred(atoms: Tensor) -> Tensor:
    return draw_atoms(atoms, torch.ones(len(atoms)), BOX, VOXEL, 0.6)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


def test_maxima_are_the_atoms() -> None:
    atoms = packed()
    found, heights = atoms_of(blurred(atoms), VOXEL, radius=RADIUS, bond=BOND)
    assert len(found) >= len(atoms)
    distance = torch.cdist(atoms, found[: len(atoms)]).min(1).values
    assert float(distance.max()) < 0.15
    assert bool((heights[:-1] >= heights[1:]).all())


def test_a_map_of_atoms_comes_back_as_it_was() -> None:
    """Whatever the width of its atoms: the amplitude of every shell is restored."""
    values = blurred(packed())
    assert correlation(atomic_map(values, VOXEL, radius=RADIUS, bond=BOND), values) > 0.99


def test_the_atoms_of_a_mixture_are_those_of_its_larger_part() -> None:
    atoms = packed()
    turned = atoms @ rotation_from_vector(torch.tensor([0.0, math.pi / 2, 0.3])).mT
    mixture = 0.65 * blurred(atoms) + 0.35 * blurred(turned)
    cleaned = atomic_map(mixture, VOXEL, radius=RADIUS, bond=BOND)
    assert correlation(cleaned, blurred(atoms)) > correlation(mixture, blurred(atoms)) + 0.02


def test_noise_holds_no_more_atoms_than_fit_in_the_ball() -> None:
    noise = torch.randn(BOX, BOX, BOX, generator=torch.Generator().manual_seed(1))
    found, _ = atoms_of(noise, VOXEL, radius=RADIUS, bond=BOND)
    assert 0 < len(found) <= 4 / 3 * math.pi * RADIUS**3 * math.sqrt(2) / BOND**3
    assert float(found.norm(dim=1).max()) < RADIUS + VOXEL
    assert float(torch.pdist(found).min()) > 0.75 * BOND - 1e-3


def test_an_empty_map_stays_empty() -> None:
    nothing = torch.zeros(BOX, BOX, BOX)
    assert torch.equal(atomic_map(nothing, VOXEL, radius=RADIUS, bond=BOND), nothing)


def test_shells_are_scaled_by_what_fits_and_never_inverted() -> None:
    values = blurred(packed())
    torch.testing.assert_close(like_in_shells(values, 2.5 * values), 2.5 * values, atol=1e-5, rtol=1e-4)
    assert float(like_in_shells(values, -values).abs().max()) == pytest.approx(0, abs=1e-5)
