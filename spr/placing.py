"""The poses of a whole movie with its atoms as the reference, and those of frames that were left out.

A pose is proposed by a search over all orientations given all frames, and by the neighbours in time; each proposal is
refined against the images at full resolution, and the likeliest path through them is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from common.atoms.model import AtomicModel
from common.atoms.pose_search import PoseSearchSettings, refine_given
from common.data import ImageStack, Poses
from common.noise import NoiseModel
from common.rotations import geodesic_distance
from spr.atomic_map import ATOM_WIDTH, draw_atoms, like_in_shells
from spr.model_parts import merged, select_images
from spr.refinement import RefineSettings, map_of_poses
from spr.settling import Film, path_of, searched_anew
from spr.time_search import TimeSettings

_FINER = 2  # times the directions of the search
_APART = 6.0  # degrees; a proposal nearer than that is the same pose


def place_in_time(
    stack: ImageStack,
    noise: NoiseModel,
    model: AtomicModel,
    poses: Poses,
    film: Film,
    refinement: RefineSettings,
    settings: PoseSearchSettings,
    *,
    seed: int,
) -> AtomicModel:
    """The model with the poses of all of a movie's images.

    Parameters
    ----------
    stack, noise : n raw images in the order of time. film : the same on rings.
    model : atoms; the images it was fitted to do not matter. poses : (n,) where the particle is thought to be.
    """
    reference = map_of_model(model, poses, film, refinement)
    fine = replace(film, grid=replace(film.grid, directions=_FINER * film.grid.directions))
    anew = searched_anew(reference, poses, fine, seed=seed, by_track=True)
    before, after = neighbours(poses)
    return likeliest_of(stack, noise, model, [poses, anew, before, after], film.frames, film.time, settings)


def map_of_model(model: AtomicModel, poses: Poses, film: Film, refinement: RefineSettings) -> Tensor:
    """(d, d, d) of the model's atoms on the search's grid, with the amplitudes that the images have."""
    grid, like = film.grid, film.images.transfer
    drawn = draw_atoms(model.positions.to(like), model.heights.to(like), grid.box_size, grid.voxel_size, ATOM_WIDTH)
    return like_in_shells(drawn, map_of_poses(film.images, grid, poses, refinement))


def neighbours(poses: Poses) -> tuple[Poses, Poses]:
    """The orientation of the image before, and of that after, at each image's own shift."""
    n = len(poses)
    number = torch.arange(n, device=poses.rotations.device)
    earlier, later = (poses.rotations[(number + step).clamp(0, n - 1)] for step in (-1, 1))
    return Poses(earlier, poses.shifts), Poses(later, poses.shifts)


def likeliest_of(
    stack: ImageStack,
    noise: NoiseModel,
    model: AtomicModel,
    proposals: Sequence[Poses],
    frames: Tensor,
    time: TimeSettings,
    settings: PoseSearchSettings,
) -> AtomicModel:
    """The likeliest path through proposals (each of n poses), all refined; the first one is always looked at."""
    first = proposals[0]
    ways = [refine_given(stack, noise, model, first, settings)]
    gains = [ways[0].log_likelihood]
    for other in proposals[1:]:
        apart = geodesic_distance(other.rotations.to(first.rotations), first.rotations) > _APART
        rows = apart.nonzero()[:, 0]
        gain = torch.full_like(gains[0], -torch.inf)
        way = ways[0]
        if len(rows):
            part = refine_given(stack[rows], noise[rows], model, other[rows], settings)
            gain[rows] = part.log_likelihood
            way = _replaced(way, rows, part)
        ways.append(way)
        gains.append(gain)
    rotations = torch.stack([way.poses.rotations for way in ways], 1)
    path = path_of(rotations, torch.stack(gains, 1), frames.to(rotations.device), time)
    chosen = ways[0]
    for number, way in enumerate(ways[1:], start=1):
        rows = (path == number).nonzero()[:, 0]
        if len(rows):
            chosen = _replaced(chosen, rows, select_images(way, rows))
    return replace(chosen, weights=torch.ones_like(chosen.weights))


def _replaced(model: AtomicModel, rows: Tensor, part: AtomicModel) -> AtomicModel:
    """The model with its images ``rows`` as they are in ``part``."""
    number = torch.arange(len(model.weights), device=rows.device)
    rest = number[~torch.isin(number, rows)]
    return part if not len(rest) else merged(select_images(model, rest), rest, part, rows)


def place_between(
    stack: ImageStack,
    noise: NoiseModel,
    model: AtomicModel,
    frames: Tensor,
    known: Tensor,
    offsets: Tensor,
    time: TimeSettings,
    settings: PoseSearchSettings,
) -> AtomicModel:
    """The poses of images that the model has not seen, from those of the frames before and after them.

    Parameters
    ----------
    stack, noise : m images left out. frames : (m,) their numbers. known : (n,) those of the model's images, rising.
    offsets : (n + m, 2) of (x, y), angstrom, where each image's track says that the particle is: first the model's.
    """
    n = len(known)
    place = torch.searchsorted(known, frames)
    ways = []
    for near in ((place - 1).clamp(min=0), place.clamp(max=n - 1)):
        beside = model.poses.shifts[near] - offsets[:n][near].to(model.poses.shifts)
        ways.append(Poses(model.poses.rotations[near], beside + offsets[n:].to(beside)))
    return likeliest_of(stack, noise, model, ways, frames, time, settings)
