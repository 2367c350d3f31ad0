"""Several structures in one stack: isomers of a cluster, or two kinds of particle.

One structure is found as if there were no other. Then, as long as the images ask for more: images that it does not
explain are searched for a structure of their own; or, where all are explained, they are split by the atoms that they
ask for. Atoms of every class and the class of every image, by the likelihood under each class's atoms, follow each
other until nothing changes. Images left out of all this decide whether a further class is believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from common.atoms.atom_count import AtomCountSettings, add_and_remove_atoms
from common.atoms.model import AtomicModel
from common.atoms.refinement import RefinementSettings
from common.atoms.validation import with_robust_weights
from common.data import ImageStack, InputError, Poses
from common.iteration import Observer, run_stage, under
from common.noise import NoiseModel
from spr import atom_stages, map_stages
from spr.class_differences import Differences, describe, differences
from spr.class_evidence import believed, evidence_of, left_out_likelihood
from spr.class_split import split_images
from spr.class_structure import everywhere, find_structure
from spr.final_maps import final_maps
from spr.mixture import Mixture, held_by, mixture_of, settle
from spr.model_parts import all_but, merged, select_images
from spr.refinement import map_of_poses
from spr.result import Reconstruction, Stages, conclude
from spr.seen import Seen
from spr.settings import Settings

_MOST = 6  # classes that "auto" tries at most
_FAINT = AtomCountSettings(smallest_height=0.1, closest=0.3)  # atoms that only some of the particles have
_STRONG = 1.5  # spread along a direction over that of particles that are alike, from which a class is split
_NEW_SHARE = 0.05  # of the images, unexplained ones that are searched for a structure of their own


@dataclass(frozen=True)
class ReconstructSettings(Settings):
    """How structures are found.

    classes : how many structures the images show, >= 1, or auto for as many as left-out images ask for.
    """

    classes: int | None = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is not None and self.classes < 1:
            raise InputError(f"{self.classes} classes are wanted, expected 1 or more, or auto")


@dataclass(frozen=True)
class ClassifiedStructures:
    """K structures, the largest class first.

    whole : verdict, warnings and numbers of the run, poses and columns of all images. structures : one for each class.
    members : for each class, rows of the input, from 0. posterior : (n, K). differences : of every pair of classes.
    """

    whole: Reconstruction
    structures: tuple[Reconstruction, ...]
    members: tuple[Tensor, ...]
    posterior: Tensor
    differences: tuple[Differences, ...]


def reconstruct_classes(
    stack: ImageStack, settings: ReconstructSettings, *, observers: Sequence[Observer] = ()
) -> ClassifiedStructures:
    """Find the structures in images of particles that are not all alike; parameters as `spr.pipeline.reconstruct`.

    Raises
    ------
    InputError : the images cannot be used, or they are fewer than 20 a class; one line.
    """
    if settings.classes is not None and map_stages.LEAST_IMAGES * settings.classes > len(stack):
        raise InputError(
            f"{settings.classes} classes of {len(stack)} images are wanted, expected at least "
            f"{map_stages.LEAST_IMAGES} images a class"
        )
    seen = map_stages.look_at(stack, settings)
    warnings = list(seen.warnings)
    every = torch.arange(len(seen.fitted), device=seen.fitted.device)
    found = find_structure(seen, every, settings, under("class-1", observers), kinds=settings.classes or 2)
    if found is None:
        why = "Not determined: no structure was found that explains the images."
        whole = Reconstruction(False, why, (*warnings, why), {"images": float(len(stack))})
        return ClassifiedStructures(whole, (), (), torch.zeros(len(stack), 0), ())
    agreed = found.agreed
    first = run_stage("class-1/everywhere", lambda: everywhere(seen, None, found, settings), observers)
    mixture, evidence = mixture_of([first]), [left_out_likelihood(seen, [first], settings, under("class-1", observers))]
    gains: list[tuple[float, float]] = []
    most = settings.classes or _MOST
    while len(mixture.models) < most:
        number = len(mixture.models) + 1
        name = f"class-{number}"
        proposal = propose(seen, mixture, settings, under(name, observers))
        if proposal is None:
            break
        proposed, found_again = proposal
        stack_, _, noise = seen.part(seen.fitted)
        trial = settle(stack_, noise, proposed, settings.atoms, settings.pose_search, observers, name)
        small = int(torch.bincount(trial.classes, minlength=number).min())
        likelihood = left_out_likelihood(seen, trial.models, settings, under(name, observers))
        gain, error = evidence_of(likelihood, trial.shares, evidence[-1], mixture.shares)
        if small < map_stages.LEAST_IMAGES or not believed(gain, error):
            if settings.classes is None or small < map_stages.LEAST_IMAGES:
                break
            warnings.append(
                f"Left-out images do not ask for class {number}: it gains {gain:.1f} +- {error:.1f} nats an image."
            )
        mixture, agreed = trial, agreed and found_again
        evidence.append(likelihood)
        gains.append((gain, error))
    if settings.classes is not None and len(mixture.models) < settings.classes:
        warnings.append(f"{settings.classes} classes were wanted, and only {len(mixture.models)} found.")
    if not agreed:
        warnings.append("Not all structures were found from two random starts: they rest on the likelihood alone.")
    return finish_classes(seen, mixture, evidence[-1], gains, warnings, settings, observers)


def propose(
    seen: Seen, mixture: Mixture, settings: ReconstructSettings, observers: Sequence[Observer]
) -> tuple[Mixture, bool] | None:
    """One class more: from images that no class explains, or else by splitting the class that is least alike.

    None where the number of classes is not given and nothing speaks for another one.
    """
    behind = mixture.behind.nonzero()[:, 0]
    if len(behind) >= max(map_stages.LEAST_IMAGES, _NEW_SHARE * len(mixture.posterior)):
        few = replace(settings, starts=replace(settings.starts, most=max(5, settings.starts.agreeing)))
        kinds = max(2, (settings.classes or 2) - len(mixture.models))
        found = find_structure(seen, behind, few, under("unexplained", observers), kinds=kinds)
        if found is not None:
            model = run_stage("everywhere", lambda: everywhere(seen, mixture, found, settings), observers)
            return mixture_of([*mixture.models, model]), found.agreed
    divided, strength = split_class(seen, mixture, settings, observers)
    return None if settings.classes is None and strength < _STRONG else (divided, True)


def split_class(
    seen: Seen, mixture: Mixture, settings: Settings, observers: Sequence[Observer]
) -> tuple[Mixture, float]:
    """The class whose images differ most becomes two, and how strongly they differ.

    Atoms that only some of the particles have are sought first.
    """
    found: list[tuple[float, int, Tensor, AtomicModel, Tensor]] = []
    for k, parent in enumerate(mixture.models):
        rows = (mixture.classes == k).nonzero()[:, 0]
        stack, _, noise = seen.part(seen.fitted[rows])
        few, _ = with_robust_weights(select_images(parent, rows))
        faint = run_stage(
            f"faint-{k + 1}",
            partial(with_faint_atoms, stack, noise, few, settings.atoms),
            observers,
        )
        split = run_stage(
            f"split-{k + 1}",
            partial(split_images, stack, noise, faint, settings.atoms),
            observers,
        )
        found.append((split.strength, k, rows, faint, split.second))
    strength, k, rows, faint, second = max(found, key=lambda one: one[0])
    whole = merged_poses(faint, rows, mixture.models[k])
    models = [*mixture.models[:k], whole, *mixture.models[k + 1 :], whole]
    posterior = torch.cat((mixture.posterior, torch.zeros_like(mixture.posterior[:, :1])), 1)
    posterior[rows[second], -1] = posterior[rows[second], k]
    posterior[rows[second], k] = 0
    return Mixture(tuple(models), posterior, posterior.mean(0)), strength


def with_faint_atoms(
    stack: ImageStack, noise: NoiseModel, model: AtomicModel, settings: RefinementSettings
) -> AtomicModel:
    """The model with atoms that only some of the particles have."""
    return add_and_remove_atoms(stack, noise, model, _FAINT, settings).model


def merged_poses(model: AtomicModel, rows: Tensor, parent: AtomicModel) -> AtomicModel:
    """The atoms of ``model`` with its own poses for the images ``rows`` and the parent's for all others."""
    rest = all_but(rows, len(parent.weights))
    return merged(model, rows, held_by(model, select_images(parent, rest)), rest) if len(rest) else model


