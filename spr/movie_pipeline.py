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

from common.atoms.fisher import fisher
from common.atoms.model import AtomicModel
from common.atoms.peaks import bond_length
from common.atoms.pose_search import PoseSearchSettings
from common.atoms.pseudo_symmetry import pseudo_symmetries
from common.atoms.refinement import refine_model
from common.atoms.tracing import find_atoms
from common.atoms.validation import with_robust_weights
from common.data import ImageStack, InputError, Poses
from common.iteration import Observer, run_stage, under
from spr import atom_stages, map_stages, pipeline
from spr.ab_initio import SearchSettings, SearchState, scheduled
from spr.consensus import Consensus, ConsensusSettings
from spr.movies import MovieSettings
from spr.placing import place_between, place_in_time
from spr.refinement import RefinedMap, RefineSettings
from spr.result import Reconstruction, Stages, conclude
from spr.seen import Seen
from spr.settings import Settings
from spr.settling import Film, SettlingSettings, anneal, settle_paths
from spr.time_consensus import agree_in_time
from spr.time_search import TimeSettings, search_in_time
from spr.time_windows import Window, WindowFSC, compare_maps, follow_atoms
from spr.tumbling import Tumbling, continuous, describe_tumbling

_FOCUS_FRAMES = 8.0  # rms width of the running mean that defocus is said to follow
_BLOCK = 25  # frames, of which each half of a movie is made


@dataclass(frozen=True)
class MovieRoadSettings(Settings):
    """How the particles of a movie are found and their atoms refined; what `spr.settings.Settings` holds, and:

    movie : how particles are taken from the movie.
    time : how neighbours in time vouch for each other.
    settling : how stretches of time find their place among orientations that look alike.
    window : frames of the windows in which atoms are followed, overlapping by half; 0: none.
    """

    starts: ConsensusSettings = field(default_factory=lambda: ConsensusSettings(most=3, narrow=0))
    refinement: RefineSettings = field(default_factory=lambda: RefineSettings(finest=1.1))
    first_steps: int = 12
    search: SearchSettings = field(default_factory=lambda: SearchSettings(iterations=30))
    pose_search: PoseSearchSettings = field(default_factory=lambda: PoseSearchSettings(reach=0.8))
    movie: MovieSettings = field(default_factory=MovieSettings)
    time: TimeSettings = field(default_factory=TimeSettings)
    settling: SettlingSettings = field(default_factory=SettlingSettings)
    window: int = 400

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 0:
            raise InputError(f"a window has {self.window} frames, expected 0 (none) or more")


@dataclass(frozen=True)
class ParticleInTime:
    """One particle of a movie.

    reconstruction : as of identical particles, its images those frames that show it.
    frames : (n,) the numbers of these frames, from 0. tumbling, windows, agreement (of the windows' maps) : as far as
        atoms were found.
    """

    reconstruction: Reconstruction
    frames: Tensor
    tumbling: Tumbling | None = None
    windows: tuple[Window, ...] = ()
    agreement: tuple[WindowFSC, ...] = ()


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
    seen = map_stages.look_at(stack, settings)
    rings, grid = map_stages.find_band(seen, settings, wide=True, centres=centres)
    numbers = frames.to(seen.fitted.device)
    search = scheduled(settings.search, rings, wide=True)
    film = Film(rings, numbers[seen.fitted], grid, search, settings.time)
    starts, refined = find_map_in_time(seen, film, settings, observers)
    if not starts.reached:
        return ParticleInTime(conclude(Stages(seen, starts)), frames)
    traced = find_atoms(refined.volume, settings.tracing_of_element())
    rough = atom_stages.fit_atoms(seen, traced.atoms, refined, settings, observers)
    seen, model = improve_in_time(seen, rough, refined, film, numbers, settings, observers)
    found = run_stage("atoms/between", partial(place_left_out, seen, model, numbers, centres, settings), observers)
    result = pipeline.from_model(seen, starts, refined, traced, model, found, settings, observers)
    tumbling, windows = in_time(seen, result, frames, settings, observers)
    agreement: tuple[WindowFSC, ...] = ()
    if windows and result.model is not None and result.mask is not None:
        agreement = compare_maps(seen, result.model, film.frames, windows, result.mask)
    return ParticleInTime(with_tumbling(result, tumbling, windows), frames, tumbling, windows, agreement)


