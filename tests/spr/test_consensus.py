"""Which starts agree: made-up starts, and copies of one structure."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms

from common.atoms.tracing import TracingSettings
from common.data import InputError, Poses
from common.rotations import random_rotations
from spr.ab_initio import SearchState, volume_of
from spr.consensus import ConsensusSettings, Start, judge, shared_atoms, traced
from spr.ring_sampling import SearchGrid

SETTINGS = ConsensusSettings(most=4, agreeing=2, same_atoms=0.7)


def start_of(log_likelihood: float) -> Start:
    state = SearchState(3, True, torch.zeros(4, 4, 4), torch.zeros(2, 2), 0.0, 1.0)
    return Start(state, Poses(torch.eye(3).expand(2, 3, 3), torch.zeros(2, 2)), log_likelihood, Atoms())


def agreement_of(*pairs: tuple[int, int], n: int = 3) -> torch.Tensor:
    agreement = torch.eye(n)
    for a, b in pairs:
        agreement[a, b] = agreement[b, a] = 0.95
    return agreement


def test_the_likeliest_start_and_another_agree() -> None:
    found = judge((start_of(50.0), start_of(70.0), start_of(69.0)), agreement_of((1, 2)), SETTINGS)
    assert found.reached
    assert found.best == 1
    assert found.agrees.tolist() == [False, True, True]


def test_agreement_without_the_likeliest_does_not_count() -> None:
    """A wrong structure found twice is less likely than the right one found once."""
    found = judge((start_of(50.0), start_of(70.0), start_of(51.0)), agreement_of((0, 2)), SETTINGS)
    assert not found.reached
    assert found.best == 1
    assert found.agrees.tolist() == [False, True, False]


def test_no_two_starts_agree() -> None:
    found = judge((start_of(50.0), start_of(49.0), start_of(51.0)), agreement_of(), SETTINGS)
    assert not found.reached
    assert found.best == 2
    assert int(found.agrees.sum()) == 1


def test_agreement_is_counted_from_the_threshold_on() -> None:
    starts = (start_of(50.0), start_of(49.0), start_of(51.0))
    agreement = torch.eye(3)
    agreement[2, 0] = agreement[0, 2] = 0.69
    assert not judge(starts, agreement, SETTINGS).reached
    agreement[2, 0] = agreement[0, 2] = 0.7
    assert judge(starts, agreement, ConsensusSettings(same_atoms=0.7)).reached


def test_one_start_is_enough_when_only_one_is_asked_for_even_without_atoms() -> None:
    found = judge((start_of(5.0),), torch.zeros(1, 1), ConsensusSettings(most=1, agreeing=1))
    assert found.reached
    assert found.agrees.tolist() == [True]


def test_judging_leaves_the_agreement_alone() -> None:
    agreement = agreement_of((0, 1))
    before = agreement.clone()
    found = judge((start_of(2.0), start_of(1.0), start_of(0.0)), agreement, SETTINGS)
    assert torch.equal(agreement, before)
    agreement[0, 1] = 0.0
    assert torch.equal(found.agreement, before)


def random_atoms(n: int, seed: int, distance: float = 2.6, radius: float = 6.0) -> Atoms:
    """(n) atoms in a ball, none closer than ``distance``."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.empty(0, 3)
    while len(chosen) < n:
        x = radius * (2 * torch.rand(1, 3, generator=generator) - 1)
        if float(x.norm()) < radius and bool(((chosen - x).norm(dim=1) > distance).all()):
            chosen = torch.cat((chosen, x))
    return Atoms(f"Au{n}", positions=chosen.numpy())


@pytest.mark.parametrize("mirrored", [False, True])
def test_turned_and_mirrored_copies_share_all_atoms(mirrored: bool) -> None:
    atoms = random_atoms(25, 0)
    rotation = random_rotations(1, generator=torch.Generator().manual_seed(1))[0].numpy()
    copy = atoms.copy()
    copy.positions = copy.positions @ rotation.T * (-1 if mirrored else 1) + [1.0, -2.0, 0.5]
    copy = copy[torch.randperm(25, generator=torch.Generator().manual_seed(2)).numpy()]
    assert shared_atoms(atoms, copy) == 1.0
    assert shared_atoms(atoms, copy[:20]) == pytest.approx(0.8)


def test_unlike_structures_share_few_atoms() -> None:
    assert shared_atoms(random_atoms(25, 0), random_atoms(25, 3)) < 0.7


def test_nothing_is_shared_with_no_atoms() -> None:
    assert shared_atoms(random_atoms(25, 0), Atoms()) == 0.0
    assert shared_atoms(Atoms("Au3", positions=torch.eye(3).numpy()), random_atoms(25, 0)) == 0.0


def test_traced_finds_the_atoms_of_a_map_and_none_in_an_empty_one() -> None:
    corners = torch.tensor([[a, b, 0.0] for a in (-2.04, 2.04) for b in (-2.04, 2.04)])
    places = torch.cat((torch.zeros(1, 3), *(corners.roll(i, 1) for i in range(3))))  # 13 atoms, 2.88 apart
    atoms = Atoms("Au13", positions=places.numpy())
    box, voxel = 34, 0.7
    axis = (torch.arange(box, dtype=torch.float64) - box // 2) * voxel
    x = torch.from_numpy(atoms.positions)
    g = [torch.exp(-((axis - x[:, i, None]) ** 2) / (2 * 0.6**2)) for i in range(3)]
    values = torch.einsum("nz,ny,nx->zyx", g[2], g[1], g[0]).float()
    grid = SearchGrid(box, voxel, 7.0, 9.0, torch.arange(1.0, 12.0), 100)

    def state_of(values: torch.Tensor) -> SearchState:
        return SearchState(3, True, values, torch.zeros(2, 2), 0.0, 1.0)

    found = traced(volume_of(state_of(values), grid), TracingSettings(element="Au"))
    assert len(found) == 13
    assert shared_atoms(found, atoms) == 1.0
    assert len(traced(volume_of(state_of(torch.zeros(box, box, box)), grid), TracingSettings(element="Au"))) == 0


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="3 of at most 2 starts"):
        ConsensusSettings(most=2, agreeing=3)
    with pytest.raises(InputError, match="0 of at most 10 starts"):
        ConsensusSettings(agreeing=0)
