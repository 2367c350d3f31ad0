"""From images of identical particles in unknown orientations to atoms with error bars: the whole road.

Each stage is a function of what the one before it returned; `reconstruct` is all of them in a row.
"""

from __future__ import annotations

from collections.abc import Sequence

from ase import Atoms

from common.atoms.model import AtomicModel
from common.atoms.refinement import refine_atoms as refine_atoms_against_images
from common.atoms.tracing import TraceResult, find_atoms
from common.data import ImageStack, Poses
from common.iteration import Observer
from spr.atom_stages import compare_with_multislice, finish, fit_atoms, improve, score_left_out, settle_symmetry
from spr.consensus import Consensus
from spr.final_maps import final_maps
from spr.map_stages import find_band, find_map, look_at, refine_from, refine_poses, symmetry_of
from spr.multislice_check import check_can_run
from spr.refinement import RefinedMap, map_of_poses
from spr.result import Reconstruction, Stages, conclude
from spr.seen import Seen
from spr.settings import Settings

__all__ = ["Settings", "find_volume", "reconstruct", "refine_atoms", "refine_volume"]


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
