"""A crystal that tumbles and jumps: stretches that a search left in the wrong one of its like orientations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from common.data import InputError, Poses
from common.rotations import geodesic_distance
from spr.ab_initio import SearchState
from spr.atomic_map import draw_atoms
from spr.refinement import RefineSettings, map_of_poses
from spr.settling import Film, SettlingSettings, anneal, centre_of_mass, moved, searched_anew, settle_paths
from spr.time_consensus import shared_orientations

SETTLING = SettlingSettings(iterations=4, stride=2, rounds=4)


def film_of(crystal: Any) -> Film:
    return Film(crystal.images, torch.arange(len(crystal.rotations)), crystal.grid, crystal.search, crystal.time)


def started(crystal: Any, poses: Poses) -> SearchState:
    values = map_of_poses(crystal.images, crystal.grid, poses, RefineSettings())
    return SearchState(0, False, values, poses.shifts, 0.0, 1.0)


def test_a_stretch_in_a_like_orientation_finds_its_place(tumbling_crystal: Any, misplaced: Poses) -> None:
    crystal = tumbling_crystal
    assert shared_orientations(misplaced.rotations, crystal.rotations) < 0.7
    found = settle_paths(
        started(crystal, misplaced),
        film_of(crystal),
        SETTLING,
        RefineSettings(),
        bond=crystal.bond,
        seed=1,
    )
    assert found.iteration == SETTLING.rounds
    assert shared_orientations(found.rotations, crystal.rotations) > 0.95
    steps = geodesic_distance(found.rotations[1:], found.rotations[:-1])
    assert set(steps.topk(2).indices.tolist()) == {t - 1 for t in crystal.jumps}


def test_shifts_that_went_astray_are_found_by_the_track(tumbling_crystal: Any, misplaced: Poses) -> None:
    """The search looks where the track sees the particle, whatever the centre of the map."""
    crystal = tumbling_crystal
    shift = torch.tensor([0.5, -0.8, 0.7])
    drawn = draw_atoms(
        crystal.atoms + shift, torch.ones(len(crystal.atoms)), crystal.grid.box_size, crystal.grid.voxel_size, 0.4
    )
    true = Poses(crystal.rotations, -(crystal.rotations @ shift)[:, :2])
    values = started(crystal, true).values
    reference = drawn * (values * drawn).sum() / drawn.square().sum()
    astray = Poses(crystal.rotations, true.shifts + 3.0)
    found = searched_anew(reference, astray, film_of(crystal), seed=2, by_track=True)
    assert float((found.shifts - true.shifts).norm(dim=1).median()) < 0.4
    assert float((geodesic_distance(found.rotations, crystal.rotations) < 12).float().mean()) > 0.9


def test_a_moved_map_has_its_centre_moved() -> None:
    values = draw_atoms(torch.tensor([[1.0, 0.5, -2.0]]), torch.ones(1), 32, 0.5, 0.6)
    torch.testing.assert_close(centre_of_mass(values, 0.5), torch.tensor([1.0, 0.5, -2.0]), atol=1e-3, rtol=0)
    there = moved(values, torch.tensor([1.5, -3.0, 0.25]))
    torch.testing.assert_close(centre_of_mass(there, 0.5), torch.tensor([1.75, -1.0, -1.875]), atol=3e-3, rtol=0)


def test_annealing_repeats_with_its_seed(tumbling_crystal: Any, misplaced: Poses) -> None:
    c, first = tumbling_crystal, started(tumbling_crystal, misplaced)
    few = replace(SETTLING, iterations=2)
    maps = [anneal(first, film_of(c), few, bond=c.bond, seed=seed).values for seed in (3, 3, 4)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])


def test_no_iterations_change_nothing(tumbling_crystal: Any, misplaced: Poses) -> None:
    c, first = tumbling_crystal, started(tumbling_crystal, misplaced)
    last = anneal(first, film_of(c), replace(SETTLING, iterations=0), bond=c.bond, seed=3)
    assert torch.equal(last.values, first.values)


@pytest.mark.parametrize("wrong", [{"hottest": 1.0}, {"coolest": 0.0}, {"stride": 0}, {"rounds": -1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"settling: .*expected"):
        SettlingSettings(**wrong)  # type: ignore[arg-type]
