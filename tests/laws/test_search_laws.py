"""What every search obeys: seed, resume, purity, batches, turned images, processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import torch
from ase import Atoms
from safetensors.torch import load_file
from torch import Tensor

from common.data import ImageStack
from common.io.checkpoint import CheckpointObserver
from common.iteration import State
from common.noise import estimate_noise, whiten
from common.parallel import use_threads
from common.rotations import geodesic_distance
from common.simulation import simulate_images
from spr.ab_initio import SearchSettings, prepare, search, start, step, trial_shifts
from spr.orientation_search import expectation, log_likelihoods, random_frames, views_of
from spr.pose_assignment import assign
from spr.pose_fitting import RefineData
from spr.refinement import RefineSettings, RefineState, halve, map_box
from spr.refinement import start as start_refinement
from spr.refinement import step as refine_step
from spr.ring_images import RingImages
from spr.ring_sampling import SearchGrid

SETTINGS = SearchSettings(
    iterations=5,
    images_per_iteration=12,
    directions=40,
    effective_poses=100.0,
    final_effective_poses=2.0,
    coarsest=8.0,
    finest=2.2,
)


@dataclass(frozen=True)
class Search:
    images: RingImages
    grid: SearchGrid
    stack: ImageStack


def small_search() -> Search:
    positions = 4 * torch.rand(14, 3, generator=torch.Generator().manual_seed(1)) - 2
    atoms = Atoms("Au14", positions=positions.numpy())
    data = simulate_images(
        atoms, 30, box_size=41, pixel_size=0.4, snr=2.0, shift_sigma=0.4, generator=torch.Generator().manual_seed(2)
    )
    noise = estimate_noise(data.stack, radius=6.5)
    white = whiten(data.stack, noise)
    images, grid = prepare(data.stack, white, noise, radius=4.0, shift_spread=0.4, settings=SETTINGS)
    return Search(images, grid, white)


@pytest.fixture(scope="module")
def problem() -> Search:
    return small_search()


def tensors_of(state: State) -> dict[str, Tensor]:
    found = {f.name: torch.as_tensor(getattr(state, f.name)) for f in fields(state)}
    return {name: value.clone() for name, value in found.items()}


def same_bits(a: State, b: State) -> bool:
    left, right = tensors_of(a), tensors_of(b)
    return all(left[name].numpy().tobytes() == right[name].numpy().tobytes() for name in left)


class Recorder:
    """Keeps every state."""

    def __init__(self) -> None:
        self.states: list[State] = []

    def resume(self, name: str, first: State) -> State | None:
        return None

    def observe(self, name: str, state: State) -> None:
        self.states.append(state)


class Stopped(Exception):
    pass


class StopAt:
    """Ends the run in the middle, as Ctrl-C would."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def resume(self, name: str, first: State) -> State | None:
        return None

    def observe(self, name: str, state: State) -> None:
        if state.iteration == self.iteration:
            raise Stopped


def test_same_seed_same_states(problem: Search) -> None:
    runs = []
    for seed in (3, 3, 4):
        recorder = Recorder()
        search(problem.images, problem.grid, SETTINGS, seed=seed, observers=[recorder])
        runs.append(recorder.states)
    first, again, other = runs
    assert [state.iteration for state in first] == list(range(SETTINGS.iterations + 1))
    assert all(same_bits(a, b) for a, b in zip(first, again, strict=True))
    assert not same_bits(first[0], other[0])
    assert not same_bits(first[-1], other[-1])


def test_the_global_generator_has_no_say(problem: Search) -> None:
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        ends.append(search(problem.images, problem.grid, replace(SETTINGS, iterations=2), seed=0))
    assert same_bits(*ends)


@pytest.mark.parametrize("iteration", [1, 3, 4])
def test_resumed_search_ends_like_an_undisturbed_one(problem: Search, tmp_path: Path, iteration: int) -> None:
    whole = search(problem.images, problem.grid, SETTINGS, seed=3)
    checkpoint = CheckpointObserver(tmp_path, interval=0)
    with pytest.raises(Stopped):
        search(problem.images, problem.grid, SETTINGS, seed=3, observers=[checkpoint, StopAt(iteration)])
    recorder = Recorder()
    resumed = search(
        problem.images, problem.grid, SETTINGS, seed=3, observers=[CheckpointObserver(tmp_path, interval=0), recorder]
    )
    assert recorder.states[0].iteration == iteration
    assert same_bits(resumed, whole)


def test_step_leaves_its_input_alone(problem: Search) -> None:
    state = start(problem.images, problem.grid, SETTINGS, seed=0)
    before, rings = tensors_of(state), problem.images.rings.clone()
    once = step(state, problem.images, problem.grid, SETTINGS, seed=0)
    twice = step(state, problem.images, problem.grid, SETTINGS, seed=0)
    assert same_bits(once, twice)
    after = tensors_of(state)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(rings, problem.images.rings)
    assert not torch.equal(once.values, state.values)


