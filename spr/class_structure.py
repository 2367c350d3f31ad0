"""One structure out of images of several, from nothing, and the pose of every image under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.atoms.model import AtomicModel
from common.atoms.pose_search import search_poses
from common.atoms.tracing import find_atoms
from common.atoms.validation import unknown_poses
from common.data import InputError
from common.iteration import Observer, under
from spr import atom_stages, map_stages
from spr.class_search import agree_on_one
from spr.mixture import Mixture, poses_by_own
from spr.model_parts import all_but, merged
from spr.refinement import RefinedMap
from spr.seen import Seen
from spr.settings import Settings

_CLASS_STARTS = 5  # at most, of the search for several maps
_LEAST_ATOMS = 4


@dataclass(frozen=True)
class FoundStructure:
    """model : atoms and poses of the fitted images ``rows``. agreed : found from two random starts."""

    model: AtomicModel
    rows: Tensor
    agreed: bool


@dataclass(frozen=True)
class _Start:
    """A map's refinement, of the fitted images ``rows``."""

    refined: RefinedMap
    rows: Tensor
    agreed: bool


def find_structure(
    seen: Seen, rows: Tensor, settings: Settings, observers: Sequence[Observer], *, kinds: int
) -> FoundStructure | None:
    """A structure of the fitted images ``rows``, which may show particles of several kinds; None where there are no
    atoms.

    kinds : maps that are searched together where one map is not found; 1: none.
    """
    start = find_start(replace(seen, fitted=seen.fitted[rows]), settings, observers, kinds=kinds)
    rows, refined = rows[start.rows], start.refined
    part = replace(seen, fitted=seen.fitted[rows])
    try:
        traced = find_atoms(refined.volume, settings.tracing_of_element())
    except InputError:
        return None
    if len(traced.atoms) < _LEAST_ATOMS:
        return None
    rough = atom_stages.fit_atoms(part, traced.atoms, refined, settings, observers)
    model = atom_stages.refine_together(part, rough, refined, settings, observers)
    return FoundStructure(model, rows, start.agreed)


def find_start(seen: Seen, settings: Settings, observers: Sequence[Observer], *, kinds: int) -> _Start:
    """A refined map: of all images where two starts agree on one in the strongest rings; else of the images of one
    class, where two starts for several maps agree on it; else what `spr.map_stages.find_map` finds in a wider band."""
    starts = settings.starts
    wide = max(starts.most - starts.narrow, starts.agreeing) if kinds > 1 and 0 < starts.narrow < starts.most else 0
    narrow = replace(starts, most=max(starts.narrow, starts.agreeing)) if wide else starts
    rings, grid, one = map_stages.find_map(seen, replace(settings, starts=narrow), observers)
    if not one.reached and kinds > 1:
        several = find_one_of_several(seen, settings, observers, kinds)
        if several is not None:
            return several
    if not one.reached and wide:
        rest = replace(settings, starts=replace(starts, most=wide, narrow=0))
        rings, grid, one = map_stages.find_map(seen, rest, under("wide", observers))
    every = torch.arange(len(seen.fitted), device=seen.fitted.device)
    return _Start(map_stages.refine_poses(seen, rings, grid, one, settings, observers), every, one.reached)


def find_one_of_several(seen: Seen, settings: Settings, observers: Sequence[Observer], kinds: int) -> _Start | None:
    """The refined map of one of several kinds of particle; None where no two starts agree on one."""
    found = agree_on_one(
        *map_stages.find_band(seen, settings),
        settings.search,
        settings.tracing_of_element(),
        replace(settings.starts, most=max(_CLASS_STARTS, settings.starts.agreeing)),
        kinds,
        seed=settings.seed,
        symmetry=map_stages.symmetry_of(settings),
        observers=observers,
    )
    if found is None or len(found.rows) < map_stages.LEAST_IMAGES:
        return None
    part = replace(seen, fitted=seen.fitted[found.rows])
    band = map_stages.find_band(part, settings)
    return _Start(map_stages.refine_from(found.values, found.poses, part, *band, settings, observers), found.rows, True)


def everywhere(seen: Seen, mixture: Mixture | None, found: FoundStructure, settings: Settings) -> AtomicModel:
    """The structure with all other fitted images, their poses searched; near those they have in ``mixture`` too."""
    rest = all_but(found.rows, len(seen.fitted))
    if not len(rest):
        return found.model
    if mixture is None:
        poses = unknown_poses(len(rest), found.model.positions)
    else:
        poses = poses_by_own(mixture, found.model, rest, mixture.classes[rest])
    stack, _, noise = seen.part(seen.fitted[rest])
    searched = search_poses(stack, noise, found.model, settings.pose_search, poses=poses)
    return merged(found.model, found.rows, searched, rest)
