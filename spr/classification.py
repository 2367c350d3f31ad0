"""Classes of like views: annealed expectation maximisation over class, in-plane angle and shift.

Every class average is known only up to a Gaussian (`spr.class_averages`), and an image is scored against it with that
uncertainty: so an image gains nothing from its own noise in the average, a class of few images attracts few, and the
evidence says how many classes the images tell apart. The annealing begins with more classes than are wanted; then
classes that are one and the same, turned and shifted, are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.data import InputError
from common.iteration import Observer, State, run, step_generator
from common.parallel import sum_over_shards
from spr.ab_initio import trial_shifts
from spr.class_averages import (
    AveragePrior,
    as_sums,
    average_prior,
    posterior_averages,
    turned_orders,
    views_of_averages,
)
from spr.class_expectation import expect_classes
from spr.class_labels import FrameOrder, Labels, first_transitions, independent_labels, labels_in_time, shares_of
from spr.class_merging import ClassSums, best_merges, merge_classes
from spr.orientation_search import log_likelihoods, log_prior, temperature_for
from spr.ring_images import RingImages

_IMAGES_PER_CLASS = 20  # at the start, where the number of classes is left to the images
_MOST_CLASSES = 60
_QUIET = 3  # steps between two rounds of merging
_DIVISIONS = 2  # rounds of dividing every class in two or more, and merging again
_PARTS, _LEAST_DIVIDED = 3, 6  # classes that one class is divided into at first; images that it needs


@dataclass(frozen=True)
class ClassificationSettings:
    """How images are sorted into classes of like views.

    iterations : of the annealing, >= 2; merging takes some more.
    effective_poses : share of all poses (class, angle, shift) in play per image in the first iteration, in (0, 1].
    coarsest, finest : angstrom, the band; both 0: where the images hold most signal.
    shift_step : trial shifts, as a fraction of the finest spacing.
    """

    iterations: int = 30
    effective_poses: float = 0.01
    coarsest: float = 0.0
    finest: float = 0.0
    shift_step: float = 0.14

    def __post_init__(self) -> None:
        if self.iterations < 2:
            raise InputError(f"the classification has {self.iterations} iterations, expected at least 2")
        if not 0 < self.effective_poses <= 1:
            raise InputError(f"the share of poses in play is {self.effective_poses}, expected a number in (0, 1]")


@dataclass(frozen=True)
class MergingState:
    """quiet : steps since the last merge. divisions : rounds of dividing that were made.

    undivided : classes before the last of these.
    """

    quiet: int = 0
    divisions: int = 0
    undivided: int = 0


@dataclass(frozen=True)
class ClassificationState(State):
    """sums : (m, 2 s, k) and counts : (s, k) of the images of each class (`spr.orientation_search.Expectation`).

    shifts : (n, 2) where each image's particle was last seen, angstrom. label_evidence : (n, k) log likelihood of each
    class over temperature, when last looked at. shares : (k,) of the classes. transitions : (k, k) from frame to frame.
    temperature : of the last iteration. nats : evidence per image over no particle. n_classes : k.
    switch_rate : how often a frame is of another class than the one before. merging : how far the merging has come.
    """

    sums: Tensor
    counts: Tensor
    shifts: Tensor
    label_evidence: Tensor
    shares: Tensor
    transitions: Tensor
    temperature: float
    nats: float
    n_classes: int
    switch_rate: float
    merging: MergingState


@dataclass(frozen=True)
class ClassificationData:
    """images : n on rings. prior : of their class averages. frames : their order in time, where they are of a movie."""

    images: RingImages
    prior: AveragePrior
    frames: FrameOrder | None = None


def classification_data(images: RingImages, radius: float, frames: FrameOrder | None = None) -> ClassificationData:
    """Images with the prior of their averages. radius : of the disc that holds an average, angstrom."""
    return ClassificationData(images, average_prior(images, radius), frames)


def first_classes(wanted: int | None, n_images: int) -> int:
    """How many classes the annealing begins with: more than are wanted, as some find the same view."""
    if wanted is None:
        return max(2, min(_MOST_CLASSES, n_images // _IMAGES_PER_CLASS))
    return 1 if wanted == 1 else min(max(2 * wanted, wanted + 4), max(wanted, n_images // 3))


def start(data: ClassificationData, n_classes: int, *, seed: int) -> ClassificationState:
    """Every image in a random class at a random angle."""
    images = data.images
    n, k = len(images), n_classes
    generator = step_generator(seed, 0)
    label = torch.randint(k, (n,), generator=generator).to(images.centres.device)
    angle = 360 * torch.rand(n, generator=generator).to(images.centres)

    def of_shard(rows: Tensor) -> tuple[Tensor, ...]:
        rows = rows.to(label.device)
        orders = as_sums(turned_orders(images, rows, angle[rows], images.centres[rows]))
        member = torch.nn.functional.one_hot(label[rows], k).to(orders)
        return orders @ member, images.transfer[rows].square().mean(-1).T @ member

    sums, counts = sum_over_shards(of_shard, n, n_shards=4)
    even = torch.full((k,), 1 / k, device=sums.device, dtype=sums.dtype)
    none = torch.zeros(n, k, device=sums.device, dtype=sums.dtype)
    return ClassificationState(
        0, False, sums, counts, images.centres, none, even, first_transitions(k, even), 0.0, 0.0, k, 1.0, MergingState()
    )


def label_state(state: ClassificationState, data: ClassificationData) -> Labels:
    """What the last scores say of the classes of all images."""
    if data.frames is None:
        return independent_labels(state.label_evidence, state.shares)
    return labels_in_time(state.label_evidence, state.shares, state.transitions, data.frames)


def effective_poses(settings: ClassificationSettings, all_poses: int, iteration: int) -> float:
    """Falls geometrically from the first iteration to 1 in the last of the annealing."""
    first = max(1.0, settings.effective_poses * all_poses)
    return first ** max(0.0, 1 - iteration / (settings.iterations - 1))


def step(
    state: ClassificationState,
    data: ClassificationData,
    settings: ClassificationSettings,
    *,
    seed: int,
    wanted: int | None = None,
) -> ClassificationState:
    """One iteration: averages, their scores with images, the next sums; after the annealing, merging.

    wanted : classes in the end; None: as many as the images tell apart.
    """
    images = data.images
    views = views_of_averages(posterior_averages(state.sums, state.counts, data.prior), data.prior)
    labels = label_state(state, data)
    generator = step_generator(seed, state.iteration + 1)
    annealing = state.iteration < settings.iterations
    n = len(images)
    few = max(n // 2, min(n, 200)) if state.iteration < 0.7 * settings.iterations else n
    subset = torch.randperm(n, generator=generator)[:few].to(state.shifts.device)
    trials = trial_shifts(state.shifts[subset], settings.shift_step / float(images.frequencies.max()))
    temperature = 1.0
    if annealing:
        some = slice(0, 24)
        scores = log_likelihoods(images, subset[some], trials[some], views)[0]
        scores += log_prior(images, subset[some], trials[some])[:, :, None]
        target = effective_poses(settings, scores[:, 0].numel(), state.iteration)
        temperature = temperature_for(scores.transpose(0, 1).reshape(len(scores[0]), -1), target)
    found = expect_classes(images, subset, trials, views, labels.outside[subset], temperature)
    evidence = state.label_evidence.index_copy(0, subset, found.label_evidence)
    after = replace(
        state,
        iteration=state.iteration + 1,
        sums=found.sums,
        counts=found.counts,
        shifts=state.shifts.index_copy(0, subset, found.shifts),
        label_evidence=evidence,
        transitions=labels.transitions,
        switch_rate=labels.switch_rate,
        temperature=temperature,
        nats=float(found.nats.mean()),
    )
    if annealing:  # equal shares, lest the first class to find a view takes all images
        return after
    labels = label_state(after, data)
    return _merging(replace(after, shares=shares_of(labels.probability)), data, settings, labels, seed, wanted)


def _merging(
    state: ClassificationState,
    data: ClassificationData,
    settings: ClassificationSettings,
    labels: Labels,
    seed: int,
    wanted: int | None,
) -> ClassificationState:
    """Every few steps classes are merged, while there are too many, or while the evidence asks for it.

    When it asks for no more, every class is divided, in case the annealing put two views into one, and merging goes on.
    """
    merging = replace(state.merging, quiet=state.merging.quiet + 1)
    if merging.quiet < _QUIET:
        return replace(state, merging=merging)
    if state.n_classes > (wanted or 1):
        pairs = best_merges(state.sums, state.counts, labels.probability, data.images, data.prior, wanted)
        if pairs:
            merged = merge_classes(pairs, state.sums, state.counts, state.label_evidence, state.shares, data.images)
            return _with_classes(state, merged, replace(merging, quiet=0))
    if merging.divisions < _DIVISIONS and wanted != 1 and state.n_classes != merging.undivided:
        divided = _divided(state, data, settings, labels, seed)
        return _with_classes(state, divided, MergingState(0, merging.divisions + 1, state.n_classes))
    return replace(state, merging=merging, done=merging.quiet >= 2 * _QUIET)


def _with_classes(state: ClassificationState, classes: ClassSums, merging: MergingState) -> ClassificationState:
    k = len(classes.shares)
    return replace(
        state,
        sums=classes.sums,
        counts=classes.counts,
        label_evidence=classes.label_evidence,
        shares=classes.shares,
        transitions=first_transitions(k, classes.shares),
        n_classes=k,
        merging=merging,
    )


def _divided(
    state: ClassificationState, data: ClassificationData, settings: ClassificationSettings, labels: Labels, seed: int
) -> ClassSums:
    """Every class replaced by the classes that its images alone fall into."""
    label = labels.probability.argmax(1)
    parts = replace(settings, iterations=max(2, settings.iterations // 2))
    sums, counts, columns = [], [], []
    for number in range(state.n_classes):
        rows = (label == number).nonzero()[:, 0]
        if len(rows) < _LEAST_DIVIDED:
            sums.append(state.sums[..., number : number + 1])
            counts.append(state.counts[:, number : number + 1])
            columns.append(state.label_evidence[:, number : number + 1])
            continue
        images = data.images[rows]
        images = replace(images, centres=state.shifts[rows])
        few = ClassificationData(images, data.prior)
        own_seed = seed + 7919 * (number + 1)
        found = replace(start(few, _PARTS, seed=own_seed), merging=MergingState(divisions=_DIVISIONS))
        while not found.done:
            found = step(found, few, parts, seed=own_seed)
        sums.append(found.sums)
        counts.append(found.counts)
        # the others are as far from the parts as from the whole until they are looked at
        column = state.label_evidence[:, number : number + 1].expand(-1, found.n_classes)
        columns.append(column.index_copy(0, rows, found.label_evidence))
    total = torch.cat(counts, 1)
    shares = total.sum(0) + 1e-6 * total.sum()
    return ClassSums(torch.cat(sums, 2), total, torch.cat(columns, 1), shares / shares.sum())


def classify(
    data: ClassificationData,
    settings: ClassificationSettings,
    *,
    seed: int,
    wanted: int | None = None,
    name: str = "classes",
    observers: Sequence[Observer] = (),
) -> ClassificationState:
    """Sort images into classes of like views, from one random start; see the module.

    Parameters
    ----------
    wanted : how many classes, >= 1; None: as many as the images tell apart.
    name : of the run, for the observers.
    """
    first = start(data, first_classes(wanted, len(data.images)), seed=seed)
    return run(name, first, lambda state: step(state, data, settings, seed=seed, wanted=wanted), observers)
