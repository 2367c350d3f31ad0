"""A map from images in unknown orientations, from nothing: annealed stochastic expectation maximisation.

Each iteration scores a few random images against the current map over all orientations of a randomly turned grid, at a
temperature that leaves a set number of poses in play, and averages them into the next map. The number of effective
poses falls geometrically; symmetry breaks on the way down. At equal cost, many iterations on few images found
the structure more often than few iterations on many; why was not tested.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.data import ImageStack, InputError, Volume
from common.iteration import Observer, State, run, step_generator
from common.masks import soft_ball
from common.noise import NoiseModel
from common.parallel import sum_over_shards
from spr.centring import centre_particles
from spr.map_update import maximise
from spr.orientation_search import (
    Expectation,
    Views,
    expectation,
    joined_views,
    log_likelihoods,
    log_prior,
    random_frames,
    temperature_for,
    views_of,
)
from spr.ring_images import RingImages
from spr.ring_sampling import SearchGrid, map_box, sample_rings, signal_nats, signal_rings

_USUAL_NATS, _USUAL_ITERATIONS, _USUAL_IMAGES = 140.0, 100, 110  # a schedule that works at 200 electrons/angstrom^2
_WIDE_SHARE = 0.5  # of the directions, where many rings of a large particle would ask for very many
_PATIENCE, _PATIENT_SHARE = 3, 0.5  # times the iterations, and the images in each, of a patient search
_TRACK_SIGMA = 0.25  # angstrom, of a tracked centre
_TAPS = 2  # of the gridding window: errors of 3 % of the map, little beside those of its poses


@dataclass(frozen=True)
class SearchSettings:
    """How a map is sought from nothing.

    iterations : of one start; 0: from the signal in the images, more the weaker it is.
    images_per_iteration : random images that each iteration looks at; 0: likewise.
    directions : view directions on the grid; 0: from the particle's size and the resolution.
    effective_poses : poses in play per image in the first iteration.
    final_effective_poses : the same in the last iteration, >= 1.
    coarsest, finest : angstrom, the band searched; both 0: where the images hold most signal.
    shift_step : trial shifts, as a fraction of the finest spacing.
    ridge : prior weight of an empty map, as a fraction of the mean data weight.
    """

    iterations: int = 0
    images_per_iteration: int = 0
    directions: int = 0
    effective_poses: float = 200.0
    final_effective_poses: float = 3.0
    coarsest: float = 0.0
    finest: float = 0.0
    shift_step: float = 0.14
    ridge: float = 0.02

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.images_per_iteration < 0 or self.iterations == 1:
            raise InputError(
                f"the search has {self.iterations} iterations of {self.images_per_iteration} images, "
                "expected at least 2 iterations, or 0 for numbers from the data"
            )
        if not self.effective_poses >= self.final_effective_poses >= 1:
            raise InputError(
                f"the effective poses go from {self.effective_poses} to {self.final_effective_poses}, "
                "expected a fall to 1 or more"
            )


@dataclass(frozen=True)
class SearchState(State):
    """values : (d, d, d) the map. shifts : (n, 2) where each image's particle was last seen, angstrom.

    best : nats per image, mean over the images last looked at. temperature : of the last iteration.
    """

    values: Tensor
    shifts: Tensor
    best: float
    temperature: float


def prepare(
    stack: ImageStack,
    white: ImageStack,
    noise: NoiseModel,
    *,
    radius: float,
    shift_spread: float,
    settings: SearchSettings,
    wide: bool = False,
    centres: Tensor | None = None,
) -> tuple[RingImages, SearchGrid]:
    """Centre the images, find the band with most signal and sample it on rings.

    Parameters
    ----------
    stack : n images, with their optics. white : the same whitened. noise : their noise.
    radius, shift_spread : of the particle and of its position, angstrom.
    wide : take weaker, finer rings too, see `signal_rings`.
    centres : (n, 2) of (x, y), angstrom from the middle of the box, where a track says that the particle is; found in
        each image when None.
    """
    pixel = stack.pixel_size
    centre_sigma = _TRACK_SIGMA
    if centres is None:
        centres = centre_particles(white.images, pixel_size=pixel, radius=radius, shift_spread=shift_spread)
        centre_sigma = max(0.5 * shift_spread, 0.25 * pixel)  # the spread is measured in steps of half a pixel
    window = 4 * (radius + 1.1)
    disc_radius = radius + 3 * shift_spread + 2
    if settings.coarsest and settings.finest:
        shells = torch.arange(max(1, round(window / settings.coarsest)), round(window / settings.finest) + 1)
        shells = shells.to(stack.images.device).float()
    else:
        shells = signal_rings(white.images, pixel, disc_radius, window, outlines=stack.optics is None, wide=wide)
    finest = window / float(shells[-1])
    support = radius + 1.1
    box = map_box(float(shells.max()))
    spacing = 0.33 * finest / support  # radian; views in between lose little at the rim
    directions = settings.directions or min(4000, max(60, math.ceil(4 * math.pi / (2.1 * spacing) ** 2)))
    grid = SearchGrid(box, window / box, support, disc_radius, shells, directions)
    images = sample_rings(stack, white, noise, grid, centres, centre_sigma=centre_sigma)
    if not settings.directions:
        # strong images are pulled to the nearest view on a coarser grid too
        share = _WIDE_SHARE if wide else min(1.0, math.sqrt(slowness(images) / 0.7))
        grid = replace(grid, directions=math.ceil(share * directions))
    return images, grid


def slowness(images: RingImages) -> float:
    """How slowly these images must be annealed: 1 for a usual signal, less for a stronger one."""
    return math.sqrt(_USUAL_NATS / max(signal_nats(images), 1.0))


def scheduled(settings: SearchSettings, images: RingImages, *, wide: bool = False) -> SearchSettings:
    """The settings with iterations and images per iteration chosen from the signal, where they are 0.

    An image of signal energy E nats settles its own pose the better the larger E is, so that weak images need a slower
    annealing over more of them. The constants were chosen on four data sets of one 68-atom cluster. The signal of a
    large particle is strong because it has many atoms to be found: in a ``wide`` band no search is a short one.
    """
    slow = max(slowness(images), 1.0 if wide else 0.0)
    return replace(
        settings,
        iterations=settings.iterations or round(min(max(_USUAL_ITERATIONS * slow, 30), 150)),
        images_per_iteration=settings.images_per_iteration or round(min(max(_USUAL_IMAGES * slow, 60), 300)),
    )


def patient(settings: SearchSettings) -> SearchSettings:
    """A slower annealing: three times the iterations on half the images each.

    Weak images need it: on clusters at a signal-to-noise ratio of 0.1 (118 nats an image) four of six such starts found
    the structure, and none of eleven quick ones.
    """
    few = round(_PATIENT_SHARE * settings.images_per_iteration)
    return replace(settings, iterations=_PATIENCE * settings.iterations, images_per_iteration=max(few, 30))


def start(images: RingImages, grid: SearchGrid, settings: SearchSettings, *, seed: int) -> SearchState:
    """A map of random values in a ball, with the power that the images have."""
    generator = step_generator(seed, 0)
    ball = soft_ball(grid.box_size, grid.radius / grid.voxel_size, edge=1.5).to(images.transfer)
    values = torch.randn(ball.shape, generator=generator).to(ball) * ball
    views = views_of(
        values, random_frames(50, generator=generator).to(ball), grid.shells, images.rings.shape[-1], images.weights
    )
    wanted = 2 * max(signal_nats(images), 1.0)
    made = (views.power.mean(1) * images.transfer.square().mean((0, 2))).sum()
    return SearchState(0, False, values * (wanted / made).sqrt(), images.centres, 0.0, 0.0)


def effective_poses(settings: SearchSettings, iteration: int) -> float:
    """Falls geometrically from the first to the last iteration."""
    fraction = iteration / (settings.iterations - 1)
    return settings.effective_poses * (settings.final_effective_poses / settings.effective_poses) ** fraction


def trial_shifts(centres: Tensor, step: float) -> Tensor:
    """Each centre (k, 2) and its four neighbours at ``step``: (k, 5, 2)."""
    cross = torch.tensor([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], device=centres.device, dtype=centres.dtype)
    return centres[:, None] + step * cross


def step(
    state: SearchState,
    images: RingImages,
    grid: SearchGrid,
    settings: SearchSettings,
    *,
    seed: int,
    symmetry: Tensor | None = None,
) -> SearchState:
    """One iteration: a random few images, all orientations, the next map."""
    values, shifts, best, temperature = next_maps(
        (state.values,), state.shifts, state.iteration, images, grid, settings, seed=seed, symmetry=symmetry
    )
    done = state.iteration + 1 == settings.iterations
    return SearchState(state.iteration + 1, done, values[0], shifts, best, temperature)


def next_maps(
    maps: Sequence[Tensor],
    shifts: Tensor,
    iteration: int,
    images: RingImages,
    grid: SearchGrid,
    settings: SearchSettings,
    *,
    seed: int,
    symmetry: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], Tensor, float, float]:
    """One iteration of one map, or of several over whose views each image's posterior is spread.

    Parameters
    ----------
    maps : (d, d, d) each. shifts : (n, 2). iteration : from 0.

    Returns
    -------
    The next maps, shifts, nats of the best poses and temperature, as in `SearchState`.
    """
    generator = step_generator(seed, iteration + 1)
    frames = random_frames(grid.directions, generator=generator).to(maps[0])
    each = [views_of(map_, frames, grid.shells, images.rings.shape[-1], images.weights, taps=_TAPS) for map_ in maps]
    views = joined_views(each)
    subset = torch.randperm(len(images), generator=generator)[: settings.images_per_iteration].to(shifts.device)
    trials = trial_shifts(shifts[subset], settings.shift_step / float(images.frequencies.max()))
    few = slice(0, 12)
    scores, _ = log_likelihoods(images, subset[few], trials[few], views)
    scores += log_prior(images, subset[few], trials[few])[:, :, None]
    target = effective_poses(settings, iteration)
    temperature = temperature_for(scores.transpose(0, 1).reshape(len(subset[few]), -1), target)
    found = expect_all(images, subset, trials, views, temperature)
    v = len(frames)
    values = tuple(
        maximise(
            found.sums[..., k * v : (k + 1) * v],
            found.counts[:, k * v : (k + 1) * v],
            each[k].points,
            images.weights,
            grid.shells,
            last,
            support=grid.radius / grid.voxel_size,
            ridge=settings.ridge,
            symmetry=symmetry,
            taps=_TAPS,
        )
        for k, last in enumerate(maps)
    )
    return values, shifts.index_copy(0, subset, found.shifts), float(found.best.mean()), temperature


def expect_all(images: RingImages, index: Tensor, trials: Tensor, views: Views, temperature: float) -> Expectation:
    """`expectation` over the shards: sums are added in their order, rows land in their places."""

    def of_shard(rows: Tensor) -> tuple[Tensor, ...]:
        rows = rows.to(index.device)
        part = expectation(images, index[rows], trials[rows], views, temperature)
        placed = []
        for values in (part.best, part.evidence, part.rotations, part.shifts):
            whole = values.new_zeros(len(index), *values.shape[1:])
            placed.append(whole.index_copy(0, rows, values))
        return (part.sums, part.counts, *placed)

    return Expectation(*sum_over_shards(of_shard, len(index), n_shards=4))


def search(
    images: RingImages,
    grid: SearchGrid,
    settings: SearchSettings,
    *,
    seed: int,
    name: str = "search",
    symmetry: Tensor | None = None,
    observers: Sequence[Observer] = (),
) -> SearchState:
    """Search for a map from one random start; see the module. ``name`` is that of the run, for the observers."""
    settings = scheduled(settings, images)
    first = start(images, grid, settings, seed=seed)
    return run(name, first, lambda s: step(s, images, grid, settings, seed=seed, symmetry=symmetry), observers)


def volume_of(state: SearchState, grid: SearchGrid) -> Volume:
    return Volume(state.values, grid.voxel_size)
