"""A map of one tumbling particle from its movie: the annealed search of `spr.ab_initio`, with time as information.

Single frames leave many orientations open; a whole movie does not, because the particle turns little from one frame to
the next. Each iteration takes every few-th frame of the movie, scores them over all orientations, and lets
forward-backward over the whole sequence turn the tempered likelihoods into posteriors, from which the next map is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from common.data import InputError, Poses
from common.iteration import Observer, run, step_generator
from common.parallel import map_over_shards, sum_over_shards
from common.rotations import random_rotations
from spr.ab_initio import SearchSettings, SearchState, effective_poses, scheduled, start, trial_shifts
from spr.map_update import maximise
from spr.orientation_search import (
    Views,
    angular_synthesis,
    averaged_rings,
    in_plane_rotations,
    log_likelihoods,
    log_prior,
    random_frames,
    temperature_for,
    turned_orders,
    views_of,
)
from spr.pose_assignment import Assignment
from spr.ring_images import RingImages
from spr.ring_sampling import SearchGrid
from spr.rotation_chain import RotationChain, brownian_chain, forward_backward

_TAPS = 2  # of the gridding window, as in `spr.ab_initio`
_TEMPERED = 4.0  # temperature at which frames are assigned: a map that is still wrong is no reason to jump
_BATCH = 4  # images at a time, so that their scores stay in the processor's cache


@dataclass(frozen=True)
class TimeSettings:
    """How neighbours in time vouch for each other.

    degrees_per_frame : rms rotation from one frame to the next that the search expects; it is measured afterwards.
    jump_rate : probability of a jump to any orientation from one frame to the next.
    stride : each iteration of the search takes one of so many frames.
    heat : temperature of the chain in the first iteration, in units of that at which single frames have the wanted
        number of poses in play; falls to 1 in the last.
    candidates : likeliest orientations that each frame brings.
    """

    degrees_per_frame: float = 2.0
    jump_rate: float = 1e-7
    stride: int = 5
    heat: float = 4.0
    candidates: int = 8000

    def __post_init__(self) -> None:
        if not (self.degrees_per_frame > 0 and 0 <= self.jump_rate < 1 and self.heat > 0):
            raise InputError(
                f"time: {self.degrees_per_frame} degrees a frame, jump rate {self.jump_rate}, heat {self.heat}; "
                "expected positive numbers, and a rate below 1"
            )
        if self.stride < 1 or self.candidates < 1:
            raise InputError(f"time: stride {self.stride}, {self.candidates} candidates, expected at least 1 of each")


@dataclass(frozen=True)
class Candidates:
    """The likeliest orientations of k images, best first.

    states : (k, c) ``angle * v + direction`` on the grid. log_likelihood : (k, c) nats. trial : (k, c) which shift.
    """

    states: Tensor
    log_likelihood: Tensor
    trial: Tensor


def likeliest(images: RingImages, index: Tensor, trials: Tensor, views: Views, count: int) -> Candidates:
    """The ``count`` likeliest states of the images ``index`` (k,), each at the best of its shifts (k, t, 2)."""
    n_states = images.rings.shape[-1] * len(views.frames)
    count = min(count, n_states)

    def of_shard(rows: Tensor) -> tuple[Tensor, ...]:
        found = []
        for part in rows.to(index.device).split(_BATCH):
            scores, _ = log_likelihoods(images, index[part], trials[part], views)
            scores += log_prior(images, index[part], trials[part])[:, :, None]
            best, trial = scores.max(2)  # (angles, images, directions)
            top = best.transpose(0, 1).reshape(len(part), n_states).topk(count, 1)
            which = trial.transpose(0, 1).reshape(len(part), n_states).gather(1, top.indices)
            found.append((top.indices, top.values, which.to(torch.uint8)))
        return tuple(torch.cat(column) for column in zip(*found, strict=True))

    return Candidates(*map_over_shards(of_shard, len(index)))


def rotations_of(states: Tensor, views: Views, n_angles: int) -> Tensor:
    """(k, 3, 3) of states (k,)."""
    v = len(views.frames)
    return in_plane_rotations((states // v) * (360.0 / n_angles)) @ views.frames[states % v]


def average(
    images: RingImages, index: Tensor, shifts: Tensor, states: Tensor, posterior: Tensor, views: Views
) -> tuple[Tensor, Tensor]:
    """Posterior-weighted sums of the images on each view, and of their squared transfer (`Expectation`).

    index : (k,) images. shifts : (k, 2). states, posterior : (k, c).
    """
    n_angles, v = images.rings.shape[-1], len(views.frames)
    _, to_orders = angular_synthesis(n_angles, views.power)

    def of_shard(rows: Tensor) -> tuple[Tensor, ...]:
        sums, counts = torch.zeros_like(views.spectra), torch.zeros_like(views.power)
        for part in rows.to(index.device).split(2 * _BATCH):
            k = len(part)
            stacked = turned_orders(images, index[part], shifts[part][:, None])
            dense = posterior.new_zeros(k, n_angles * v).scatter_(1, states[part], posterior[part])
            orders = to_orders @ dense.view(k, n_angles, v).transpose(0, 1).reshape(n_angles, k * v)
            sums += averaged_rings(stacked, orders)
            counts += images.transfer[index[part]].square().mean(-1).T @ orders[0].view(k, v)
        return sums, counts

    sums, counts = sum_over_shards(of_shard, len(index), n_shards=4)
    return sums, counts


def step_in_time(
    state: SearchState,
    images: RingImages,
    grid: SearchGrid,
    settings: SearchSettings,
    time: TimeSettings,
    chain: RotationChain,
    frames: Tensor,
    *,
    seed: int,
) -> SearchState:
    """One iteration: every few-th frame, all orientations, their chain, the next map.

    images : in the order of time. chain : of steps of ``time.stride`` frames between the orientations of ``frames``
    (v, 3, 3), which are turned at random.
    """
    generator = step_generator(seed, state.iteration + 1)
    turned, index = turned_and_thinned(frames, len(images), time.stride, generator)
    some = torch.randperm(len(index), generator=generator)[:40].to(index.device)
    target = effective_poses(settings, state.iteration)
    heat = time.heat ** (1 - state.iteration / (settings.iterations - 1))
    made = map_in_time(
        state.values,
        state.values,
        state.shifts,
        index,
        turned,
        images,
        grid,
        settings,
        time,
        chain,
        lambda scores: heat * temperature_for(scores[some], target),
    )
    done = state.iteration + 1 == settings.iterations
    return SearchState(state.iteration + 1, done, *made)


def turned_and_thinned(frames: Tensor, n: int, stride: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """View directions (v, 3, 3) turned at random together, and every ``stride``-th of n images from a random one on."""
    turned = frames @ random_rotations(1, generator=generator)[0].to(frames)
    first = int(torch.randint(min(stride, n), (1,), generator=generator))
    return turned, torch.arange(first, n, stride, device=frames.device)


class MapInTime(NamedTuple):
    """values : (d, d, d). shifts : (n, 2) of all images. log_likelihood : nats, mean of the best states.

    temperature : that was used.
    """

    values: Tensor
    shifts: Tensor
    log_likelihood: float
    temperature: float


def map_in_time(
    reference: Tensor,
    values: Tensor,
    shifts: Tensor,
    index: Tensor,
    frames: Tensor,
    images: RingImages,
    grid: SearchGrid,
    settings: SearchSettings,
    time: TimeSettings,
    chain: RotationChain,
    temperature: Callable[[Tensor], float],
) -> MapInTime:
    """The next map: images ``index`` (k,) over all orientations of ``reference`` (d, d, d), given all of them.

    values : (d, d, d) that the next map is fitted from. shifts : (n, 2) of all images.
    frames : (v, 3, 3) view directions, those of ``chain`` turned together.
    temperature : of the likelihoods (k, c) of each image's candidates.
    """
    views = views_of(reference, frames, grid.shells, images.rings.shape[-1], images.weights, taps=_TAPS)
    trials = trial_shifts(shifts[index], settings.shift_step / float(images.frequencies.max()))
    found = likeliest(images, index, trials, views, time.candidates)
    warmth = temperature(found.log_likelihood)
    posterior = forward_backward(chain, found.states, found.log_likelihood / warmth).posterior
    best = posterior.argmax(1, keepdim=True)
    number = torch.arange(len(index), device=index.device)
    moved = trials[number, found.trial.gather(1, best)[:, 0].long()]
    sums, counts = average(images, index, moved, found.states, posterior, views)
    made = maximise(
        sums,
        counts,
        views.points,
        images.weights,
        grid.shells,
        values,
        support=grid.radius / grid.voxel_size,
        ridge=settings.ridge,
        taps=_TAPS,
    )
    likelihood = float(found.log_likelihood.gather(1, best).mean())
    return MapInTime(made, shifts.index_copy(0, index, moved), likelihood, warmth)


def search_in_time(
    images: RingImages,
    grid: SearchGrid,
    settings: SearchSettings,
    time: TimeSettings,
    *,
    seed: int,
    name: str = "search",
    observers: Sequence[Observer] = (),
) -> SearchState:
    """Search for a map from one random start; parameters as for `spr.ab_initio.search`, images in the order of time."""
    settings = scheduled(settings, images, wide=True)
    frames, chain = chain_of(images, grid, time, time.stride, seed=seed)
    first = start(images, grid, settings, seed=seed)
    return run(
        name,
        first,
        lambda s: step_in_time(s, images, grid, settings, time, chain, frames, seed=seed),
        observers,
    )


def chain_of(
    images: RingImages, grid: SearchGrid, time: TimeSettings, stride: int, *, seed: int
) -> tuple[Tensor, RotationChain]:
    """The frames (v, 3, 3) of a grid of directions and the chain over it, of steps of ``stride`` frames."""
    frames = random_frames(grid.directions, generator=step_generator(seed, 10**6)).to(images.transfer)
    degrees = time.degrees_per_frame * math.sqrt(stride)
    return frames, brownian_chain(frames, images.rings.shape[-1], degrees, time.jump_rate)


def assign_in_time(
    state: SearchState,
    images: RingImages,
    grid: SearchGrid,
    settings: SearchSettings,
    time: TimeSettings,
    *,
    seed: int,
    trials: Tensor | None = None,
) -> Assignment:
    """Every frame's pose against the map of a search, given all frames.

    trials : (n, t, 2) shifts that are tried, angstrom; None: those of the state and around them.
    """
    frames, chain = chain_of(images, grid, time, 1, seed=seed)
    views = views_of(state.values, frames, grid.shells, images.rings.shape[-1], images.weights)
    every = torch.arange(len(images), device=state.shifts.device)
    if trials is None:
        trials = trial_shifts(state.shifts, settings.shift_step / float(images.frequencies.max()))
    found = likeliest(images, every, trials, views, time.candidates // 4)
    posterior = forward_backward(chain, found.states, found.log_likelihood / _TEMPERED).posterior
    best = posterior.argmax(1, keepdim=True)
    shifts = trials[every, found.trial.gather(1, best)[:, 0].long()]
    rotations = rotations_of(found.states.gather(1, best)[:, 0], views, images.rings.shape[-1])
    return Assignment(Poses(rotations, shifts), found.log_likelihood.gather(1, best)[:, 0])
