"""Every stretch of a movie in its place: orientations in which a crystal looks nearly alike, told apart by its atoms.

A search leaves a tumbling crystal in pieces. Between two jumps its orientations hang together, but each stretch may lie
in any of the orientations that map the lattice onto itself, and a map is flexible enough to explain them all: each
fills the directions that it is seen from. A map of atoms (`spr.atomic_map`) is not, since atoms seen from one side are
there from all sides. First the whole movie is annealed with maps of atoms, so slowly that stretches of many frames, not
only single ones, stay undecided for long; then poses are refined off the grid and searched again in turn, and every
stretch keeps what explains it better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.data import InputError, Poses
from common.gridding import transform_and_slopes
from common.iteration import Observer, State, run, step_generator
from common.parallel import map_over_shards
from spr.ab_initio import SearchSettings, SearchState
from spr.atomic_map import atomic_map
from spr.pose_fitting import RefineData, fit_poses
from spr.refinement import RefineSettings, halve, map_of_poses
from spr.ring_images import RingImages
from spr.ring_sampling import SearchGrid
from spr.rotation_chain import RotationChain, likeliest_path
from spr.segments import at_true_scale, segments_of
from spr.time_search import TimeSettings, assign_in_time, chain_of, map_in_time, turned_and_thinned

_TEMPERATURE = 4.0  # at which a stretch chooses between old and new poses
_TRACK_STEP = 0.3  # angstrom, between shifts that are tried around a track
_POSE_ERROR = 1.5  # degrees, of a pose refined against a map that is still rough


@dataclass(frozen=True)
class SettlingSettings:
    """How stretches of a movie find their place.

    iterations : of the annealing; 0: none.
    hottest, coolest : temperature of the first and the last; likelihoods are raised to its inverse.
    stride : each iteration takes one of so many frames.
    rounds : afterwards, of poses off the grid and a new search, with all frames.
    """

    iterations: int = 40
    hottest: float = 100.0
    coolest: float = 5.0
    stride: int = 4
    rounds: int = 10

    def __post_init__(self) -> None:
        if not self.hottest >= self.coolest > 0:
            raise InputError(
                f"settling: temperatures from {self.hottest} to {self.coolest}, expected positive numbers that fall"
            )
        if self.iterations < 0 or self.stride < 1 or self.rounds < 0:
            raise InputError(
                f"settling: {self.iterations} iterations, stride {self.stride}, {self.rounds} rounds, expected counts"
            )


@dataclass(frozen=True)
class Film:
    """A particle's images in the order of time, and how they are searched.

    images : n on rings, their centres where the track sees the particle.
    frames : (n,) their numbers in the movie, rising.
    """

    images: RingImages
    frames: Tensor
    grid: SearchGrid
    search: SearchSettings
    time: TimeSettings


def anneal(
    state: SearchState,
    film: Film,
    settings: SettlingSettings,
    *,
    bond: float,
    seed: int,
    name: str = "settling",
    observers: Sequence[Observer] = (),
) -> SearchState:
    """Go on from the end of a search with maps of atoms, from a temperature at which no stretch has a place.

    bond : angstrom, distance of nearest neighbours.
    """
    first = SearchState(0, settings.iterations == 0, state.values, state.shifts, 0.0, settings.hottest)
    views, chain = chain_of(film.images, film.grid, film.time, settings.stride, seed=seed)
    return run(name, first, lambda s: step(s, film, settings, chain, views, bond=bond, seed=seed), observers)


def step(
    state: SearchState,
    film: Film,
    settings: SettlingSettings,
    chain: RotationChain,
    views: Tensor,
    *,
    bond: float,
    seed: int,
) -> SearchState:
    """One iteration: the atoms of the map, every few-th frame's orientations given all of these, the next map."""
    generator = step_generator(seed, 10**4 + state.iteration)
    turned, index = turned_and_thinned(views, len(film.images), settings.stride, generator)
    grid = film.grid
    done = state.iteration + 1 == settings.iterations
    cooled = state.iteration / max(settings.iterations - 1, 1)
    temperature = settings.hottest * (settings.coolest / settings.hottest) ** cooled
    reference = atomic_map(state.values, grid.voxel_size, radius=grid.radius, bond=bond)
    made = map_in_time(
        reference,
        state.values,
        state.shifts,
        index,
        turned,
        film.images,
        grid,
        film.search,
        film.time,
        chain,
        lambda _: temperature,
    )
    return SearchState(state.iteration + 1, done, made.values, made.shifts, made.log_likelihood, temperature)


@dataclass(frozen=True)
class PathState(State):
    """values : (d, d, d) map. rotations, shifts : (n, 3, 3), (n, 2) angstrom. gain : (n,) nats over no particle."""

    values: Tensor
    rotations: Tensor
    shifts: Tensor
    gain: Tensor


