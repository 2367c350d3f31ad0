"""Several models of atoms for one stack of images: which image shows which, by the likelihood of each under each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from common.atoms.atom_count import add_and_remove_atoms
from common.atoms.likelihood import Parameters, Views, views_of
from common.atoms.model import AtomicModel, evaluate
from common.atoms.pose_fit import fit_views
from common.atoms.pose_search import PoseSearchSettings, search_poses
from common.atoms.refinement import prepare, refine_model
from common.atoms.shared import RefinementSettings, priors_of
from common.atoms.validation import with_robust_weights
from common.data import ImageStack, Poses
from common.iteration import Observer, run_stage
from common.noise import NoiseModel
from spr.model_parts import all_but, merged, select_images

_SHARE = 0.05  # of an image, below which a class does without it
_LOW_GAIN = 0.6  # of the likelihood to be expected, below which an image's pose is searched again


@dataclass(frozen=True)
class Mixture:
    """K structures and the images they share.

    models : K, each with a pose and a likelihood of every one of the m images.
    posterior : (m, K) probability that an image shows each structure; rows sum to 1.
    shares : (K,) of the images, sum 1.
    """

    models: tuple[AtomicModel, ...]
    posterior: Tensor
    shares: Tensor

    @property
    def classes(self) -> Tensor:
        """(m,) the likeliest structure of each image, from 0."""
        return self.posterior.argmax(1)

    @property
    def behind(self) -> Tensor:
        """(m,) booleans: images that their own structure explains badly."""
        index = torch.arange(len(self.posterior), device=self.posterior.device)
        gains = torch.stack([model.log_likelihood for model in self.models], 1)[index, self.classes]
        expected = torch.stack([model.expected for model in self.models], 1)[index, self.classes]
        return gains < _LOW_GAIN * torch.maximum(expected, expected.median() / 2)


def class_posterior(log_likelihood: Tensor, *, rounds: int = 50) -> tuple[Tensor, Tensor]:
    """Posterior (m, K) over classes and their shares (K,) from log-likelihoods (m, K), nats: EM on the shares."""
    count = log_likelihood.shape[1]
    shares = log_likelihood.new_full((count,), 1 / count)
    posterior = torch.softmax(log_likelihood, 1)
    for _ in range(rounds):
        shares = posterior.mean(0).clamp(min=1e-6)
        shares = shares / shares.sum()
        posterior = torch.softmax(log_likelihood + shares.log(), 1)
    return posterior, shares


def mixture_of(models: Sequence[AtomicModel]) -> Mixture:
    """The mixture of models that each hold all images."""
    return Mixture(tuple(models), *class_posterior(torch.stack([model.log_likelihood for model in models], 1)))


def mixed_likelihood(log_likelihood: Tensor, shares: Tensor) -> Tensor:
    """(m,) nats: of each image under the mixture, from those under each class (m, K)."""
    return torch.logsumexp(log_likelihood + shares.log(), 1)


def places_in(model: AtomicModel, other: AtomicModel, rows: Tensor) -> Poses:
    """Where the particles of ``rows`` are by ``model``, as poses of ``other``, whose origin may lie elsewhere."""
    rotations = model.parameters.rotations[rows]
    middle = model.parameters.shifts[rows] + (rotations @ model.positions.mean(0))[:, :2]
    return Poses(rotations, middle - (rotations @ other.positions.mean(0))[:, :2])


def held_by(model: AtomicModel, parent: AtomicModel) -> AtomicModel:
    """The atoms of ``model`` in the poses of all images of ``parent``."""
    p, q = model.parameters, parent.parameters
    moved = replace(p, rotations=q.rotations, shifts=q.shifts, gains=q.gains, defocus=q.defocus)
    scores = {name: getattr(parent, name) for name in ("weights", "log_likelihood", "expected", "correlation")}
    return replace(model, parameters=moved, **scores)


def fit_poses(
    stack: ImageStack, noise: NoiseModel, model: AtomicModel, settings: RefinementSettings, *, iterations: int = 4
) -> AtomicModel:
    """The model with every image's pose, contrast and focus fitted from where they are; the atoms stay."""
    data = prepare(stack, noise, model.parameters, settings)[1]
    rows = torch.arange(len(stack), device=data.level.device)
    views, _ = fit_views(
        model.parameters,
        views_of(model.parameters),
        data,
        rows,
        priors=priors_of(settings),
        iterations=iterations,
        batch_size=settings.batch_size,
    )
    return evaluate(model.symbols, _with_views(model, views), data, model.weights, settings.batch_size)


