"""Poses refined off the grid against the map, and the map against the poses, in two halves that never meet.

Shifts first, then rotations and shifts together, at a resolution that grows from round to round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.data import InputError, Poses, Volume
from common.fourier import resample_fourier
from common.gridding import OVERSAMPLING, transform_and_slopes
from common.iteration import Observer, State, run, step_generator
from common.parallel import map_over_shards
from common.resolution import FSC, fourier_shell_correlation
from spr.map_update import solve_map
from spr.pose_fitting import RefineData, fit_poses
from spr.ring_images import RingImages
from spr.ring_sampling import SearchGrid, map_box


@dataclass(frozen=True)
class RefineSettings:
    """How poses are refined against a map.

    rounds : of poses and map; the resolution grows linearly in frequency from the search's to ``finest``.
    finest : angstrom, of the last round.
    steps : Gauss-Newton steps of the poses in each round.
    ridge : prior weight of an empty map, as a fraction of the mean data weight.
    """

    rounds: int = 3
    finest: float = 1.5
    steps: int = 1
    ridge: float = 0.02

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.steps < 1:
            raise InputError(
                f"the refinement has {self.rounds} rounds of {self.steps} steps, expected at least 1 of each"
            )
        if not self.finest > 0:
            raise InputError(f"the finest spacing is {self.finest}, expected a positive number of angstrom")


@dataclass(frozen=True)
class RefineState(State):
    """values : (2, d, d, d) the half maps. rotations, shifts : (n, 3, 3), (n, 2) angstrom.

    gain : (n,) nats that each image's pose gains over no particle. weights : (n,) of the images, from that.
    """

    values: Tensor
    rotations: Tensor
    shifts: Tensor
    gain: Tensor
    weights: Tensor


def start(values: Tensor, poses: Poses, data: RefineData, box_size: int) -> RefineState:
    """Both halves from one map (d, d, d) of the search, resampled to ``box_size``."""
    finer = resample_fourier(values, box_size, 3) * (values.shape[-1] / box_size) ** 3
    nothing = torch.zeros(len(poses), device=values.device)
    weights = torch.ones_like(nothing)
    return RefineState(0, False, torch.stack((finer, finer)), poses.rotations, poses.shifts, nothing, weights)


def shells_of_round(data: RefineData, settings: RefineSettings, iteration: int) -> int:
    """How many of the rings round ``iteration`` uses."""
    fraction = (iteration + 1) / settings.rounds
    limit = data.search_shell + fraction * (float(data.shells[-1]) - data.search_shell)
    return int((data.shells <= limit + 0.5).sum())


def step(
    state: RefineState, data: RefineData, settings: RefineSettings, *, symmetry: Tensor | None = None
) -> RefineState:
    """One round: each half's poses against its map at this resolution, then its map from these poses."""
    count = shells_of_round(data, settings, state.iteration)
    rotations, shifts, gain = refine_poses(state, data, settings, count)
    weights = torch.zeros_like(gain)
    for h in (0, 1):  # each half by its own: one number from both would let them meet
        weights[data.half == h] = image_weights(gain[data.half == h])
    halves = [
        build_map(state.values[h], rotations, shifts, weights * (data.half == h), data, settings, count, symmetry)
        for h in (0, 1)
    ]
    done = state.iteration + 1 == settings.rounds
    return RefineState(state.iteration + 1, done, torch.stack(halves), rotations, shifts, gain, weights)


def image_weights(gain: Tensor) -> Tensor:
    """1 for images that a pose explains about as well as it does most, falling to 0 for those it hardly explains."""
    return (2 * gain / gain.median().clamp(min=1e-6) - 0.5).clamp(0, 1)