def settle_paths(
    state: SearchState,
    film: Film,
    settings: SettlingSettings,
    refinement: RefineSettings,
    *,
    bond: float,
    seed: int,
    name: str = "paths",
    observers: Sequence[Observer] = (),
) -> PathState:
    """All poses off the grid, every stretch at the likeliest of the places that were found for it.

    state : the end of `anneal`.

    Returns
    -------
    Poses of all images, their tilts at the scale of Brownian rotation, and the map that they make.
    """
    images, grid = film.images, film.grid
    found = assign_in_time(state, images, grid, film.search, film.time, seed=seed)
    values = map_of_poses(images, grid, found.poses, refinement)
    first = PathState(0, settings.rounds == 0, values, found.poses.rotations, found.poses.shifts, found.log_likelihood)
    data = halve(images, grid.shells, grid, seed=0)

    def once(now: PathState) -> PathState:
        return step_paths(now, film, settings, refinement, data, bond=bond, seed=seed)

    last = run(name, first, once, observers)
    rotations = at_true_scale(last.rotations, film.frames, segments_of(last.rotations, film.frames))
    values = map_of_poses(images, grid, Poses(rotations, last.shifts), refinement)
    return replace(last, rotations=rotations, values=values)


def step_paths(
    state: PathState,
    film: Film,
    settings: SettlingSettings,
    refinement: RefineSettings,
    data: RefineData,
    *,
    bond: float,
    seed: int,
) -> PathState:
    """One round: the map's atoms; poses as they are and as found anew, both refined; the likelier path; its map."""
    grid, now = film.grid, Poses(state.rotations, state.shifts)
    round_ = state.iteration + 1
    reference = atomic_map(state.values, grid.voxel_size, radius=grid.radius, bond=bond)
    found = searched_anew(reference, now, film, seed=seed * 1000 + round_, by_track=round_ % 2 == 1)
    ways = [
        refined_against(reference, now, data, grid, steps=1),
        refined_against(reference, found, data, grid, steps=2),
    ]
    rotations, shifts, gain = (torch.stack(columns, 1) for columns in zip(*ways, strict=True))
    path = path_of(rotations, gain, film.frames, film.time)
    every = torch.arange(len(path), device=path.device)
    poses = Poses(rotations[every, path], shifts[every, path])
    values = map_of_poses(film.images, grid, poses, refinement)
    return PathState(round_, round_ == settings.rounds, values, poses.rotations, poses.shifts, gain[every, path])


def searched_anew(reference: Tensor, poses: Poses, film: Film, *, seed: int, by_track: bool) -> Poses:
    """All poses over all orientations of a map, given all frames.

    by_track : shifts are looked for around where the track sees the particle, not around those of ``poses``: a pose
        that is wrong has drawn its shift along.
    """

    def assigned(state: SearchState, trials: Tensor | None = None) -> Poses:
        return assign_in_time(state, film.images, film.grid, film.search, film.time, seed=seed, trials=trials).poses

    if not by_track:
        return assigned(SearchState(0, False, reference, poses.shifts.to(reference), 0.0, 1.0))
    voxel, track = film.grid.voxel_size, film.images.centres
    middle = centre_of_mass(reference, voxel)
    around = _TRACK_STEP * torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 2).to(reference)
    centred = SearchState(0, False, moved(reference, -middle / voxel), track, 0.0, 1.0)
    found = assigned(centred, track[:, None] + around)
    return Poses(found.rotations, found.shifts - (found.rotations @ middle)[:, :2])


def centre_of_mass(values: Tensor, voxel_size: float) -> Tensor:
    """Of what is positive in a map (d, d, d): (3,) of (x, y, z), angstrom from the middle voxel."""
    d = values.shape[-1]
    axis = (torch.arange(d, device=values.device) - d // 2).to(values) * voxel_size
    mass = values.clamp(min=0)
    total = mass.sum().clamp(min=1e-30)
    return torch.stack([(mass.sum(others) * axis).sum() / total for others in ((0, 1), (0, 2), (1, 2))])


def moved(values: Tensor, shift: Tensor) -> Tensor:
    """A map (d, d, d) moved by (x, y, z) voxels, periodically."""
    x, y, z = shift
    transform = torch.fft.rfftn(values)
    for axis, by in ((0, z), (1, y), (2, x)):
        d = values.shape[axis]
        k = (torch.fft.rfftfreq if axis == 2 else torch.fft.fftfreq)(d, device=values.device)
        phase = torch.polar(torch.ones_like(k), -2 * math.pi * k * by)
        transform = transform * phase.view([-1 if a == axis else 1 for a in range(3)])
    return torch.fft.irfftn(transform, s=values.shape)


def path_of(rotations: Tensor, gain: Tensor, frames: Tensor, time: TimeSettings) -> Tensor:
    """Which of its orientations (n, c, 3, 3), of gain (n, c) nats, each frame is taken to have: (n,)."""
    degrees = math.sqrt(time.degrees_per_frame**2 + 2 * _POSE_ERROR**2)
    return likeliest_path(rotations, gain / _TEMPERATURE, frames, degrees, time.jump_rate)


def refined_against(
    values: Tensor, poses: Poses, data: RefineData, grid: SearchGrid, *, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotations, shifts and gains (nats) after Gauss-Newton steps against a map on the search's rings."""
    transform = transform_and_slopes(values, math.ceil(float(grid.shells[-1])))
    rotations, shifts = (x.to(values) for x in (poses.rotations, poses.shifts))

    def of_shard(rows: Tensor) -> tuple[Tensor, ...]:
        found = [
            fit_poses(
                transform, data, part, rotations[part], shifts[part], len(grid.shells), steps=steps, shifts_only=0
            )
            for part in rows.to(values.device).split(32)
        ]
        return tuple(torch.cat(column) for column in zip(*found, strict=True))

    fitted = map_over_shards(of_shard, len(rotations))
    return fitted[0], fitted[1], fitted[2]