def _with_views(model: AtomicModel, views: Views) -> Parameters:
    return replace(
        model.parameters, rotations=views.rotations, shifts=views.shifts, gains=views.gains, defocus=views.defocus
    )


def search_again(
    stack: ImageStack,
    noise: NoiseModel,
    model: AtomicModel,
    rows: Tensor,
    poses: Poses,
    settings: PoseSearchSettings,
) -> AtomicModel:
    """The model with the poses of the images ``rows`` searched over all orientations, ``poses`` among them."""
    if not len(rows):
        return model
    found = search_poses(stack[rows], noise[rows], model, settings, poses=poses)
    keep = all_but(rows, len(stack))
    better = found.log_likelihood > model.log_likelihood[rows]
    old = select_images(model, rows[~better])
    kept = merged(select_images(model, keep), keep.argsort().argsort(), old, len(keep) + torch.arange(len(old.weights)))
    new = select_images(found, better.nonzero()[:, 0])
    return merged(kept, torch.cat((keep, rows[~better])), new, rows[better])


def refine_class(
    stack: ImageStack,
    noise: NoiseModel,
    model: AtomicModel,
    share: Tensor,
    settings: RefinementSettings,
    observers: Sequence[Observer],
    name: str,
    *,
    count: bool,
) -> AtomicModel:
    """Atoms and poses of one class refined with the images that show it, then the poses of all others.

    share : (m,) posterior of the class. count : add and remove atoms.
    """
    rows = (share > _SHARE).nonzero()[:, 0]
    rest = (share <= _SHARE).nonzero()[:, 0]
    few, part = select_images(model, rows), (stack[rows], noise[rows])
    few, _ = with_robust_weights(few)
    few = replace(few, weights=few.weights * share[rows].to(few.weights))
    few = refine_model(*part, few, settings, observers=observers, name=f"{name}/atoms")
    if count:
        few = run_stage(f"{name}/count", lambda: add_and_remove_atoms(*part, few, refinement=settings).model, observers)
    if not len(rest):
        return few
    others = held_by(select_images(few, torch.arange(0)), select_images(model, rest))
    others = run_stage(f"{name}/others", lambda: fit_poses(stack[rest], noise[rest], others, settings), observers)
    return merged(few, rows, others, rest)


def settle(
    stack: ImageStack,
    noise: NoiseModel,
    mixture: Mixture,
    atoms: RefinementSettings,
    search: PoseSearchSettings,
    observers: Sequence[Observer],
    name: str,
    *,
    rounds: int = 6,
) -> Mixture:
    """Atoms of every class, then the class of every image, in turn until less than one image in 300 changes class."""
    for number in range(1, rounds + 1):
        before = mixture.classes
        models = [
            refine_class(
                stack,
                noise,
                model,
                mixture.posterior[:, k],
                atoms,
                observers,
                f"{name}-round-{number}/class-{k + 1}",
                count=number <= 2,
            )
            for k, model in enumerate(mixture.models)
        ]
        mixture = mixture_of(models)
        mixture = search_behind(stack, noise, mixture, search, observers, f"{name}-round-{number}")
        if int((mixture.classes != before).sum()) * 300 < len(before) and number > 1:
            break
    return mixture


def search_behind(
    stack: ImageStack,
    noise: NoiseModel,
    mixture: Mixture,
    search: PoseSearchSettings,
    observers: Sequence[Observer],
    name: str,
) -> Mixture:
    """Images that their own class explains badly, searched over all poses of every class."""
    rows = mixture.behind.nonzero()[:, 0]
    if not len(rows):
        return mixture
    own = mixture.classes[rows]
    models = []
    for k, model in enumerate(mixture.models):
        poses = poses_by_own(mixture, model, rows, own)
        models.append(
            run_stage(
                f"{name}/class-{k + 1}/behind",
                partial(search_again, stack, noise, model, rows, poses, search),
                observers,
            )
        )
    return mixture_of(models)


def poses_by_own(mixture: Mixture, target: AtomicModel, rows: Tensor, own: Tensor) -> Poses:
    """Where the images ``rows`` stand by the class that each shows, for a search with ``target``."""
    places = [places_in(model, target, rows) for model in mixture.models]
    index = torch.arange(len(rows), device=rows.device)
    rotations = torch.stack([p.rotations for p in places], 1)[index, own]
    shifts = torch.stack([p.shifts for p in places], 1)[index, own]
    return Poses(rotations, shifts)