def finish_classes(
    seen: Seen,
    mixture: Mixture,
    left_out: Tensor,
    gains: Sequence[tuple[float, float]],
    warnings: Sequence[str],
    settings: ReconstructSettings,
    observers: Sequence[Observer],
) -> ClassifiedStructures:
    """Maps, sigmas and checks of every class, and what differs between them."""
    n, count = len(seen.stack), len(mixture.models)
    posterior = mixture.posterior.new_zeros(n, count).index_copy(0, seen.fitted, mixture.posterior)
    unseen = torch.softmax(left_out + mixture.shares.log(), 1)
    posterior = posterior.index_copy(0, seen.left_out, unseen.to(posterior))
    order = torch.argsort(torch.bincount(posterior.argmax(1), minlength=count), descending=True, stable=True)
    posterior = posterior[:, order]
    members = tuple((posterior.argmax(1) == k).nonzero()[:, 0] for k in range(count))
    structures = tuple(
        class_result(seen, mixture.models[int(order[k])], members[k], settings, under(f"result-{k + 1}", observers))
        for k in range(count)
    )
    atoms = [structure.atoms for structure in structures]
    compared = tuple(
        differences(a, b, (i + 1, j + 1))
        for i, a in enumerate(atoms)
        for j, b in enumerate(atoms)
        if i < j and a is not None and b is not None
    )
    whole = together(seen, structures, members, posterior, compared, gains, warnings)
    return ClassifiedStructures(whole, structures, members, posterior, compared)


