"""A map of a tumbling particle from nothing: what time adds to single images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from ase import Atoms
from torch import Tensor

from common.data import ImageStack, InputError, Poses
from common.noise import estimate_noise, whiten
from common.rotations import geodesic_distance, mean_rotation, random_rotations, rotation_from_vector
from common.scattering import projected_atoms
from spr.ab_initio import SearchSettings, SearchState, prepare
from spr.orientation_search import log_likelihoods, log_prior, views_of
from spr.pose_assignment import assign
from spr.refinement import RefineSettings, map_of_poses
from spr.ring_images import RingImages
from spr.ring_sampling import SearchGrid
from spr.time_search import (
    TimeSettings,
    assign_in_time,
    chain_of,
    likeliest,
    rotations_of,
    search_in_time,
    step_in_time,
)

PIXEL, BOX, N_FRAMES, DEGREES = 0.4, 44, 240, 12.0
SETTINGS = SearchSettings(
    iterations=30, images_per_iteration=60, directions=150, effective_poses=200.0, final_effective_poses=2.0
)
TIME = TimeSettings(degrees_per_frame=DEGREES, stride=3, heat=3.0, candidates=2000, jump_rate=1e-6)


@dataclass(frozen=True)
class Tumbled:
    rotations: Tensor
    images: RingImages
    grid: SearchGrid


def cluster(n: int = 20) -> Atoms:
    """A compact cluster without symmetry, atoms at least 2.6 angstrom apart."""
    chosen = torch.zeros(1, 3)
    random = torch.Generator().manual_seed(4)
    while len(chosen) < n:
        tried = 5.0 * (2 * torch.rand(4000, 3, generator=random) - 1)
        free = tried[(tried[:, None] - chosen).norm(dim=2).amin(1) > 2.6]
        chosen = torch.cat((chosen, free[free.norm(dim=1).argmin()][None]))
    return Atoms(f"Au{n}", positions=(chosen - chosen.mean(0)).numpy())


@pytest.fixture(scope="module")
def tumbled() -> Tumbled:
    """Noisy projections of a particle that turns by 12 degrees (rms) from one to the next."""
    generator = torch.Generator().manual_seed(2)
    turns = rotation_from_vector(math.radians(DEGREES) / 3**0.5 * torch.randn(N_FRAMES, 3, generator=generator))
    rotations = [random_rotations(1, generator=generator)[0].float()]
    for turn in turns[1:]:
        rotations.append(turn @ rotations[-1])
    poses = torch.stack(rotations)
    positions = torch.from_numpy(cluster().positions).float()
    xy = (positions @ poses.mT)[..., :2]
    heights = torch.full((len(positions), 1), 2 * math.pi * 0.4**2)
    clean = projected_atoms(xy, heights, torch.tensor(0.4), box_size=BOX, pixel_size=PIXEL)
    noisy = clean + 4.5 * clean.std() * torch.randn(clean.shape, generator=generator)
    stack = ImageStack(noisy, PIXEL)
    noise = estimate_noise(stack)
    white = whiten(stack, noise)
    still = torch.zeros(N_FRAMES, 2)
    images, grid = prepare(stack, white, noise, radius=5.5, shift_spread=0.2, settings=SETTINGS, centres=still)
    return Tumbled(poses, images, grid)


@pytest.fixture(scope="module")
def true_map(tumbled: Tumbled) -> SearchState:
    """The map of the true poses, as a search would end with it."""
    still = torch.zeros(N_FRAMES, 2)
    values = map_of_poses(tumbled.images, tumbled.grid, Poses(tumbled.rotations, still), RefineSettings())
    return SearchState(0, False, values, still, 0.0, 1.0)


def right(found: Tensor, true: Tensor, degrees: float = 15.0) -> float:
    """Fraction of orientations within some degrees of the truth, up to one rotation and the hand."""
    best = 0.0
    for flip in (torch.eye(3), torch.diag(torch.tensor([-1.0, -1.0, 1.0]))):
        frames = (flip @ found).mT @ true
        central = geodesic_distance(frames, frames[:, None]).median(1).values.argmin()
        near = geodesic_distance(frames, frames[central]) < 25
        error = geodesic_distance(flip @ found @ mean_rotation(frames[near]), true)
        best = max(best, float((error < degrees).float().mean()))
    return best


def test_time_finds_poses_that_single_images_leave_open(tumbled: Tumbled, true_map: SearchState) -> None:
    together = assign_in_time(true_map, tumbled.images, tumbled.grid, SETTINGS, TIME, seed=1)
    alone = assign(true_map, tumbled.images, tumbled.grid, SETTINGS, seed=1)
    by_time, by_image = (right(found.poses.rotations, tumbled.rotations) for found in (together, alone))
    assert by_time > 0.9
    assert by_image < by_time - 0.1


def test_right_map_stays_right(tumbled: Tumbled, true_map: SearchState) -> None:
    """The search goes on from it at its last temperatures, turning its grid every time."""
    settings = replace(SETTINGS, effective_poses=4.0)
    frames, chain = chain_of(tumbled.images, tumbled.grid, TIME, TIME.stride, seed=3)
    state = true_map
    for _ in range(4):
        state = step_in_time(state, tumbled.images, tumbled.grid, settings, TIME, chain, frames, seed=3)
    found = assign_in_time(state, tumbled.images, tumbled.grid, SETTINGS, TIME, seed=1)
    assert right(found.poses.rotations, tumbled.rotations) > 0.9
    assert not torch.equal(state.values, true_map.values)


def test_the_same_seed_gives_the_same_map(tumbled: Tumbled) -> None:
    few = replace(SETTINGS, iterations=2)
    maps = [search_in_time(tumbled.images, tumbled.grid, few, TIME, seed=s).values for s in (5, 5, 6)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])


def test_candidates_are_the_best_of_all_states_and_shifts(tumbled: Tumbled, true_map: SearchState) -> None:
    images, grid = tumbled.images, tumbled.grid
    frames, _ = chain_of(images, grid, TIME, 1, seed=0)
    views = views_of(true_map.values, frames, grid.shells, images.rings.shape[-1], images.weights)
    index = torch.tensor([3, 40])
    trials = torch.tensor([[0.0, 0.0], [0.3, 0.0], [0.0, -0.3]]).expand(2, 3, 2)
    found = likeliest(images, index, trials, views, 7)
    scores, _ = log_likelihoods(images, index, trials, views)
    scores = scores + log_prior(images, index, trials)[:, :, None]  # (angles, images, shifts, directions)
    for k in range(2):
        best = scores[:, k].amax(1).flatten().topk(7)
        torch.testing.assert_close(found.log_likelihood[k], best.values)
        angle, direction = found.states[k] // len(frames), found.states[k] % len(frames)
        torch.testing.assert_close(scores[angle, k, found.trial[k].long(), direction], best.values)
        turned = rotations_of(found.states[k], views, images.rings.shape[-1])
        torch.testing.assert_close(turned[:, 2], frames[direction, 2])


@pytest.mark.parametrize(
    "wrong", [{"degrees_per_frame": 0.0}, {"jump_rate": 1.0}, {"stride": 0}, {"candidates": 0}, {"heat": -1.0}]
)
def test_times_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"time: .*expected"):
        TimeSettings(**wrong)  # type: ignore[arg-type]
