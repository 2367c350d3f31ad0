"""A crystal that tumbles and jumps: stretches that a search left in the wrong one of its like orientations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from common.data import ImageStack, InputError, Poses
from common.noise import estimate_noise, whiten
from common.rotations import geodesic_distance, random_rotations, rotation_from_vector
from common.scattering import projected_atoms
from spr.ab_initio import SearchSettings, SearchState, prepare
from spr.orientation_search import RingImages
from spr.refinement import RefineSettings, map_of_poses
from spr.ring_sampling import SearchGrid
from spr.settling import SettlingSettings, anneal, settle_paths
from spr.time_consensus import shared_orientations
from spr.time_search import TimeSettings

PIXEL, BOX, N, DEGREES, JUMPS = 0.4, 52, 180, 4.0, (60, 120)
SEARCH = SearchSettings(iterations=30, images_per_iteration=60, directions=200, coarsest=2.6, finest=1.5)
TIME = TimeSettings(degrees_per_frame=DEGREES, stride=3, candidates=2000)
SETTLING = SettlingSettings(iterations=4, stride=2, rounds=4)
BOND = 2.88


@dataclass(frozen=True)
class Filmed:
    rotations: Tensor
    images: RingImages
    grid: SearchGrid


def crystal() -> Tensor:
    """An fcc particle of no symmetry: a ball cut by a plane, its centre in no special place."""
    a = BOND * math.sqrt(2)
    cells = torch.cartesian_prod(*[torch.arange(-3, 4).float()] * 3)
    basis = torch.tensor([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    sites = a * (cells[:, None] + basis).reshape(-1, 3)
    sites = sites[(sites - torch.tensor([0.6, 1.1, 0.3])).norm(dim=1) < 6.4]
    sites = sites[sites @ torch.tensor([0.5, 0.1, 0.86]) < 3.0]
    return sites - sites.mean(0)


@pytest.fixture(scope="module")
def filmed() -> Filmed:
    generator = torch.Generator().manual_seed(2)
    turns = rotation_from_vector(math.radians(DEGREES) / 3**0.5 * torch.randn(N, 3, generator=generator))
    now, rotations = torch.eye(3), []
    for t, turn in enumerate(turns):
        now = random_rotations(1, generator=generator)[0].float() if t in JUMPS else turn @ now
        rotations.append(now)
    poses = torch.stack(rotations)
    atoms = crystal()
    heights = torch.full((len(atoms), 1), 2 * math.pi * 0.4**2)
    clean = projected_atoms((atoms @ poses.mT)[..., :2], heights, torch.tensor(0.4), box_size=BOX, pixel_size=PIXEL)
    stack = ImageStack(clean + 1.5 * clean.std() * torch.randn(clean.shape, generator=generator), PIXEL)
    noise = estimate_noise(stack)
    still = torch.zeros(N, 2)
    images, grid = prepare(
        stack, whiten(stack, noise), noise, radius=6.5, shift_spread=0.2, settings=SEARCH, centres=still
    )
    return Filmed(poses, images, grid)


def misplaced(filmed: Filmed) -> Poses:
    """The second stretch turned by a quarter about a cube axis: the lattice is the same, the outline is not."""
    quarter = rotation_from_vector(torch.tensor([0.0, 0.0, math.pi / 2]))
    rotations = filmed.rotations.clone()
    rotations[JUMPS[0] : JUMPS[1]] = rotations[JUMPS[0] : JUMPS[1]] @ quarter
    return Poses(rotations, torch.zeros(N, 2))


def started(filmed: Filmed, poses: Poses) -> SearchState:
    values = map_of_poses(filmed.images, filmed.grid, poses, RefineSettings())
    return SearchState(0, False, values, poses.shifts, 0.0, 1.0)


def test_a_stretch_in_a_like_orientation_finds_its_place(filmed: Filmed) -> None:
    wrong = misplaced(filmed)
    assert shared_orientations(wrong.rotations, filmed.rotations) < 0.7
    frames = torch.arange(N)
    found = settle_paths(
        started(filmed, wrong),
        filmed.images,
        filmed.grid,
        frames,
        SEARCH,
        TIME,
        SETTLING,
        RefineSettings(),
        bond=BOND,
        seed=1,
    )
    assert found.iteration == SETTLING.rounds
    assert shared_orientations(found.rotations, filmed.rotations) > 0.95
    steps = geodesic_distance(found.rotations[1:], found.rotations[:-1])
    assert set(steps.topk(2).indices.tolist()) == {t - 1 for t in JUMPS}


def test_annealing_repeats_with_its_seed(filmed: Filmed) -> None:
    first = started(filmed, misplaced(filmed))
    few = replace(SETTLING, iterations=2)
    maps = [
        anneal(first, filmed.images, filmed.grid, SEARCH, TIME, few, bond=BOND, seed=seed).values for seed in (3, 3, 4)
    ]
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])


def test_no_iterations_change_nothing(filmed: Filmed) -> None:
    first = started(filmed, misplaced(filmed))
    none = replace(SETTLING, iterations=0)
    last = anneal(first, filmed.images, filmed.grid, SEARCH, TIME, none, bond=BOND, seed=3)
    assert torch.equal(last.values, first.values)


@pytest.mark.parametrize("wrong", [{"hottest": 1.0}, {"coolest": 0.0}, {"stride": 0}, {"rounds": -1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"settling: .*expected"):
        SettlingSettings(**wrong)  # type: ignore[arg-type]
