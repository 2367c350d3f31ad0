"""The road's second half: atoms of a map, refined with their poses, counted, and judged on images left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from ase import Atoms
from torch import Tensor

from common.atoms.atom_count import add_and_remove_atoms
from common.atoms.fisher import fisher
from common.atoms.model import AtomicModel
from common.atoms.pose_search import search_poses
from common.atoms.pseudo_symmetry import pseudo_symmetries
from common.atoms.refinement import refine_atoms as refine_atoms_against_images
from common.atoms.refinement import refine_model, refit_poses
from common.atoms.symmetry_breaking import Broken, break_symmetry, in_like_pose, symmetrised
from common.atoms.validation import excess, search_unseen, unknown_poses, with_robust_weights
from common.atoms.verification import MultisliceCheck
from common.data import Poses
from common.iteration import Observer, run_stage, step_generator, under
from common.rotations import geodesic_distance
from spr.model_parts import merged, select_images
from spr.multislice_check import check_by_multislice
from spr.refinement import RefinedMap
from spr.seen import Seen
from spr.settings import Settings

_CERTAIN = 0.8  # weight of an image in the map, from which its pose is taken as found
_BEHIND = -1.5  # standard deviations; an image that its pose explains so much worse than most ...
_SHORT = 0.9  # ... and less than this share of what is to be expected, is searched again
_SAMPLE = 64  # other images that are searched with them
_TURNED, _BETTER = 5.0, 5.0  # degrees and nats, from which such a search has found a wrong pose ...
_MANY = 0.05  # ... and share of the sample from which all images are searched
_ROUNDS = 10  # of that, at most
_NAMED = 0.98  # mean posterior of the images' operations, from which a near symmetry leaves no doubt about poses


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
    """Atoms added or removed by likelihood, poses searched once more where they may be wrong, all refined, sigmas.

    Images that no pose explains weigh little. The second model has poses of the images that were left out, where they
    were searched on the way.
    """
    stack, _, noise = seen.part(seen.fitted)
    model = run_stage("atoms/count", lambda: settle_count(seen, model, settings), observers)
    before = model.weights
    model, left_out, turned = settle_poses(seen, model, settings, observers)
    weighted, _ = with_robust_weights(model)
    if turned or bool(((weighted.weights < 0.5) != (before < 0.5)).any()):
        model = refine_model(stack, noise, weighted, settings.atoms, observers=observers, name="atoms/last")
    return run_stage("atoms/sigmas", lambda: fisher(stack, noise, model, settings.atoms), observers), left_out


def settle_poses(
    seen: Seen, model: AtomicModel, settings: Settings, observers: Sequence[Observer]
) -> tuple[AtomicModel, AtomicModel | None, bool]:
    """Images that stay behind searched once more, and all of them where a sample shows that many poses were wrong.

    A particle of which most maps onto itself, as a crystal does turned by its lattice, has poses that nearly fit. A map
    of images in such poses gives atoms that are right for the most part, with which a search mends many poses; the
    atoms refined after it mend more.

    Returns
    -------
    The model, poses of the images that were left out, and whether any pose of the model changed.
    """
    stack, _, noise = seen.part(seen.fitted)
    turned, number = False, 0
    while True:
        number += 1
        name = "atoms/last-poses" if number == 1 else f"atoms/last-poses-{number}"
        behind = (excess(model) < _BEHIND) & (model.log_likelihood < _SHORT * model.expected)
        others = (~behind).nonzero()[:, 0]
        if not len(others):
            return model, None, turned
        drawn = torch.randperm(len(others), generator=step_generator(settings.seed, 2 + number))[:_SAMPLE]
        sample = others[drawn.to(others.device)]
        looked_at = behind.index_fill(0, sample, True)
        found, left_out = run_stage(name, partial(search_last, seen, model, looked_at, settings), observers)
        wrong = was_wrong(model, found)
        turned = turned or bool(behind.any()) or bool(wrong.any())
        if float(wrong[sample].double().mean()) <= _MANY or number == _ROUNDS:
            return found, left_out, turned
        model = run_stage(f"{name}/all", partial(search_poses, stack, noise, found, settings.pose_search), observers)
        model, _ = with_robust_weights(model)
        model = refine_model(stack, noise, model, settings.atoms, observers=observers, name=f"{name}/refined")
        model = run_stage(f"{name}/count", partial(settle_count, seen, model, settings), observers)


def was_wrong(before: AtomicModel, after: AtomicModel) -> Tensor:
    """(m,) booleans: images that a pose explains clearly better which is not the one that they had.

    Poses that differ by an operation under which the atoms stay nearly the same count as one.
    """
    alike = in_like_pose(before.poses.rotations[:, None].double(), pseudo_symmetries(before.positions).matrices)
    turn = geodesic_distance(alike, after.poses.rotations[:, None].double()).amin(1)
    gain = after.log_likelihood - before.log_likelihood
    # a search fits each image in a band of its own: what the images gain by that, those that stay show
    stays = (turn <= _TURNED) & (gain != 0)
    return (turn > _TURNED) & (gain - (gain[stays].median() if bool(stays.any()) else 0.0) > _BETTER)


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
        # each image took the operation that suits its noise best; the atoms that fit them follow that noise
        even = replace(model, parameters=symmetrised(model.parameters, operations))
        fitted = run_stage("atoms/averaged", lambda: refit_poses(stack, noise, even, even, settings.atoms), observers)
        return replace(
            fitted,
            covariance=model.covariance,
            position_sigma=model.position_sigma,
            cramer_rao_pm=model.cramer_rao_pm,
        ), broken
    counted = run_stage("atoms/asymmetric-count", partial(settle_count, seen, broken.model, settings), observers)
    if len(counted.positions) != len(model.positions):  # atoms that no image could show before their poses were named
        model = refine_model(stack, noise, counted, settings.atoms, observers=observers, name="atoms/asymmetric")
        return finish(seen, model, settings, under("asymmetric", observers))[0], broken
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
    """The images ``behind`` (m,) searched once more, on a finer grid, with the refined atoms.

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