def test_batch_size_changes_only_the_rounding(problem: Search) -> None:
    images, grid = problem.images, problem.grid
    state = start(images, grid, SETTINGS, seed=0)
    frames = random_frames(30, generator=torch.Generator().manual_seed(0))
    views = views_of(state.values, frames, grid.shells, images.rings.shape[-1], images.weights)
    index = torch.arange(10)
    trials = trial_shifts(images.centres[index], 0.3)
    results = [expectation(images, index, trials, views, 2.0, batch_size=size) for size in (1, 4, 100)]
    for field in fields(results[0]):
        one = getattr(results[0], field.name)
        for other in results[1:]:
            close = dict(rtol=1e-4, atol=1e-5 * float(one.abs().max()))
            torch.testing.assert_close(getattr(other, field.name), one, **close)


def test_turned_images_have_the_same_likelihoods_with_turned_poses(problem: Search) -> None:
    """An odd box turned by 90 degrees about its middle is exact: the content at (x, y) goes to (y, -x)."""
    stack, grid = problem.stack, problem.grid
    noise = replace(estimate_noise(stack, radius=6.5), filter=torch.ones(41, 21))
    turned = replace(stack, images=torch.rot90(stack.images, 1, (1, 2)))
    plain, other = (prepare(s, s, noise, radius=4.0, shift_spread=0.4, settings=SETTINGS)[0] for s in (stack, turned))
    turn = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    # the shift moves with the image
    centres = plain.centres
    frames = random_frames(30, generator=torch.Generator().manual_seed(0))
    values = start(plain, grid, SETTINGS, seed=0).values
    views = views_of(values, frames, grid.shells, plain.rings.shape[-1], plain.weights)
    index = torch.arange(8)
    trials = trial_shifts(centres[index], 0.3)
    trials_turned = trials @ turn[:2, :2].T
    scores, _ = log_likelihoods(plain, index, trials, views)
    scores_turned, _ = log_likelihoods(other, index, trials_turned, views)
    # the view turned by Rz(-angle) matches after a further turn by -90 degrees: a quarter of the angles on
    expected = scores.roll(scores.shape[0] // 4, 0)
    torch.testing.assert_close(scores_turned, expected, rtol=1e-4, atol=1e-4 * float(scores.abs().max()))
    plain = replace(plain, centres=centres)
    other = replace(other, centres=centres @ turn[:2, :2].T)
    found = expectation(plain, index, trials, views, 1.0)
    found_turned = expectation(other, index, trials_turned, views, 1.0)
    torch.testing.assert_close(found_turned.best, found.best, rtol=1e-3, atol=1e-2)
    assert float(geodesic_distance(found_turned.rotations, turn @ found.rotations).max()) < 0.1
    torch.testing.assert_close(found_turned.shifts, found.shifts @ turn[:2, :2].T)


def refinement_of(problem: Search) -> tuple[RefineState, RefineData, RefineSettings]:
    state = search(problem.images, problem.grid, replace(SETTINGS, iterations=2), seed=0)
    poses = assign(state, problem.images, problem.grid, SETTINGS, seed=0).poses
    data = halve(problem.images, problem.grid.shells, problem.grid, seed=0)
    settings = RefineSettings(rounds=2, finest=2.2)
    return start_refinement(state.values, poses, data, map_box(float(data.shells[-1]))), data, settings


def test_refinement_step_leaves_its_input_alone(problem: Search) -> None:
    state, data, settings = refinement_of(problem)
    before = tensors_of(state)
    once, twice = refine_step(state, data, settings), refine_step(state, data, settings)
    assert same_bits(once, twice)
    after = tensors_of(state)
    assert all(torch.equal(before[name], after[name]) for name in before)


def searched_and_refined() -> dict[str, Tensor]:
    """What a search, its poses and a step of their refinement come to in this process or in all of them."""
    use_threads(1)
    problem = small_search()
    state = search(problem.images, problem.grid, replace(SETTINGS, iterations=3), seed=0)
    found = assign(state, problem.images, problem.grid, SETTINGS, seed=0)
    refined = refine_step(*refinement_of(problem))
    result = {f"search.{f.name}": torch.as_tensor(getattr(state, f.name)) for f in fields(state)}
    result |= {f"refine.{f.name}": torch.as_tensor(getattr(refined, f.name)) for f in fields(refined)}
    return result | {"rotations": found.poses.rotations, "shifts": found.poses.shifts, "nats": found.log_likelihood}


PROGRAM = """
import sys

import torch
from safetensors.torch import save_file

sys.path.insert(0, sys.argv[2])
from common.parallel import process_count, process_rank, processes
from test_search_laws import searched_and_refined

with processes("cpu"):
    result = searched_and_refined() | {"processes": torch.tensor(process_count())}
    save_file({name: value.contiguous() for name, value in result.items()}, sys.argv[1] + f".{process_rank()}")
"""


def test_two_processes_give_every_bit_of_what_one_gives(tmp_path: Path) -> None:
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [*launch, str(program), str(out), str(Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    alone = searched_and_refined()
    for rank in range(2):
        result = load_file(f"{out}.{rank}")
        assert int(result.pop("processes")) == 2
        assert result.keys() == alone.keys()
        for name, value in alone.items():
            assert value.numpy().tobytes() == result[name].numpy().tobytes(), name
