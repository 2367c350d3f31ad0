"""Atoms and poses refined together, on data whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.atoms.fisher import fisher
from common.atoms.refinement import refine_atoms, refine_model
from common.atoms.shared import RefinementSettings
from common.data import InputError, Poses
from common.io.checkpoint import CheckpointObserver
from common.noise import estimate_noise


class Stop(Exception):
    pass


class StopAfter:
    """An observer that breaks a run off."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def resume(self, name, first):
        return None

    def observe(self, name, state) -> None:
        if state.iteration == self.iteration:
            raise Stop


@pytest.fixture(scope="module")
def refined(projections):
    return refine_atoms(projections.stack, projections.noise, projections.atoms, projections.poses)


@pytest.fixture(scope="module")
def refined_phase(phase_objects):
    return refine_atoms(phase_objects.stack, phase_objects.noise, phase_objects.atoms, phase_objects.poses)


def test_projections_reach_the_bound(projections, refined, errors_of) -> None:
    model = fisher(projections.stack, projections.noise, refined)
    errors = errors_of(model.positions, projections.truth.atoms.positions)
    assert 100 * np.sqrt((errors**2).sum(1).mean()) < 1.3 * model.cramer_rao_pm


def test_phase_objects_reach_the_bound_from_a_wrong_defocus(phase_objects, refined_phase, errors_of) -> None:
    model = fisher(phase_objects.stack, phase_objects.noise, refined_phase)
    errors = errors_of(model.positions, phase_objects.truth.atoms.positions)
    assert 100 * np.sqrt((errors**2).sum(1).mean()) < 1.3 * model.cramer_rao_pm
    assert float(model.parameters.defocus_shift) == pytest.approx(-30, abs=4)
    assert float(model.parameters.focal_spread) == pytest.approx(50, abs=4)


def test_heights_and_widths_are_those_of_the_simulation(refined) -> None:
    # peak 1 and sigma 0.4: the integral over the plane is 2 pi 0.16
    assert float(refined.heights.mean()) == pytest.approx(2 * np.pi * 0.16, rel=0.03)
    assert float(refined.parameters.widths[0]) == pytest.approx(0.4, rel=0.03)


def test_poses_come_closer(projections, refined) -> None:
    def misfit(rotations: torch.Tensor) -> float:
        # relative rotations between images do not depend on the frame
        rotations = rotations.cpu()
        relative = rotations[1:] @ rotations[:-1].mT
        truth = projections.truth.poses.rotations.double()
        between = relative @ (truth[1:] @ truth[:-1].mT).mT
        trace = torch.diagonal(between, dim1=1, dim2=2).sum(1)
        return float(torch.rad2deg(torch.acos(((trace - 1) / 2).clamp(-1, 1))).median())

    assert misfit(projections.poses.rotations) > 5
    assert misfit(refined.parameters.rotations) < 1.5


def test_resumed_run_is_the_same_bit_for_bit(projections, refined, tmp_path) -> None:
    def go(*observers):
        return refine_atoms(
            projections.stack, projections.noise, projections.atoms, projections.poses, observers=observers
        )

    with pytest.raises(Stop):
        go(CheckpointObserver(tmp_path, interval=0), StopAfter(4))
    again = go(CheckpointObserver(tmp_path, interval=0))
    assert torch.equal(again.positions, refined.positions)
    assert torch.equal(again.parameters.rotations, refined.parameters.rotations)
    assert torch.equal(again.log_likelihood, refined.log_likelihood)


def test_batch_size_does_not_change_the_answer(projections, refined) -> None:
    settings = RefinementSettings(batch_size=3)
    other = refine_atoms(projections.stack, projections.noise, projections.atoms, projections.poses, settings)
    assert float((other.positions - refined.positions).abs().max()) < 2e-4


def test_a_converged_model_stays(projections, refined) -> None:
    again = refine_model(projections.stack, projections.noise, refined)
    assert float((again.positions - refined.positions).abs().max()) < 0.005


def test_images_without_their_vacuum_level(phase_objects, refined_phase, errors_of) -> None:
    images = phase_objects.stack.images
    normalised = (images - images.mean((1, 2), keepdim=True)) / images.std()
    stack = replace(phase_objects.stack, images=normalised)
    model = refine_atoms(stack, estimate_noise(stack, radius=6.0), phase_objects.atoms, phase_objects.poses)
    errors = errors_of(model.positions, phase_objects.truth.atoms.positions)
    known = errors_of(refined_phase.positions, phase_objects.truth.atoms.positions)
    assert np.sqrt((errors**2).mean()) < 1.3 * np.sqrt((known**2).mean())


def test_own_b_factors_are_found(make_set) -> None:
    data = make_set("projection", 5)
    settings = RefinementSettings(refine_b_factors=True)
    model = refine_atoms(data.stack, data.noise, data.atoms, data.poses, settings)
    # all atoms were drawn alike
    assert float(model.b_factors.mean()) == pytest.approx(8 * np.pi**2 * 0.16, rel=0.05)
    assert float(model.b_factors.std()) < 1.0


def test_atoms_carry_their_arrays(projections, refined) -> None:
    atoms = fisher(projections.stack, projections.noise, refined, n_images=20).to_ase()
    assert set(atoms.arrays) >= {"peak_height", "b_factor", "position_sigma"}
    assert atoms.get_chemical_symbols() == ["Au"] * 20


def test_no_atoms_are_refused(projections) -> None:
    with pytest.raises(InputError, match="atom list is empty"):
        refine_atoms(projections.stack, projections.noise, projections.atoms[:0], projections.poses)


def test_other_number_of_poses_is_refused(projections) -> None:
    poses = Poses(projections.poses.rotations[:5], projections.poses.shifts[:5])
    with pytest.raises(InputError, match="5 poses for 60 images"):
        refine_atoms(projections.stack, projections.noise, projections.atoms, poses)


def test_an_atom_that_is_nowhere_is_refused(projections) -> None:
    atoms = projections.atoms.copy()
    atoms.positions[3, 1] = np.nan
    with pytest.raises(InputError, match="atom 4 is at"):
        refine_atoms(projections.stack, projections.noise, atoms, projections.poses)
