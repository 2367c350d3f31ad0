"""Several maps from images of unlike particles in unknown orientations, from nothing: the search of `spr.ab_initio`
over pose and class at once.

One map of two kinds of particle belongs to neither. Each map starts from random values of its own, every image's
posterior is spread over the views of all maps, and what begins as a small advantage of one map for some of the images
grows as the temperature falls. A `SearchState` holds here the maps of K classes, values (K, d, d, d).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from ase import Atoms
from torch import Tensor

from common.atoms.tracing import TracingSettings
from common.data import Poses, Volume
from common.iteration import Observer, run
from spr.ab_initio import SearchSettings, SearchState, next_maps, scheduled, start
from spr.consensus import SAMPLE, ConsensusSettings, shared_atoms, traced
from spr.pose_assignment import Assignment, assign
from spr.ring_images import RingImages
from spr.ring_sampling import SearchGrid

_SLOWER = 2  # times the iterations for one map: at 1, none of four starts told two clusters apart; at 2, three of three


def start_classes(
    images: RingImages, grid: SearchGrid, settings: SearchSettings, count: int, *, seed: int
) -> SearchState:
    """``count`` maps of random values, each with the power that the images have."""
    firsts = [start(images, grid, settings, seed=seed + 1000003 * k) for k in range(count)]
    return replace(firsts[0], values=torch.stack([first.values for first in firsts]))


def step_classes(
    state: SearchState,
    images: RingImages,
    grid: SearchGrid,
    settings: SearchSettings,
    *,
    seed: int,
    symmetry: Tensor | None = None,
) -> SearchState:
    """One iteration: a random few images, all orientations of all maps, the next maps."""
    values, shifts, best, temperature = next_maps(
        state.values.unbind(), state.shifts, state.iteration, images, grid, settings, seed=seed, symmetry=symmetry
    )
    done = state.iteration + 1 == settings.iterations
    return SearchState(state.iteration + 1, done, torch.stack(values), shifts, best, temperature)


def search_classes(
    images: RingImages,
    grid: SearchGrid,
    settings: SearchSettings,
    count: int,
    *,
    seed: int,
    name: str = "search",
    symmetry: Tensor | None = None,
    observers: Sequence[Observer] = (),
) -> SearchState:
    """Search for ``count`` maps, each with as many images an iteration as `search` has for one, in more iterations."""
    settings = scheduled(settings, images)
    settings = replace(
        settings,
        iterations=_SLOWER * settings.iterations,
        images_per_iteration=count * settings.images_per_iteration,
    )
    first = start_classes(images, grid, settings, count, seed=seed)
    return run(name, first, lambda s: step_classes(s, images, grid, settings, seed=seed, symmetry=symmetry), observers)


@dataclass(frozen=True)
class FoundMap:
    """A map (d, d, d) of one kind of particle, the images ``rows`` (k,) that show it, and their poses."""

    values: Tensor
    rows: Tensor
    poses: Poses


@dataclass(frozen=True)
class ClassStart:
    """What one start came to. log_likelihood : nats per image, mean over a sample. atoms : of each map."""

    state: SearchState
    log_likelihood: float
    atoms: tuple[Atoms, ...]


def agree_on_one(
    images: RingImages,
    grid: SearchGrid,
    settings: SearchSettings,
    tracing: TracingSettings,
    starts: ConsensusSettings,
    count: int,
    *,
    seed: int,
    symmetry: Tensor | None = None,
    observers: Sequence[Observer] = (),
) -> FoundMap | None:
    """Search for ``count`` maps from random starts until one structure was found from two of them; None if it is not.

    The other maps of a start may be wrong as long as they hold the images of the other particles: these are searched
    by themselves once the images of the first are known.

    starts : at most ``most`` are made; two maps are one structure from ``same_atoms`` on.
    """
    n = len(images)
    sample = torch.linspace(0, n - 1, min(n, SAMPLE), device=images.centres.device).round().long()
    made: list[ClassStart] = []
    for number in range(starts.most):
        name, own = f"search/classes-{number + 1}", seed * 1000 + number
        state = search_classes(
            images, grid, settings, count, seed=own, name=name, symmetry=symmetry, observers=observers
        )
        nats = torch.stack([a.log_likelihood for a in assign_classes(state, images, grid, settings, own, sample)], 1)
        atoms = tuple(traced(Volume(values, grid.voxel_size), tracing) for values in state.values)
        made.append(ClassStart(state, float(nats.max(1).values.mean()), atoms))
        shared, pair = most_alike(made)
        if shared >= starts.same_atoms:
            best, k = max(pair, key=lambda place: made[place[0]].log_likelihood)
            found = assign_classes(made[best].state, images, grid, settings, seed * 1000 + best)
            rows = (torch.stack([one.log_likelihood for one in found], 1).argmax(1) == k).nonzero()[:, 0]
            return FoundMap(made[best].state.values[k], rows, found[k].poses[rows])
    return None


def assign_classes(
    state: SearchState,
    images: RingImages,
    grid: SearchGrid,
    settings: SearchSettings,
    seed: int,
    rows: Tensor | None = None,
) -> tuple[Assignment, ...]:
    """Every image's best pose against each of the maps; parameters as for `spr.pose_assignment.assign`."""
    one = partial(assign, images=images, grid=grid, settings=settings, seed=seed, rows=rows)
    return tuple(one(replace(state, values=values)) for values in state.values)


def most_alike(made: Sequence[ClassStart]) -> tuple[float, tuple[tuple[int, int], tuple[int, int]]]:
    """The share of atoms that the last start has in common with an earlier one, and which maps (start, class) do."""
    last = len(made) - 1
    best, pair = 0.0, ((last, 0), (last, 0))
    for number, earlier in enumerate(made[:-1]):
        for k, ours in enumerate(made[last].atoms):
            for other, theirs in enumerate(earlier.atoms):
                shared = shared_atoms(ours, theirs)
                if shared > best:
                    best, pair = shared, ((last, k), (number, other))
    return best, pair
