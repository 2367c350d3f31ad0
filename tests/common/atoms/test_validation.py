"""Images that no pose explains, and images left out."""

from __future__ import annotations

from dataclasses import replace

import torch

from common.atoms.pose_search import PoseSearchSettings
from common.atoms.refinement import refine_atoms
from common.atoms.validation import search_unseen, with_robust_weights
from common.data import ImageStack
from common.noise import estimate_noise

REACH = PoseSearchSettings(reach=1.4)


def test_images_of_nothing_are_listed(phase_objects) -> None:
    stack = phase_objects.stack
    images = stack.images.clone()
    empty = torch.tensor([4, 30])
    generator = torch.Generator().manual_seed(0)
    images[empty] = torch.poisson(float(images.mean()) * torch.ones(2, 48, 48), generator=generator).to(images)
    stack = replace(stack, images=images)
    noise = estimate_noise(stack, radius=6.0)
    model = refine_atoms(stack, noise, phase_objects.atoms, phase_objects.poses)
    weighted, unexplained = with_robust_weights(model)
    assert unexplained.tolist() == empty.tolist()
    good = torch.ones(60, dtype=torch.bool)
    good[empty] = False
    assert float(weighted.weights[empty].max()) < 0.1
    assert float(weighted.weights[good].min()) > 0.5
    assert float(weighted.weights[good].mean()) > 0.98


def test_images_left_out_are_predicted(projections) -> None:
    kept, left = torch.arange(0, 50), torch.arange(50, 60)
    stack, noise = projections.stack, projections.noise
    model = refine_atoms(stack[kept], noise[kept], projections.atoms, projections.poses[kept])
    found = search_unseen(model, stack[left], noise[left], REACH)
    assert len(with_robust_weights(found)[1]) == 0
    assert float(found.log_likelihood.mean()) > 0.8 * float(model.log_likelihood.mean())
    assert torch.equal(found.positions, model.positions)


def test_as_many_images_left_out_as_fitted_do_not_inherit_poses(projections) -> None:
    """The poses of the fitted images must not become candidates for others, not even for the same ones."""
    rows, stack, noise = torch.arange(10), projections.stack, projections.noise
    model = refine_atoms(stack[rows], noise[rows], projections.atoms, projections.poses[rows])
    nowhere = replace(
        model, parameters=replace(model.parameters, shifts=torch.full_like(model.parameters.shifts, 50.0))
    )
    a, b = (search_unseen(m, stack[rows], noise[rows], REACH) for m in (model, nowhere))
    assert torch.equal(a.poses.rotations, b.poses.rotations)


def test_a_wrong_model_predicts_little(projections) -> None:
    stack, noise, left = projections.stack, projections.noise, torch.arange(50, 60)
    model = refine_atoms(stack, noise, projections.atoms, projections.poses)
    generator = torch.Generator().manual_seed(1)
    scrambled = model.positions + 1.5 * torch.randn(20, 3, generator=generator, dtype=torch.float64).to(model.positions)
    wrong = replace(model, parameters=replace(model.parameters, positions=scrambled))
    right, other = (search_unseen(m, stack[left], noise[left], REACH) for m in (model, wrong))
    assert float(other.correlation.mean()) < 0.6 * float(right.correlation.mean())


def test_the_stack_is_not_changed(projections) -> None:
    before = projections.stack.images.clone()
    refine_atoms(projections.stack, projections.noise, projections.atoms, projections.poses)
    assert isinstance(projections.stack, ImageStack)
    assert torch.equal(before, projections.stack.images)