def class_result(
    seen: Seen, model: AtomicModel, members: Tensor, settings: Settings, observers: Sequence[Observer]
) -> Reconstruction:
    """Everything about one class, from the images that show it; ``model`` holds all fitted images."""
    own = torch.zeros(len(seen.stack), dtype=torch.bool, device=members.device).index_fill(0, members, True)
    place = torch.cumsum(own, 0) - 1
    rows = own[seen.fitted].nonzero()[:, 0]
    part = Seen(
        seen.stack[members],
        seen.white[members],
        seen.noise[members],
        seen.extent,
        place[seen.fitted[rows]],
        place[seen.left_out[own[seen.left_out]]],
        (),
    )
    few, _ = with_robust_weights(select_images(model, rows))
    done, found = atom_stages.finish(part, few, settings, observers)
    rings, grid = map_stages.find_band(part, settings)
    poses = Poses(done.poses.rotations.float(), done.poses.shifts.float())
    first = map_of_poses(rings, grid, poses, settings.refinement, symmetry=map_stages.symmetry_of(settings))
    refined = map_stages.refine_from(first, poses, part, rings, grid, settings, observers)
    left_out = atom_stages.score_left_out(part, done, found, settings, observers) if len(part.left_out) else None
    maps = final_maps(part, refined, done)
    return conclude(Stages(part, None, refined, None, done, left_out, maps), analysis=settings.analysis)


def together(
    seen: Seen,
    structures: Sequence[Reconstruction],
    members: Sequence[Tensor],
    posterior: Tensor,
    compared: Sequence[Differences],
    gains: Sequence[tuple[float, float]],
    warnings: Sequence[str],
) -> Reconstruction:
    """The run as a whole: one pose for every image, that under its class."""
    n, count = len(seen.stack), len(structures)
    order = torch.argsort(torch.cat(tuple(members)))
    rotations = torch.cat([s.poses.rotations for s in structures if s.poses is not None])[order]
    shifts = torch.cat([s.poses.shifts for s in structures if s.poses is not None])[order]
    columns = {
        name: torch.cat([s.image_columns[name] for s in structures])[order] for name in structures[0].image_columns
    }
    columns["rlnClassNumber"] = posterior.argmax(1) + 1
    columns["rlnMaxValueProbDistribution"] = posterior.max(1).values
    metrics: dict[str, float] = {"images": float(n), "classes": float(count)}
    said = list(warnings)
    for k, structure in enumerate(structures, start=1):
        metrics[f"class_{k}_images"] = float(len(members[k - 1]))
        metrics[f"class_{k}_mean_posterior"] = float(posterior[members[k - 1], k - 1].mean())
        for name in ("atoms", "position_sigma_median_pm", "resolution_fsc_0.143_angstrom", "nats_per_image"):
            if name in structure.metrics:
                metrics[f"class_{k}_{name}"] = structure.metrics[name]
        said += [f"Class {k}: {words}" for words in structure.warnings]
    for k, (gain, error) in enumerate(gains, start=2):
        metrics |= {f"held_out_gain_of_class_{k}_nats": gain, f"held_out_gain_of_class_{k}_error": error}
    determined = all(structure.determined for structure in structures)
    sizes = ", ".join(f"{len(rows)} images ({_atoms(s)})" for rows, s in zip(members, structures, strict=True))
    plural = "structure" if count == 1 else "structures"
    doubt = "" if determined else " With doubts, see the warnings."
    verdict = " ".join((f"{count} {plural}: {sizes}.{doubt}", *(describe(d) for d in compared)))
    return Reconstruction(
        determined, verdict, tuple(said), metrics, poses=Poses(rotations, shifts), image_columns=columns
    )


def _atoms(structure: Reconstruction) -> str:
    return "no atoms" if structure.atoms is None else f"{len(structure.atoms)} atoms"
