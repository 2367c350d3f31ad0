"""Frames of a tumbling crystal placed with its atoms as the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ase import Atoms
from torch import Tensor

from common.atoms.model import AtomicModel
from common.atoms.pose_search import PoseSearchSettings, refine_given
from common.atoms.refinement import RefinementSettings, refine_atoms
from common.data import Poses
from common.rotations import geodesic_distance, rotation_from_vector
from spr.placing import place_between, place_in_time
from spr.refinement import RefineSettings
from spr.settling import Film

SEARCH = PoseSearchSettings(reach=0.8, full_resolution=1.0)


@pytest.fixture(scope="module")
def model(tumbling_crystal: Any) -> AtomicModel:
    """Atoms fitted to every third image."""
    c, rows = tumbling_crystal, torch.arange(0, len(tumbling_crystal.rotations), 3)
    atoms = Atoms(f"Au{len(c.atoms)}", positions=c.atoms.numpy())
    poses = Poses(c.rotations[rows].double(), torch.zeros(len(rows), 2).double())
    return refine_atoms(c.stack[rows], c.noise[rows], atoms, poses, RefinementSettings(max_steps=4))


def errors(found: AtomicModel, true: Tensor) -> Tensor:
    return geodesic_distance(found.poses.rotations, true.to(found.poses.rotations))


def test_all_frames_come_to_their_place(tumbling_crystal: Any, misplaced: Poses, model: AtomicModel) -> None:
    """A whole stretch is in the wrong place, and here and there a single frame."""
    c, n = tumbling_crystal, len(misplaced)
    wrong = misplaced.rotations.clone()
    wrong[5::20] = wrong[5::20] @ rotation_from_vector(torch.tensor([0.9, -0.4, 0.0]))
    start = Poses(wrong, misplaced.shifts)
    found = place_in_time(
        c.stack,
        c.noise,
        model,
        start,
        Film(c.images, torch.arange(n), c.grid, c.search, c.time),
        RefineSettings(),
        SEARCH,
        seed=1,
    )
    assert len(found.weights) == n
    assert float((errors(found, c.rotations) < 3).double().mean()) > 0.98
    alone = refine_given(c.stack, c.noise, model, start, SEARCH)
    moved = errors(alone, c.rotations) > 10
    assert int(moved.sum()) > n // 4
    assert bool((found.log_likelihood[moved] > alone.log_likelihood[moved]).all())


def test_frames_left_out_lie_between_their_neighbours(tumbling_crystal: Any, model: AtomicModel) -> None:
    """Also beside a jump, where only one of the two neighbours is near."""
    c, n = tumbling_crystal, len(tumbling_crystal.rotations)
    left_out = torch.tensor([0, 17, 59, 60, 119, 121, n - 1])
    known = torch.tensor([t for t in range(n) if t not in left_out.tolist()])
    stack, noise = c.stack[known], c.noise[known]
    still = torch.zeros(len(known), 2).double()
    seen = refine_given(stack, noise, model, Poses(c.rotations[known].double(), still), SEARCH)
    found = place_between(
        c.stack[left_out], c.noise[left_out], seen, left_out, known, torch.zeros(n, 2), c.time, SEARCH
    )
    assert float(errors(found, c.rotations[left_out]).max()) < 3
    assert float(found.poses.shifts.norm(dim=1).max()) < 0.3
    assert math.isclose(float(found.log_likelihood.mean()), float(seen.log_likelihood.mean()), rel_tol=0.3)