def find_map_in_time(
    seen: Seen, film: Film, settings: MovieRoadSettings, observers: Sequence[Observer]
) -> tuple[Consensus, RefinedMap]:
    """Search from random starts, each over the whole movie, until enough of them agree; the best of them refined."""
    rings, grid = film.images, film.grid
    bond = bond_length(() if settings.element == "X" else (settings.element,))

    def once(number: int, seed: int) -> tuple[SearchState, RefinedMap]:
        name = f"search/start-{number}"
        found = search_in_time(rings, grid, film.search, film.time, seed=seed, name=name, observers=observers)
        name = f"settling/start-{number}"
        state = anneal(found, film, settings.settling, bond=bond, seed=seed, name=name, observers=observers)
        name = f"paths/start-{number}"
        paths = settle_paths(
            state, film, settings.settling, settings.refinement, bond=bond, seed=seed, name=name, observers=observers
        )
        poses, halves = Poses(paths.rotations, paths.shifts), time_blocks(film.frames)
        watching = under(f"refine/start-{number}", observers)
        refined = map_stages.refine_from(paths.values, poses, seen, rings, grid, settings, watching, halves=halves)
        return state, refined

    return agree_in_time(once, settings.tracing_of_element(), settings.starts, seed=settings.seed)


def time_blocks(frames: Tensor) -> Tensor:
    """The half, 0 or 1, of each frame: blocks of time in turn, since neighbours share motion, focus and liquid."""
    return frames // _BLOCK % 2


def improve_in_time(
    seen: Seen,
    rough: AtomicModel,
    refined: RefinedMap,
    film: Film,
    numbers: Tensor,
    settings: MovieRoadSettings,
    observers: Sequence[Observer],
) -> tuple[Seen, AtomicModel]:
    """All frames placed with the atoms, everything refined together, twice; atoms added or removed in between; sigmas.

    numbers : (all,) of the images in the movie.

    Returns
    -------
    The images, their defocus as it was found to go through time, and the model.
    """

    def placed(seen: Seen, model: AtomicModel, poses: Poses, seed: int) -> AtomicModel:
        stack, _, noise = seen.part(seen.fitted)
        found = place_in_time(stack, noise, model, poses, film, settings.refinement, settings.pose_search, seed=seed)
        return with_robust_weights(found)[0]

    def refined_together(seen: Seen, model: AtomicModel, name: str) -> AtomicModel:
        stack, _, noise = seen.part(seen.fitted)
        return refine_model(stack, noise, model, settings.atoms, observers=observers, name=name)

    model = run_stage("atoms/placed", lambda: placed(seen, rough, refined.poses, settings.seed), observers)
    model = refined_together(seen, model, "atoms/together")
    seen, model = with_defocus_in_time(seen, model, numbers)
    model = run_stage("atoms/count", partial(atom_stages.settle_count, seen, model, settings), observers)
    again = partial(placed, seen, model, model.poses, settings.seed + 1)
    model = refined_together(seen, run_stage("atoms/placed-again", again, observers), "atoms/last")
    stack, _, noise = seen.part(seen.fitted)
    return seen, run_stage("atoms/sigmas", partial(fisher, stack, noise, model, settings.atoms), observers)


def with_defocus_in_time(seen: Seen, model: AtomicModel, numbers: Tensor) -> tuple[Seen, AtomicModel]:
    """What the defocus of neighbouring frames has in common becomes that of the images; the model keeps the rest.

    So the prior holds each frame's defocus near that of its time, and frames that were left out have one, too.
    """
    if seen.stack.optics is None:
        return seen, model
    known, own = numbers[seen.fitted].double(), model.parameters.defocus
    near = torch.exp(-(((numbers.double()[:, None] - known) / _FOCUS_FRAMES) ** 2) / 2) * model.weights + 1e-12
    common = (near @ own) / near.sum(1)
    optics = seen.stack.optics
    focus = optics.defocus.clone()
    focus[:, :2] += common[:, None].to(focus)
    stack = replace(seen.stack, optics=replace(optics, defocus=focus))
    parameters = replace(model.parameters, defocus=own - common[seen.fitted])
    return replace(seen, stack=stack), replace(model, parameters=parameters)


def place_left_out(
    seen: Seen, model: AtomicModel, numbers: Tensor, centres: Tensor, settings: MovieRoadSettings
) -> AtomicModel:
    """The poses of the frames that were left out, from those of their neighbours in time."""
    stack, _, noise = seen.part(seen.left_out)
    offsets = torch.cat((centres[seen.fitted], centres[seen.left_out]))
    known, frames = numbers[seen.fitted], numbers[seen.left_out]
    return place_between(stack, noise, model, frames, known, offsets, settings.time, settings.pose_search)


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
        more["atoms_that_leave"] = float(torch.stack([window.gone for window in windows]).any(0).sum())
        more["new_atoms_in_a_window"] = float(max(len(window.new) for window in windows))
    return replace(result, metrics={**result.metrics, **more})
