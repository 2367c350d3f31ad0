"""Poses searched over all orientations with atoms as the reference."""

from __future__ import annotations

import pytest
import torch

from common.atoms.likelihood import Views
from common.atoms.pose_search import PoseSearchSettings, best_of, distinct, search_poses, shift_grid
from common.atoms.refinement import refine_atoms
from common.data import Poses
from common.rotations import rotation_grid


@pytest.fixture(scope="module", params=["projections", "phase_objects"])
def searched(request):
    data = request.getfixturevalue(request.param)
    model = refine_atoms(data.stack, data.noise, data.atoms, data.poses)
    picked = torch.arange(0, 60, 3)
    lost = torch.eye(3, dtype=torch.float64).expand(len(picked), 3, 3)
    astray = Poses(lost, torch.zeros(len(picked), 2, dtype=torch.float64))
    found = search_poses(data.stack[picked], data.noise[picked], model, PoseSearchSettings(reach=1.4), poses=astray)
    return model, picked, found


def test_every_orientation_is_found_again(searched) -> None:
    model, picked, found = searched
    between = found.parameters.rotations @ model.parameters.rotations[picked].mT
    trace = torch.diagonal(between, dim1=1, dim2=2).sum(1)
    angles = torch.rad2deg(torch.acos(((trace - 1) / 2).clamp(-1, 1)))
    assert float(angles.max()) < 3


def test_every_shift_is_found_again(searched) -> None:
    model, picked, found = searched
    assert float((found.parameters.shifts - model.parameters.shifts[picked]).abs().max()) < 0.1


def test_nothing_is_lost_in_likelihood(searched) -> None:
    model, picked, found = searched
    assert float((found.log_likelihood - model.log_likelihood[picked]).min()) > -1.0


def test_shifts_cover_the_disc() -> None:
    grid = shift_grid(2.1, 0.5, torch.zeros(1))
    assert float(torch.linalg.vector_norm(grid, dim=1).max()) <= 2.1
    assert len(grid) == 57
    assert bool((grid == 0).all(1).any())


def test_chosen_orientations_are_apart() -> None:
    grid = rotation_grid(40, 12).flatten(0, 1)
    scores = torch.randn(3, len(grid), generator=torch.Generator().manual_seed(0))
    chosen = distinct(scores, grid, 5, 0.6)
    assert torch.equal(chosen[:, 0], scores.argmax(1))
    for row in chosen:
        between = grid[row][:, None] @ grid[row].mT
        cosine = (torch.diagonal(between, dim1=2, dim2=3).sum(-1) - 1) / 2
        off = cosine[~torch.eye(5, dtype=torch.bool)]
        assert float(torch.acos(off.clamp(-1, 1)).min()) >= 0.59


def test_the_best_of_each_image_are_kept_in_order() -> None:
    number = torch.arange(6, dtype=torch.float64)
    views = Views(torch.eye(3).expand(6, 3, 3), number[:, None].expand(6, 2), number, number)
    kept, rows = best_of(views, torch.tensor([1, 0, 1, 0, 1, 0]), torch.tensor([5.0, 1, 3, 0, 4, 2]), 2, 2)
    assert rows.tolist() == [0, 0, 1, 1]
    assert kept.gains.tolist() == [3, 1, 2, 4]
