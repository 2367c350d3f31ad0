"""Spots on patches are exact, and atoms refined against counts reach the truth within their sigmas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms

from common.atoms.peaks import bond_length
from common.atoms.species import assign_species
from common.atoms.spot_count import SpotCountSettings, missing_atoms, settle_count
from common.atoms.spot_image import CountNoise, SpotParameters, moved, predict
from common.atoms.spot_model import predict_images, spot_model
from common.atoms.spot_normal import Shared, image_slope, linearise
from common.atoms.spot_rendering import correlate_spots, render_spots, spot_patches
from common.atoms.spot_settings import SpotSettings
from common.atoms.spots import refine_spots
from common.data import Focus, ImageStack, Poses
from common.rotations import random_rotations

PIXEL = 0.35


def _truth(seed: int = 0) -> tuple[Atoms, Poses, ImageStack]:
    """A jittered fcc ball of gold, 17 images of Poisson counts within 70 degrees, 1 background count a pixel."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    cell = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), -1).reshape(-1, 3)
    sites = 2.04 * cell[cell.sum(1) % 2 == 0]
    sites = sites[np.linalg.norm(sites, axis=1) < 4.7]
    positions = torch.from_numpy(sites + rng.normal(0, 0.1, sites.shape))
    poses = Poses.from_tilt_angles(torch.linspace(-70, 70, 17, dtype=torch.float64))
    n, m = len(positions), len(poses)
    one = torch.ones(n, dtype=torch.float64)
    parameters = SpotParameters(
        positions,
        60 * one,
        8 * one,
        poses.rotations,
        poses.shifts,
        one.new_ones(m),
        one.new_zeros(m),
        one.new_ones(m, 1),
    )
    expected = predict(parameters, ImageStack(torch.zeros(m, 40, 40, dtype=torch.float64), PIXEL))
    return Atoms(f"Au{n}", positions.numpy()), poses, ImageStack(torch.poisson(expected, generator).float(), PIXEL)


def _rmsd(found: np.ndarray, truth: np.ndarray) -> float:
    a, b = found - found.mean(0), truth - truth.mean(0)
    u, _, v = np.linalg.svd(b.T @ a)
    return float(np.sqrt(((a @ (u @ v).T - b) ** 2).sum(1).mean()))


def test_drawing_and_its_adjoint() -> None:
    generator = torch.Generator().manual_seed(1)
    places = 24 * torch.rand(3, 40, 2, generator=generator, dtype=torch.float64) - 12
    patches = spot_patches(places, torch.full((3, 40), 1.3, dtype=torch.float64), 20, 11)
    change = torch.randn(3, 40, 4, generator=generator, dtype=torch.float64)
    images = torch.randn(3, 20, 20, generator=generator, dtype=torch.float64)
    drawn = render_spots(patches, change[..., 0], change[..., 1:3], change[..., 3])
    assert float((drawn * images).sum()) == pytest.approx(float((correlate_spots(images, patches) * change).sum()))


def test_a_move_changes_the_images_as_its_derivative_says() -> None:
    places = torch.tensor([[[0.3, -1.2], [2.0, 1.6]]], dtype=torch.float64)
    width, amplitude = torch.tensor([[1.1, 1.4]], dtype=torch.float64), torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    move, widen, h = torch.tensor([[[0.7, -0.4], [0.2, 0.5]]], dtype=torch.float64), 0.3 * width, 1e-5

    def draw(t: float) -> torch.Tensor:
        return render_spots(spot_patches(places + t * move, width + t * widen, 24, 13), amplitude)

    slope = render_spots(
        spot_patches(places, width, 24, 13), 0 * amplitude, amplitude[..., None] * move, amplitude * widen
    )
    torch.testing.assert_close((draw(h) - draw(-h)) / (2 * h), slope, atol=1e-8, rtol=1e-6)


def test_atoms_reach_the_bound_and_sigmas_are_honest() -> None:
    truth, poses, stack = _truth()
    rough = truth.copy()
    rough.positions += np.random.default_rng(5).normal(0, 0.12, rough.positions.shape)
    out = torch.arange(17) % 8 == 4
    state = refine_spots(stack[~out], poses[~out], rough)
    model = spot_model(stack[~out], state, rough)
    error = _rmsd(model.atoms.positions, truth.positions)
    assert error < 1.25 * model.bound_pm / 100
    assert 0.8 < 100 * error / model.sigma_pm < 1.3
    assert 0.9 < float(state.noise.gain[0]) < 1.1
    assert predict_images(stack[out], poses[out], model.atoms).correlation > 0.8


def test_the_number_of_images_at_a_time_changes_nothing() -> None:
    truth, poses, stack = _truth()
    first, second = (refine_spots(stack, poses, truth, SpotSettings(max_steps=1, batch_size=b)) for b in (3, 8))
    torch.testing.assert_close(first.parameters.positions, second.parameters.positions, atol=1e-5, rtol=0)


def test_pixels_that_were_not_measured_say_nothing() -> None:
    """Whatever images are padded with, the atoms, their sigmas and what is predicted are the same, to rounding."""
    truth, poses, stack = _truth()
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[9:31, 2:38] = True
    found = []
    for padding in (0.0, 7.0, 1e4):
        padded = ImageStack(torch.where(inside, stack.images, padding), PIXEL, measured=inside)
        settings = SpotSettings(max_steps=4)
        state = refine_spots(padded, poses, truth, settings)
        model = spot_model(padded, state, truth, settings)
        found.append((model.atoms, predict_images(padded, poses, model.atoms, settings).r1))
    (first, r1), others = found[0], found[1:]
    for atoms, other in others:
        assert other == pytest.approx(r1, rel=1e-9)
        for name in ("positions", "peak_height", "position_sigma", "position_bound"):
            np.testing.assert_allclose(atoms.arrays[name], first.arrays[name], rtol=1e-9, atol=1e-9)
    assert _rmsd(first.positions, truth.positions) < 0.1


