"""From a liquid-cell movie to the atoms of each of its particles, one tumbling particle at a time.

`spr.movies` makes one background-free stack of each particle; here its orientations are searched with time as
information, and from its map on it takes the road of `spr.pipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from common.atoms.pose_search import PoseSearchSettings
from common.atoms.pseudo_symmetry import pseudo_symmetries
from common.data import ImageStack, InputError, Poses
from common.iteration import Observer, run_stage, under
from spr import pipeline
from spr.ab_initio import SearchState, scheduled
from spr.consensus import Consensus, ConsensusSettings
from spr.movies import MovieSettings
from spr.orientation_search import RingImages
from spr.refinement import RefinedMap, RefineSettings, map_of_poses
from spr.result import Reconstruction, Seen, Stages, conclude
from spr.ring_sampling import SearchGrid
from spr.segments import at_true_scale, believed, foretold, segments_of
from spr.time_consensus import agree_in_time
from spr.time_search import TimeSettings, assign_in_time, search_in_time
from spr.time_windows import Window, follow_atoms
from spr.tumbling import Tumbling, continuous, describe_tumbling

_SCALINGS = 3  # times that stretches are judged and the tilts brought to scale


@dataclass(frozen=True)
class MovieRoadSettings(pipeline.Settings):
    """How the particles of a movie are found and their atoms refined; what `spr.pipeline.Settings` holds, and:

    movie : how particles are taken from the movie.
    time : how neighbours in time vouch for each other.
    window : frames of the windows in which atoms are followed, overlapping by half; 0: none.
    """

    starts: ConsensusSettings = field(default_factory=lambda: ConsensusSettings(most=3, narrow=0))
    refinement: RefineSettings = field(default_factory=lambda: RefineSettings(finest=1.1))
    first_steps: int = 12
    pose_search: PoseSearchSettings = field(default_factory=lambda: PoseSearchSettings(reach=0.8))
    movie: MovieSettings = field(default_factory=MovieSettings)
    time: TimeSettings = field(default_factory=TimeSettings)
    window: int = 400

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 0:
            raise InputError(f"a window has {self.window} frames, expected 0 (none) or more")


@dataclass(frozen=True)
class ParticleInTime:
    """One particle of a movie.

    reconstruction : as of identical particles, its images those frames that show it.
    frames : (n,) the numbers of these frames, from 0. tumbling, windows : as far as atoms were found.
    """

    reconstruction: Reconstruction
    frames: Tensor
    tumbling: Tumbling | None = None
    windows: tuple[Window, ...] = ()


def reconstruct_in_time(
    stack: ImageStack,
    frames: Tensor,
    centres: Tensor,
    settings: MovieRoadSettings,
    *,
    observers: Sequence[Observer] = (),
) -> ParticleInTime:
    """Find the atoms of one particle from its images in time.

    Parameters
    ----------
    stack : n images of one particle, with optics, in the order of time; n >= 20.
    frames : (n,) their numbers in the movie, rising.
    centres : (n, 2) of (x, y), angstrom from the middle of the box, where its track says that the particle is.

    Raises
    ------
    InputError : the images cannot be used; one line.
    """
    seen = pipeline.look_at(stack, settings)
    rings, grid = pipeline.find_band(seen, settings, wide=True, centres=centres)
    starts, refined = find_map_in_time(seen, rings, grid, frames, settings, observers)
    if not starts.reached:
        return ParticleInTime(conclude(Stages(seen, starts)), frames)
    result = pipeline.from_map(seen, starts, refined, settings, observers)
    tumbling, windows = in_time(seen, result, frames, settings, observers)
    return ParticleInTime(with_tumbling(result, tumbling, windows), frames, tumbling, windows)


def find_map_in_time(
    seen: Seen,
    rings: RingImages,
    grid: SearchGrid,
    frames: Tensor,
    settings: MovieRoadSettings,
    observers: Sequence[Observer],
) -> tuple[Consensus, RefinedMap]:
    """Search from random starts, each over the whole movie, until enough of them agree; the best of them refined."""
    search = scheduled(settings.search, rings, wide=True)

    def once(number: int, seed: int) -> tuple[SearchState, RefinedMap]:
        name = f"search/start-{number}"
        state = search_in_time(rings, grid, search, settings.time, seed=seed, name=name, observers=observers)
        found = run_stage(
            f"{name}-in-time", lambda: assign_in_time(state, rings, grid, search, settings.time, seed=seed), observers
        )
        watching = under(f"refine/start-{number}", observers)
        return state, refine_in_time(seen, rings, grid, frames, state.values, found.poses, settings, watching)

    return agree_in_time(once, settings.tracing_of_element(), settings.starts, seed=settings.seed)


def refine_in_time(
    seen: Seen,
    rings: RingImages,
    grid: SearchGrid,
    frames: Tensor,
    values: Tensor,
    poses: Poses,
    settings: MovieRoadSettings,
    observers: Sequence[Observer],
) -> RefinedMap:
    """Poses off the grid, at the scale that Brownian rotation tells, from the stretches of time that fit together.

    The other frames weigh nothing in the map, so that they are searched anew with its atoms.

    values : (d, d, d) map of the search. poses : of the fitted images.
    """
    numbers = frames.to(seen.fitted.device)[seen.fitted]
    refined = pipeline.refine_from(values, poses, seen, rings, grid, settings, under("scale-0", observers))
    good = torch.ones(len(rings), dtype=torch.bool, device=numbers.device)
    for turn in range(1, _SCALINGS + 1):
        now = refined.poses
        segments = segments_of(now.rotations, numbers)
        share = run_stage(
            f"foretold-{turn}", partial(foretold, rings, grid, now, segments, settings.refinement), observers
        )
        good = believed(share, segments)
        if int(good.sum()) < pipeline.LEAST_IMAGES:
            return refined
        rotations = at_true_scale(now.rotations, numbers, segments, good)
        scaled = Poses(rotations, now.shifts)
        rows = good.nonzero()[:, 0]
        part = replace(seen, fitted=seen.fitted[rows])
        first = map_of_poses(rings[rows], grid, scaled[rows], settings.refinement)
        of_part = pipeline.refine_from(
            first, scaled[rows], part, rings[rows], grid, settings, under(f"scale-{turn}", observers)
        )
        refined = _everywhere(of_part, scaled, rows)
    return refined


def _everywhere(part: RefinedMap, poses: Poses, rows: Tensor) -> RefinedMap:
    """A map of the images ``rows`` with the other images' poses, which weigh nothing."""
    n = len(poses)

    def filled(values: Tensor) -> Tensor:
        return values.new_zeros(n).index_copy(0, rows, values)

    rotations = poses.rotations.index_copy(0, rows, part.poses.rotations.to(poses.rotations))
    shifts = poses.shifts.index_copy(0, rows, part.poses.shifts.to(poses.shifts))
    return replace(
        part,
        poses=Poses(rotations, shifts),
        gain=filled(part.gain),
        weights=filled(part.weights),
        half=filled(part.half),
    )


