"""Images that no pose explains, and images left out."""

from __future__ import annotations

from dataclasses import replace

import torch

from common.atoms.pose_search import PoseSearchSettings
from common.atoms.refinement import refine_atoms
from common.atoms.validation import held_out_score, with_robust_weights
from common.data import ImageStack
from common.noise import estimate_noise

REACH = PoseSearchSettings(reach=1.4)


def test_images_of_nothing_are_listed(phase_objects) -> None:
    stack = phase_objects.stack
    images = stack.images.clone()
    empty = torch.tensor([4, 30])
    generator = torch.Generator().manual_seed(0)
    images[empty] = torch.poisson(images.mean() * torch.ones(2, 48, 48), generator=generator)
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
    score = held_out_score(model, stack[left], noise[left], REACH)
    assert score.explained == 1.0
    assert score.nats_per_image > 0.8 * float(model.log_likelihood.mean())


def test_a_wrong_model_predicts_little(projections) -> None:
    stack, noise, left = projections.stack, projections.noise, torch.arange(50, 60)
    model = refine_atoms(stack, noise, projections.atoms, projections.poses)
    generator = torch.Generator().manual_seed(1)
    scrambled = model.positions + 1.5 * torch.randn(20, 3, generator=generator, dtype=torch.float64)
    wrong = replace(model, parameters=replace(model.parameters, positions=scrambled))
    right = held_out_score(model, stack[left], noise[left], REACH)
    assert held_out_score(wrong, stack[left], noise[left], REACH).correlation < 0.6 * right.correlation


def test_the_stack_is_not_changed(projections) -> None:
    before = projections.stack.images.clone()
    refine_atoms(projections.stack, projections.noise, projections.atoms, projections.poses)
    assert isinstance(projections.stack, ImageStack)
    assert torch.equal(before, projections.stack.images)
