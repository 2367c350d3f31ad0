"""The final atoms through multislice (abTEM), against images made by multislice of known atoms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ase import Atoms
from ase.cluster import Octahedron

from common.atoms.model import AtomicModel
from common.atoms.refinement import RefinementSettings, refine_atoms
from common.data import ImageStack, InputError
from common.noise import NoiseModel, estimate_noise
from common.rotations import random_rotations
from common.simulation import simulate_images
from spr.multislice_check import check_by_multislice, check_can_run


@pytest.fixture(scope="module")
def measured() -> tuple[ImageStack, NoiseModel, AtomicModel]:
    """12 multislice images of 19 gold atoms (B 0.8 angstrom^2), and atoms refined against them."""
    atoms = Octahedron("Au", 3)
    atoms.positions -= atoms.positions.mean(0)
    generator = torch.Generator().manual_seed(1)
    data = simulate_images(atoms, 12, box_size=48, model="multislice", dose=3000.0, generator=generator)
    stack = data.stack
    noise = estimate_noise(stack, radius=6.5)
    model = refine_atoms(stack, noise, atoms, data.poses, RefinementSettings(resolution=1.0, max_steps=4))
    return stack, noise, model


def test_multislice_of_the_right_atoms_agrees_as_well_as_the_model(
    measured: tuple[ImageStack, NoiseModel, AtomicModel],
) -> None:
    stack, noise, model = measured
    checked = check_by_multislice(stack, noise, model, 3 * torch.arange(12), count=4)
    assert checked.numbers.tolist() == [0, 12, 21, 33]
    assert 0.5 <= checked.b_factor <= 1.2
    assert float(checked.between.min()) > 0.985
    assert float((checked.multislice - checked.model).abs().max()) < 0.02
    assert checked.doubts() == []


def test_wrong_atoms_are_told(measured: tuple[ImageStack, NoiseModel, AtomicModel]) -> None:
    stack, noise, model = measured
    turned = random_rotations(1, generator=torch.Generator().manual_seed(3)).double()[0]
    wrong = replace(model.parameters, rotations=model.parameters.rotations @ turned)
    checked = check_by_multislice(stack, noise, replace(model, parameters=wrong), torch.arange(12), count=2)
    assert float(checked.multislice.max()) < 0.6
    mixed = replace(checked, model=torch.full((2,), 0.9))
    assert "agree worse" in mixed.doubts()[0]


def test_what_the_check_needs_is_said(measured: tuple[ImageStack, NoiseModel, AtomicModel]) -> None:
    stack = measured[0]
    with pytest.raises(InputError, match="--element"):
        check_can_run(stack, "X")
    with pytest.raises(InputError, match="defocus"):
        check_can_run(replace(stack, optics=None), "Au")
    check_can_run(stack, Atoms("Au").get_chemical_symbols()[0])