def in_time(
    seen: Seen,
    result: Reconstruction,
    frames: Tensor,
    settings: MovieRoadSettings,
    observers: Sequence[Observer],
) -> tuple[Tumbling | None, tuple[Window, ...]]:
    """How the particle tumbles, and how its atoms move."""
    if result.poses is None or result.model is None:
        return None, ()
    matrices = pseudo_symmetries(result.model.positions).matrices.cpu()
    proper = matrices[torch.linalg.det(matrices) > 0].float()  # a particle does not turn into its mirror image
    tumbling = describe_tumbling(continuous(result.poses.rotations.cpu().float(), proper), frames.cpu())
    if not settings.window:
        return tumbling, ()
    fitted = frames[seen.fitted.cpu()].to(seen.fitted.device)
    return tumbling, follow_atoms(seen, result.model, fitted, settings.window, settings.atoms, observers)


def with_tumbling(result: Reconstruction, tumbling: Tumbling | None, windows: Sequence[Window]) -> Reconstruction:
    """The result with what time says among its metrics."""
    if tumbling is None:
        return result
    more = {
        "rotation_per_frame_degrees": tumbling.degrees_per_frame,
        "pose_error_degrees": tumbling.pose_error,
        "rotational_diffusion_radian2_per_frame": tumbling.diffusion,
        "jumps": float(len(tumbling.jumps)),
    }
    if windows:
        more["windows"] = float(len(windows))
        more["atoms_that_move"] = float(torch.stack([window.significant for window in windows]).any(0).sum())
    return replace(result, metrics={**result.metrics, **more})
