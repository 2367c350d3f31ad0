"""Sigmas that are honest, and a bound that is the inverse of the information."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.atoms.fisher import fisher, without_rigid
from common.atoms.information import curvature, slope_of
from common.atoms.likelihood import expose_views, views_of
from common.atoms.model import first_parameters, scale_heights
from common.atoms.pose_fit import Priors, objective_of
from common.atoms.refinement import prepare, refine_atoms
from common.atoms.shared import RefinementSettings, apply_step, layout_of, rigid_motions, step_between

SETTINGS = RefinementSettings()


def test_sigmas_are_honest_over_clusters_and_noise(make_set, errors_of) -> None:
    ratios = []
    for seed in range(10, 14):
        data = make_set("projection", seed)
        model = fisher(data.stack, data.noise, refine_atoms(data.stack, data.noise, data.atoms, data.poses))
        errors = errors_of(model.positions, data.truth.atoms.positions)
        ratios.append((errors**2).sum(1) / model.position_sigma.numpy() ** 2 / 3)
    assert np.sqrt(np.concatenate(ratios).mean()) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("kind", ["projections", "phase_objects"])
def test_gradient_is_the_difference_of_likelihoods(kind: str, request) -> None:
    data = request.getfixturevalue(kind)
    first = first_parameters(
        data.stack, data.atoms, data.poses, widths=(0.25, 0.5), fractions=(0.6, 0.4), focal_spread=40.0
    )
    measured = prepare(data.stack, data.noise, first, SETTINGS)[1]
    first = scale_heights(first, measured, 16)
    layout, priors = layout_of(first, True), Priors()
    # poses held so hard that none is eliminated
    slope = slope_of(first, measured, priors=priors, layout=layout, damping=1e12, batch_size=7)
    gradient = slope.gradients.sum(0)

    def total(step: torch.Tensor) -> float:
        moved, views = apply_step(first, step, layout), views_of(first)
        return float(objective_of(expose_views(moved, views, measured), views, measured, priors).sum())

    for i in (0, 31, 59, 60, 79, 85, 100, 101, 102, 103, 104, 105):
        if kind == "projections" and i >= 103:
            continue  # no lens
        size = 2.0 if i == 104 else 0.3 if 80 <= i < 100 else 3e-3
        step = torch.zeros(layout.size, dtype=torch.float64)
        step[i] = size
        difference = (total(step) - total(-step)) / (2 * size)
        assert difference == pytest.approx(float(gradient[i]), rel=0.03, abs=0.02 * float(gradient[:60].abs().mean()))


def test_curvature_is_the_scatter_of_the_columns(projections) -> None:
    model = refine_atoms(projections.stack, projections.noise, projections.atoms, projections.poses)
    measured = prepare(projections.stack, projections.noise, model.parameters, SETTINGS)[1]
    layout = layout_of(model.parameters, False)
    information = curvature(model.parameters, measured, torch.arange(60), model.weights, priors=Priors(), layout=layout)
    slope = slope_of(model.parameters, measured, priors=Priors(), layout=layout, damping=1e-7, batch_size=16)
    scatter = slope.gradients.T @ slope.gradients
    # in white noise the gradients scatter as the information says
    ratio = torch.diagonal(scatter)[:80] / torch.diagonal(information)[:80]
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.1)
    # and no image sees a rigid motion of all atoms
    rigid = rigid_motions(model.positions)
    seen = rigid.T @ information[:60, :60] @ rigid
    assert float(seen.diagonal().max()) < 1e-3 * float(information.diagonal()[:60].mean())


def test_rigid_motions_are_left_out() -> None:
    positions = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rigid = rigid_motions(positions)
    assert rigid.shape == (27, 6)
    covariance = without_rigid(torch.eye(27, dtype=torch.float64) + 50 * rigid @ rigid.T, rigid)
    assert float(torch.trace(covariance)) == pytest.approx(21.0)


def test_steps_lead_there_and_back(phase_objects) -> None:
    first = first_parameters(
        phase_objects.stack, phase_objects.atoms, phase_objects.poses, widths=(), fractions=(), focal_spread=40.0
    )
    layout = layout_of(first, True)
    step = 0.1 * torch.randn(layout.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(step_between(apply_step(first, step, layout), first, layout), step, atol=1e-9)