def refine_poses(
    state: RefineState, data: RefineData, settings: RefineSettings, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotations, shifts and gain (nats) of every image after Gauss-Newton steps; shifts alone at the very first."""
    shells = data.shells[:count]
    transforms = [transform_and_slopes(values, math.ceil(float(shells[-1]))) for values in state.values]

    def of_shard(rows: Tensor) -> tuple[Tensor, ...]:
        rows = rows.to(state.shifts.device)
        results = [
            state.rotations.new_zeros(len(rows), 3, 3),
            state.shifts.new_zeros(len(rows), 2),
            state.gain.new_zeros(len(rows)),
        ]
        for h in (0, 1):
            mine = (data.half[rows] == h).nonzero()[:, 0]
            for part in mine.split(32) if len(mine) else ():  # a small shard may lie in one half
                index = rows[part]
                first = state.iteration == 0
                found = fit_poses(
                    transforms[h],
                    data,
                    index,
                    state.rotations[index],
                    state.shifts[index],
                    count,
                    steps=settings.steps + first,
                    shifts_only=int(first),
                )
                for whole, piece in zip(results, found, strict=True):
                    whole[part] = piece
        return tuple(results)

    rotations, shifts, gain = map_over_shards(of_shard, len(data.images))
    return rotations, shifts, gain


def build_map(
    values: Tensor,
    rotations: Tensor,
    shifts: Tensor,
    weights: Tensor,
    data: RefineData,
    settings: RefineSettings,
    count: int,
    symmetry: Tensor | None,
) -> Tensor:
    """The map (d, d, d) that fits the weighted images best, from ``values`` on."""
    images = data.images
    half = images.rings.shape[-1] // 2
    vectors = images.ring_vectors()[:count, :half].reshape(-1, 2)
    used = weights.nonzero()[:, 0]
    phase = 2 * math.pi * (shifts[used] @ vectors.T)
    ring_weight = images.weights[:count].repeat_interleave(half) * weights[used, None]
    transfer = images.transfer[used, :count, :half].flatten(1)
    centred = images.rings[used, :count, :half].flatten(1) * torch.polar(torch.ones_like(phase), phase)
    points = (vectors * (OVERSAMPLING * data.window)) @ rotations[used, :2, :]
    return solve_map(
        (centred * transfer * ring_weight).flatten(),
        (transfer.square() * ring_weight).flatten(),
        points.reshape(-1, 3),
        values,
        max_shell=math.ceil(float(data.shells[count - 1])),
        support=data.radius / data.window * values.shape[-1],
        ridge=settings.ridge,
        symmetry=symmetry,
    )


@dataclass(frozen=True)
class RefinedMap:
    """What the refinement of poses gives.

    volume : from all images. halves, fsc : two maps that never met after the search, and how far they agree.
    poses, gain, weights : of the n images; gain in nats over no particle. half : (n,) 0 or 1.
    """

    volume: Volume
    halves: tuple[Volume, Volume]
    fsc: FSC
    poses: Poses
    gain: Tensor
    weights: Tensor
    half: Tensor


def shells_to(finest: float, grid: SearchGrid) -> Tensor:
    """The search's rings and all finer ones up to ``finest`` angstrom."""
    last = max(int(grid.box_size * grid.voxel_size / finest), int(grid.shells[-1]))
    finer = torch.arange(int(grid.shells[-1]) + 1, last + 1, device=grid.shells.device)
    return torch.cat((grid.shells, finer.float()))


def halve(images: RingImages, shells: Tensor, grid: SearchGrid, *, seed: int) -> RefineData:
    """Two random halves of the images on the rings ``shells``."""
    order = torch.randperm(len(images), generator=step_generator(seed, 2)).to(shells.device)
    window = grid.box_size * grid.voxel_size
    return RefineData(images, order % 2, shells, window, grid.radius, float(grid.shells[-1]))


def map_of_poses(
    images: RingImages, grid: SearchGrid, poses: Poses, settings: RefineSettings, *, symmetry: Tensor | None = None
) -> Tensor:
    """The map (d, d, d) on the search's grid that fits images of known poses best."""
    data = halve(images, grid.shells, grid, seed=0)
    empty = images.transfer.new_zeros((grid.box_size,) * 3)
    weights = images.transfer.new_ones(len(images))
    rotations, shifts = (x.to(images.transfer) for x in (poses.rotations, poses.shifts))
    return build_map(empty, rotations, shifts, weights, data, settings, len(grid.shells), symmetry)


def refine(
    values: Tensor,
    poses: Poses,
    data: RefineData,
    settings: RefineSettings,
    *,
    symmetry: Tensor | None = None,
    observers: Sequence[Observer] = (),
) -> RefinedMap:
    """Refine all poses off the grid, in two independent halves.

    Parameters
    ----------
    values : (d, d, d) the map to start from, at the search's resolution, of side ``data.window``.
    poses : n poses to start from.
    """
    box_size = map_box(float(data.shells[-1]))
    first = start(values, poses, data, box_size)
    last = run("refine", first, lambda s: step(s, data, settings, symmetry=symmetry), observers)
    voxel = data.window / box_size
    halves = (Volume(last.values[0], voxel), Volume(last.values[1], voxel))
    count = len(data.shells)
    mean = last.values.mean(0)
    whole = build_map(mean, last.rotations, last.shifts, last.weights, data, settings, count, symmetry)
    fsc = fourier_shell_correlation(*halves)
    found = Poses(last.rotations, last.shifts)
    return RefinedMap(Volume(whole, voxel), halves, fsc, found, last.gain, last.weights, data.half)
