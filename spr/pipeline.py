"""From images of identical particles in unknown orientations to atoms with error bars: the whole road.

Each stage is a function of what the one before it returned; `reconstruct` is all of them in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from ase import Atoms
from ase.data import atomic_numbers
from torch import Tensor

from common.atoms.analysis import AnalysisSettings
from common.atoms.atom_count import add_and_remove_atoms
from common.atoms.fisher import fisher
from common.atoms.model import AtomicModel
from common.atoms.pose_search import PoseSearchSettings, search_poses
from common.atoms.pseudo_symmetry import pseudo_symmetries
from common.atoms.refinement import RefinementSettings, refine_model, refit_poses
from common.atoms.refinement import refine_atoms as refine_atoms_against_images
from common.atoms.symmetry_breaking import Broken, break_symmetry
from common.atoms.tracing import TraceResult, TracingSettings, find_atoms
from common.atoms.validation import excess, search_unseen, unknown_poses, with_robust_weights
from common.atoms.verification import MultisliceCheck
from common.data import ImageStack, InputError, Poses
from common.iteration import Observer, run_stage, step_generator
from common.noise import contrast_sign, extent_and_noise, whiten
from common.rotations import point_group
from spr.ab_initio import SearchSettings, patient, prepare, scheduled, slowness
from spr.consensus import Consensus, ConsensusSettings, agree
from spr.model_parts import merged, select_images
from spr.multislice_check import check_by_multislice, check_can_run
from spr.orientation_search import RingImages
from spr.refinement import RefinedMap, RefineSettings, halve, map_of_poses, refine, shells_to
from spr.result import Reconstruction, Seen, Stages, conclude, final_maps
from spr.ring_sampling import SearchGrid, sample_rings

LEAST_IMAGES = 20
_WEAK = 0.8  # slowness of images (220 nats each) from which starts that disagree are followed by patient ones
_CERTAIN = 0.8  # weight of an image in the map, from which its pose is taken as found
_BEHIND = -1.5  # standard deviations; an image that its pose explains so much worse than most ...
_NAMED = 0.98  # mean posterior of the images' operations, from which a near symmetry leaves no doubt about poses
_SHORT = 0.9  # ... and less than this share of what is to be expected, is searched again


@dataclass(frozen=True)
class Settings:
    """How a structure is found.

    element : chemical symbol of the atoms, such as Au; helps to tell atoms apart, "X" when unknown.
    seed : of all random numbers; the same seed gives the same result.
    symmetry : point group of the particle, such as C1, C2, D3, T, O, I.
    multislice_images : so many images are compared with multislice images of the final atoms; needs abTEM.
    held_out_fraction : of the images, left out of all fits; noise and particle size are measured on all images.
    focal_spread : angstrom, rms; first guess where the file gives none, refined later.
    search : one start of the search for orientations.
    starts : how many of them, and when they agree.
    refinement : of poses against the map.
    tracing : of atoms in the map.
    first_steps : of the first fit of atoms, before doubtful poses are searched with them.
    pose_search : all poses again, against the atoms.
    atoms : atoms and poses against the images.
    analysis : of the structure that the atoms make.
    """

    element: str = "X"
    seed: int = 0
    symmetry: str = "C1"
    held_out_fraction: float = 0.05
    multislice_images: int = 0
    focal_spread: float = 40.0
    search: SearchSettings = field(default_factory=SearchSettings)
    starts: ConsensusSettings = field(default_factory=ConsensusSettings)
    refinement: RefineSettings = field(default_factory=RefineSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)
    first_steps: int = 6
    pose_search: PoseSearchSettings = field(default_factory=PoseSearchSettings)
    atoms: RefinementSettings = field(default_factory=RefinementSettings)
    analysis: AnalysisSettings = field(default_factory=AnalysisSettings)

    def __post_init__(self) -> None:
        if not 0 < self.held_out_fraction < 0.5:
            raise InputError(f"the held-out fraction is {self.held_out_fraction}, expected a number between 0 and 0.5")
        if self.first_steps < 1:
            raise InputError(f"first_steps is {self.first_steps}, expected at least 1")
        if self.multislice_images < 0:
            raise InputError(f"multislice_images is {self.multislice_images}, expected 0 or more")
        if self.element not in atomic_numbers:
            raise InputError(
                f"the element is {self.element!r}, expected a chemical symbol such as Au, or X when unknown"
            )
        point_group(self.symmetry)

    def tracing_of_element(self) -> TracingSettings:
        known = None if self.element == "X" else self.element
        return self.tracing if self.tracing.element else replace(self.tracing, element=known)


def reconstruct(stack: ImageStack, settings: Settings, *, observers: Sequence[Observer] = ()) -> Reconstruction:
    """Find the atoms of a particle from images of many identical copies in unknown orientations.

    Parameters
    ----------
    stack : n images of one particle each, n >= 20, the particle within the middle two thirds of the box; with optics
        they are images of a phase object, without they are projections.
    settings : `Settings`.
    observers : see every state of every loop; they may resume a run.

    Returns
    -------
    Maps, atoms with sigmas, poses, and why to believe them; without atoms when the images do not determine a structure.

    Raises
    ------
    InputError : the images cannot be used; one line.
    """
    if settings.multislice_images:
        check_can_run(stack, settings.element)
    seen = look_at(stack, settings)
    rings, grid, starts = find_map(seen, settings, observers)
    if not starts.reached:
        return conclude(Stages(seen, starts))
    refined = refine_poses(seen, rings, grid, starts, settings, observers)
    return from_map(seen, starts, refined, settings, observers)


def from_map(
    seen: Seen, starts: Consensus, refined: RefinedMap, settings: Settings, observers: Sequence[Observer]
) -> Reconstruction:
    """Everything after the map: atoms, all poses once more, what breaks a near symmetry, what left-out images say."""
    traced = find_atoms(refined.volume, settings.tracing_of_element())
    rough = fit_atoms(seen, traced.atoms, refined, settings, observers)
    model, found = improve(seen, rough, refined, settings, observers)
    return from_model(seen, starts, refined, traced, model, found, settings, observers)


def from_model(
    seen: Seen,
    starts: Consensus,
    refined: RefinedMap,
    traced: TraceResult,
    model: AtomicModel,
    found: AtomicModel | None,
    settings: Settings,
    observers: Sequence[Observer],
) -> Reconstruction:
    """Everything after the atoms: what breaks a near symmetry, what left-out images say (``found``: their poses)."""
    model, broken = settle_symmetry(seen, model, settings, observers)
    left_out = score_left_out(seen, model, None if broken else found, settings, observers)
    maps = final_maps(seen, refined, model)
    checked = compare_with_multislice(seen, model, settings, observers)
    stages = Stages(seen, starts, refined, traced, model, left_out, maps, checked, broken)
    return conclude(stages, analysis=settings.analysis)


def find_volume(stack: ImageStack, settings: Settings, *, observers: Sequence[Observer] = ()) -> Reconstruction:
    """The search alone: a map and poses from random starts. Parameters and errors as for `reconstruct`."""
    seen = look_at(stack, settings, hold_out=False)
    _, _, starts = find_map(seen, settings, observers)
    return conclude(Stages(seen, starts), poses=starts.starts[starts.best].poses)


def refine_volume(
    stack: ImageStack, poses: Poses, settings: Settings, *, observers: Sequence[Observer] = ()
) -> Reconstruction:
    """The refinement of poses alone, from poses that are right to several degrees; half maps that never met."""
    seen = look_at(stack, settings, hold_out=False)
    rings, grid = find_band(seen, settings)
    first = map_of_poses(rings, grid, poses, settings.refinement, symmetry=symmetry_of(settings))
    refined = refine_from(first, poses, seen, rings, grid, settings, observers)
    return conclude(Stages(seen, refined=refined, maps=final_maps(seen, refined)), poses=refined.poses)


def refine_atoms(
    stack: ImageStack, atoms: Atoms, poses: Poses, settings: Settings, *, observers: Sequence[Observer] = ()
) -> Reconstruction:
    """Atoms and poses against the images alone, from atoms right to 0.3 angstrom and poses right to several degrees."""
    seen = look_at(stack, settings, hold_out=False)
    rough = refine_atoms_against_images(
        seen.stack, seen.noise, atoms, poses, settings.atoms, observers=observers, name="atoms/first"
    )
    model, broken = settle_symmetry(seen, finish(seen, rough, settings, observers)[0], settings, observers)
    return conclude(Stages(seen, model=model, broken=broken), analysis=settings.analysis)


def look_at(stack: ImageStack, settings: Settings, *, hold_out: bool = True) -> Seen:
    """Learn noise, particle size and contrast from the images, whiten them, and set some aside."""
    if len(stack) < LEAST_IMAGES:
        raise InputError(f"{len(stack)} images, expected at least {LEAST_IMAGES} to find a structure from")
    warnings: list[str] = []
    extent, noise = extent_and_noise(stack)
    room = stack.box_size * stack.pixel_size / 2
    if extent.radius + extent.shift_spread > 0.9 * room:
        raise InputError(
            f"the particle has a radius of about {extent.radius:.1f} A and the box a half width of {room:.1f} A, "
            "expected free border around it: cut larger boxes"
        )
    contrast = contrast_sign(stack, noise, extent)
    if stack.optics is None and contrast.sign < 0 and contrast.significance > 3:
        warnings.append("atoms are dark in these images: the contrast was inverted")
        stack = replace(stack, images=-stack.images.float())
        noise = replace(noise, mean=-noise.mean)
    order = torch.randperm(len(stack), generator=step_generator(settings.seed, 1)).to(stack.images.device)
    count = max(1, round(settings.held_out_fraction * len(stack))) if hold_out else 0
    fitted, left_out = order[count:].sort().values, order[:count].sort().values
    return Seen(stack, whiten(stack, noise), noise, extent, fitted, left_out, tuple(warnings))


def find_band(
    seen: Seen, settings: Settings, *, wide: bool = False, centres: Tensor | None = None
) -> tuple[RingImages, SearchGrid]:
    """Centre the images and sample them on rings where they hold most signal, or nearly all of it (``wide``).

    centres : of all images, where they are known; see `spr.ab_initio.prepare`.
    """
    stack, white, noise = seen.part(seen.fitted)
    return prepare(
        with_focal_spread(stack, settings.focal_spread),
        white,
        noise,
        radius=seen.extent.radius,
        shift_spread=seen.extent.shift_spread,
        settings=settings.search,
        wide=wide,
        centres=None if centres is None else centres[seen.fitted],
    )


def with_focal_spread(stack: ImageStack, focal_spread: float) -> ImageStack:
    """The stack with a focal spread where the file gave none."""
    if stack.optics is None:
        return stack
    given = stack.optics.focal_spread
    optics = replace(stack.optics, focal_spread=torch.where(given > 0, given, focal_spread))
    return replace(stack, optics=optics)


def find_map(seen: Seen, settings: Settings, observers: Sequence[Observer]) -> tuple[RingImages, SearchGrid, Consensus]:
    """Search from random starts until enough of them agree.

    The first starts look at the strongest rings and cool quickly, which is enough for strong images of small clusters.
    Where they disagree, the others take their time: on weak images they cool slowly; of larger particles, whose images
    are strong, many wrong maps explain the strongest rings well, so that they look at nearly all of the signal.
    """
    rings, grid = find_band(seen, settings)
    schedule = scheduled(settings.search, rings)
    most, narrow = settings.starts.most, min(settings.starts.narrow, settings.starts.most)
    weak = narrow > 0 and slowness(rings) > _WEAK
    if weak or (settings.search.coarsest and settings.search.finest):
        narrow = most
    tracing, symmetry = settings.tracing_of_element(), symmetry_of(settings)
    agree_on = partial(agree, tracing=tracing, seed=settings.seed, symmetry=symmetry, observers=observers)
    if narrow:
        patiently = patient(schedule) if weak and not settings.search.iterations else None
        few = replace(settings.starts, most=max(narrow, settings.starts.agreeing))
        starts = agree_on(rings, grid, schedule, settings=few, patient=patiently)
        if starts.reached or narrow == most:
            return rings, grid, starts
    rings, grid = find_band(seen, settings, wide=True)
    few = replace(settings.starts, most=max(most - narrow, settings.starts.agreeing))
    before = len(starts.starts) if narrow else 0
    return rings, grid, agree_on(rings, grid, scheduled(settings.search, rings, wide=True), settings=few, before=before)


def symmetry_of(settings: Settings) -> Tensor | None:
    return None if settings.symmetry == "C1" else point_group(settings.symmetry)


def refine_poses(
    seen: Seen,
    rings: RingImages,
    grid: SearchGrid,
    starts: Consensus,
    settings: Settings,
    observers: Sequence[Observer],
) -> RefinedMap:
    """Poses off the grid, map to higher resolution, in independent halves."""
    best = starts.starts[starts.best]
    return refine_from(best.state.values, best.poses, seen, rings, grid, settings, observers)


def refine_from(
    values: Tensor,
    poses: Poses,
    seen: Seen,
    rings: RingImages,
    grid: SearchGrid,
    settings: Settings,
    observers: Sequence[Observer],
    *,
    halves: Tensor | None = None,
) -> RefinedMap:
    """`refine_poses` from any map (d, d, d) on the search's grid and poses of the fitted images.

    halves : (n,) 0 or 1, of these images; None: at random.
    """
    stack, white, noise = seen.part(seen.fitted)
    stack = with_focal_spread(stack, settings.focal_spread)
    shells = shells_to(settings.refinement.finest, grid)
    finer = sample_rings(
        stack, white, noise, replace(grid, shells=shells), rings.centres, centre_sigma=rings.centre_sigma
    )
    data = halve(finer, shells, grid, seed=settings.seed)
    data = data if halves is None else replace(data, half=halves)
    return refine(values, poses, data, settings.refinement, symmetry=symmetry_of(settings), observers=observers)


def certain(refined: RefinedMap) -> Tensor:
    """Rows of the images that the map explains about as well as it does most."""
    return (refined.weights > _CERTAIN).nonzero()[:, 0]


def fit_atoms(
    seen: Seen, atoms: Atoms, refined: RefinedMap, settings: Settings, observers: Sequence[Observer]
) -> AtomicModel:
    """A first model, from the images whose poses are right for sure."""
    good = certain(refined)
    stack, _, noise = seen.part(seen.fitted[good])
    few = replace(settings.atoms, max_steps=min(settings.atoms.max_steps, settings.first_steps))
    return refine_atoms_against_images(
        stack, noise, atoms, refined.poses[good], few, observers=observers, name="atoms/first"
    )


def improve(
    seen: Seen, rough: AtomicModel, refined: RefinedMap, settings: Settings, observers: Sequence[Observer]
) -> tuple[AtomicModel, AtomicModel | None]:
    """`refine_together`, then everything in `finish`, which says what is returned."""
    return finish(seen, refine_together(seen, rough, refined, settings, observers), settings, observers)


def refine_together(
    seen: Seen, rough: AtomicModel, refined: RefinedMap, settings: Settings, observers: Sequence[Observer]
) -> AtomicModel:
    """Doubtful poses searched again with the atoms, then atoms and all poses refined together."""
    stack, _, noise = seen.part(seen.fitted)
    model = run_stage("atoms/poses", lambda: search_doubtful(seen, rough, refined, settings), observers)
    model, _ = with_robust_weights(model)
    return refine_model(stack, noise, model, settings.atoms, observers=observers, name="atoms/together")


def finish(
    seen: Seen, model: AtomicModel, settings: Settings, observers: Sequence[Observer]
) -> tuple[AtomicModel, AtomicModel | None]:
    """Atoms added or removed by likelihood, poses that stay behind searched once more, all refined, sigmas.

    Images that no pose explains weigh little. The second model has poses of the images that were left out, where they
    were searched on the way.
    """
    stack, _, noise = seen.part(seen.fitted)
    model = run_stage("atoms/count", lambda: settle_count(seen, model, settings), observers)
    behind = (excess(model) < _BEHIND) & (model.log_likelihood < _SHORT * model.expected)
    again = bool(behind.any()) and not bool(behind.all())
    left_out = None
    if again:
        model, left_out = run_stage("atoms/last-poses", lambda: search_last(seen, model, behind, settings), observers)
    weighted, _ = with_robust_weights(model)
    if again or bool(((weighted.weights < 0.5) != (model.weights < 0.5)).any()):
        model = refine_model(stack, noise, weighted, settings.atoms, observers=observers, name="atoms/last")
    return run_stage("atoms/sigmas", lambda: fisher(stack, noise, model, settings.atoms), observers), left_out


def settle_symmetry(
    seen: Seen, model: AtomicModel, settings: Settings, observers: Sequence[Observer]
) -> tuple[AtomicModel, Broken | None]:
    """What breaks the near symmetry of the atoms, where they have one that nobody asked for.

    Poses found with a model that is more symmetric than the particle mix images of its different sides.
    """
    operations = pseudo_symmetries(model.positions)
    if len(operations) == 1 or settings.symmetry != "C1":
        return model, None
    stack, _, noise = seen.part(seen.fitted)
    broken = run_stage(
        "atoms/symmetry", lambda: break_symmetry(stack, noise, model, operations, settings.atoms), observers
    )
    if not broken.believed:
        return model, broken
    if broken.certainty < _NAMED:  # poses taken as known would bias the atoms
        return broken.model, broken
    model = refine_model(stack, noise, broken.model, settings.atoms, observers=observers, name="atoms/asymmetric")
    return run_stage("atoms/asymmetric-sigmas", lambda: fisher(stack, noise, model, settings.atoms), observers), broken


def search_doubtful(seen: Seen, rough: AtomicModel, refined: RefinedMap, settings: Settings) -> AtomicModel:
    """The poses that the map hardly explains, searched over all orientations and shifts; the others as they are."""
    sure = certain(refined)
    doubtful = (~torch.isin(torch.arange(len(refined.poses), device=sure.device), sure)).nonzero()[:, 0]
    if not len(doubtful):
        return rough
    stack, _, noise = seen.part(seen.fitted[doubtful])
    found = search_poses(stack, noise, rough, settings.pose_search, poses=refined.poses[doubtful])
    return merged(rough, sure, found, doubtful)


def search_last(
    seen: Seen, model: AtomicModel, behind: Tensor, settings: Settings
) -> tuple[AtomicModel, AtomicModel | None]:
    """Images that stay ``behind`` (m,) the others searched once more, on a finer grid, with the refined atoms.

    The images that were left out are searched with them, because the references cost more than the images.
    """
    low, rest = behind.nonzero()[:, 0], (~behind).nonzero()[:, 0]
    stack, _, noise = seen.part(torch.cat((seen.fitted[low], seen.left_out)))
    finer = replace(
        settings.pose_search,
        sampling=0.85 * settings.pose_search.sampling,
        candidates=4 * settings.pose_search.candidates,
        finalists=2 * settings.pose_search.finalists,
    )
    known, anywhere = model.poses[low], unknown_poses(len(seen.left_out), model.positions)
    start = Poses(torch.cat((known.rotations, anywhere.rotations)), torch.cat((known.shifts, anywhere.shifts)))
    found = search_poses(stack, noise, model, finer, poses=start)
    number = torch.arange(len(found.weights), device=low.device)
    fitted, left_out = select_images(found, number[: len(low)]), select_images(found, number[len(low) :])
    return merged(select_images(model, rest), rest, fitted, low), left_out if len(left_out.weights) else None


def settle_count(seen: Seen, model: AtomicModel, settings: Settings) -> AtomicModel:
    """Atoms that the likelihood does not ask for removed, missing ones added."""
    stack, _, noise = seen.part(seen.fitted)
    return add_and_remove_atoms(stack, noise, model, refinement=settings.atoms).model


def score_left_out(
    seen: Seen,
    model: AtomicModel,
    found: AtomicModel | None,
    settings: Settings,
    observers: Sequence[Observer],
) -> AtomicModel:
    """The model with the poses of the images that were left out, and their likelihood; searched unless ``found``."""
    stack, _, noise = seen.part(seen.left_out)
    if found is not None:
        return run_stage("atoms/left-out", lambda: refit_poses(stack, noise, model, found, settings.atoms), observers)
    return run_stage("atoms/left-out", lambda: search_unseen(model, stack, noise, settings.pose_search), observers)


def compare_with_multislice(
    seen: Seen, model: AtomicModel, settings: Settings, observers: Sequence[Observer]
) -> MultisliceCheck | None:
    """Multislice images of the final atoms against measured ones, where that is asked for."""
    if not settings.multislice_images:
        return None
    stack, _, noise = seen.part(seen.fitted)
    count = settings.multislice_images
    return run_stage(
        "atoms/multislice", lambda: check_by_multislice(stack, noise, model, seen.fitted, count=count), observers
    )