def test_missing_atoms_come_and_false_ones_go() -> None:
    truth, poses, stack = _truth()
    wrong = truth[2:]
    wrong += Atoms("Au", [truth.positions[10] + [1.3, 0.2, 0.4]])
    wrong += Atoms("Au", [truth.positions.max(0) + 1.5])
    atoms, state = settle_count(stack, poses, wrong, ("Au",))
    assert len(atoms) == len(truth)
    assert _rmsd_matched(state.parameters.positions.numpy(), truth.positions) < 0.2


def test_a_place_that_was_refused_once_may_be_filled_again() -> None:
    truth, poses, stack = _truth()
    place, others = truth.positions[3], truth[[i for i in range(len(truth)) if i != 3]]
    state = refine_spots(stack, poses, others, SpotSettings(max_steps=4))
    positions = state.parameters.positions.numpy()
    found, again, never = (
        missing_atoms(stack, state, positions, np.tile(place, (times, 1)), ("Au",), SpotCountSettings())
        for times in (0, 1, 2)
    )
    assert len(found) == 1
    assert np.linalg.norm(found[0] - place) < 0.5
    np.testing.assert_array_equal(again, found)
    assert len(never) == 0


def _rmsd_matched(found: np.ndarray, truth: np.ndarray) -> float:
    nearest = np.linalg.norm(found[:, None] - truth, axis=2)
    assert len(set(nearest.argmin(1))) == len(truth)
    return float(nearest.min(1).max())


def test_the_shortest_bond_is_that_of_the_crystal_where_it_is_shorter() -> None:
    """Distances of neighbours: gold's covalent radius 1.36, bcc tantalum a = 3.31, diamond-like silicon 2 x 1.11."""
    assert bond_length(("Au",)) == pytest.approx(2.72)
    assert bond_length(("Ta",)) == pytest.approx(2.867, abs=0.01)
    assert bond_length(("Si", "Ta")) == pytest.approx(2.22)
    assert bond_length(()) == bond_length(("X",)) == 2.7


def test_species_despite_a_trend() -> None:
    rng = np.random.default_rng(2)
    positions = torch.from_numpy(rng.normal(0, 8, (400, 3)))
    heavy = torch.from_numpy(rng.random(400) < 0.3)
    heights = torch.where(heavy, 1.0, 0.42) * (1 + 0.01 * positions[:, 2])
    heights = heights * torch.from_numpy(rng.normal(1, 0.06, 400))
    found = assign_species(heights, ("Au", "Pd"), positions=positions)
    assert [s == "Au" for s in found.symbols] == heavy.tolist()
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(400, dtype=torch.float64))


def _focused(seed: int) -> tuple[SpotParameters, ImageStack]:
    """Thirty atoms in five images, each sharp at its own depth; the stack gives box, pixel size and focus."""
    generator = torch.Generator().manual_seed(seed)
    n, m = 30, 5

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    focus = Focus(torch.linspace(-40, 30, m, dtype=torch.float64), 0.015)
    parameters = SpotParameters(
        10 * rand(n, 3) - 5,
        50 + 20 * rand(n),
        8 + 2 * rand(n),
        random_rotations(m, generator=generator).double(),
        0.3 * rand(m, 2),
        0.8 + 0.4 * rand(m),
        0.02 * rand(m),
        1 + rand(m, 1),
        focus,
    )
    return parameters, ImageStack(torch.zeros(m, 40, 40, dtype=torch.float64), PIXEL, focus=focus)


def test_slopes_of_the_likelihood_know_that_atoms_widen_along_the_beam() -> None:
    """The gradient by atoms and by the images' own parameters against differences of the likelihood."""
    truth, stack = _focused(0)
    images = predict(truth, stack) + torch.randn(5, 40, 40, generator=torch.Generator().manual_seed(1)).double()
    stack = replace(stack, images=images)
    generator = torch.Generator().manual_seed(2)
    atoms = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    own = torch.randn(5, 8, generator=generator, dtype=torch.float64) * 0.1
    one, none = torch.ones(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    noise = CountNoise(none, one, none)  # white, so that the weights stay the same

    def merit(t: float) -> float:
        there = moved(truth, t * atoms, torch.zeros(30, dtype=torch.float64), t * own)
        return -float((images - predict(there, stack)).square().sum()) / 2

    system = linearise(
        truth,
        stack,
        noise,
        groups=torch.zeros(30, dtype=torch.long),
        precision=Shared(torch.zeros(30, 4, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)),
        own_precision=torch.full((5, 8), 1e12, dtype=torch.float64),  # none is eliminated
        own_offset=torch.zeros(5, 8, dtype=torch.float64),
        batch_size=2,
    )
    of_own = sum(float((system.batch(rows).slope * own[rows]).sum()) for rows in system.rows)
    of_atoms = image_slope(system)
    h = 1e-5
    expected = (merit(h) - merit(-h)) / (2 * h)
    assert float((of_atoms.atoms * atoms).sum()) + of_own == pytest.approx(expected, rel=1e-4)
