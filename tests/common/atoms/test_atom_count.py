"""The number of atoms found by likelihood."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch

from common.atoms.atom_count import add_and_remove_atoms
from common.atoms.refinement import refine_atoms


@pytest.mark.parametrize("kind", ["projections", "phase_objects"])
def test_false_atoms_go_and_missing_ones_come(kind: str, request) -> None:
    data = request.getfixturevalue(kind)
    true = data.truth.atoms.positions
    false = true.mean(0) + np.array([[0.0, 0.0, 1.3 * np.abs(true).max()]])
    atoms = ase.Atoms("Au20", positions=np.concatenate((data.atoms.positions[1:], false)))
    model = refine_atoms(data.stack, data.noise, atoms, data.poses)
    counted = add_and_remove_atoms(data.stack, data.noise, model)
    assert len(counted.model.positions) == 20
    distances = torch.cdist(counted.model.positions, torch.from_numpy(true))
    assert float(distances.amin(0).max()) < 0.25  # rotated a little against the truth
    assert counted.removed >= 1
    assert counted.added >= 1


def test_the_right_atoms_stay(projections) -> None:
    model = refine_atoms(projections.stack, projections.noise, projections.atoms, projections.poses)
    counted = add_and_remove_atoms(projections.stack, projections.noise, model)
    assert (counted.removed, counted.added) == (0, 0)
    assert torch.equal(counted.model.positions, model.positions)
