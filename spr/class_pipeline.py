"""From particle images to class averages: which images show the same view, and how far each class can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from common.data import ImageStack, InputError, Poses
from common.iteration import Observer, run_stage, step_generator
from spr import map_stages
from spr.ab_initio import SearchSettings
from spr.class_assignment import Assignment, assign_classes
from spr.class_images import (
    RingCorrelation,
    WeightedSums,
    class_resolution,
    mean_correlation,
    ring_correlation,
    signal_power,
    sum_images,
    turn_images,
    wiener_averages,
)
from spr.class_labels import FrameOrder
from spr.class_merging import align_classes
from spr.classification import (
    ClassificationData,
    ClassificationSettings,
    ClassificationState,
    classification_data,
    classify,
)
from spr.final_maps import map_transfer
from spr.orientation_search import in_plane_rotations
from spr.seen import Seen
from spr.settings import Settings

_SIGNIFICANT = 3  # standard deviations of the mean ring correlation of a class that is more than chance
_UNLIKE = 5  # robust standard deviations below its class, from which an image does not belong there


@dataclass(frozen=True)
class ClassifySettings:
    """How classes are found.

    classes : how many, >= 1, or auto for as many as the images tell apart.
    seed : of all random numbers; the same seed gives the same result.
    in_time : the images are frames of movies in order of time: a frame is likely of the class of the one before.
    halves : classify two halves of the images by themselves, to see how far their averages agree.
    focal_spread : angstrom, rms, where the file gives none.
    annealing : of classes, angles and shifts.
    """

    classes: int | None = None
    seed: int = 0
    in_time: bool = False
    halves: bool = True
    focal_spread: float = 40.0
    annealing: ClassificationSettings = field(default_factory=ClassificationSettings)

    def __post_init__(self) -> None:
        if self.classes is not None and self.classes < 1:
            raise InputError(f"{self.classes} classes are wanted, expected 1 or more, or auto")


@dataclass(frozen=True)
class ClassTable:
    """What is known of each of k classes, the largest first.

    images : (k,) how many. nats : (k,) mean evidence of an image over no particle. correlation : (k,) mean ring
    correlation of independent halves in the band of the signal. resolution : angstrom, where they stop to agree.
    rejected : (k,) booleans: the halves agree no better than chance. Without halves NaN, NaN and False.
    """

    images: Tensor
    nats: Tensor
    correlation: Tensor
    resolution: Tensor
    rejected: Tensor


@dataclass(frozen=True)
class ClassifiedImages:
    """averages : (k, d, d) in the pixels of the images, in units of a projection. pixel_size : angstrom.

    label : (n,) class of each image, from 0. poses : turn in the plane and shift of an image against its average.
    columns : RELION columns of the images. kept : (n,) booleans, images that belong. table, frc : of the classes.
    verdict, warnings, metrics : in words and numbers.
    """

    averages: Tensor
    pixel_size: float
    label: Tensor
    poses: Poses
    columns: Mapping[str, Tensor]
    kept: Tensor
    table: ClassTable
    frc: RingCorrelation | None
    verdict: str
    warnings: tuple[str, ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class _Found:
    """One classification of some rows of the images."""

    state: ClassificationState
    data: ClassificationData
    assigned: Assignment
    rows: Tensor


def find_classes(
    stack: ImageStack,
    settings: ClassifySettings,
    *,
    frames: FrameOrder | None = None,
    observers: Sequence[Observer] = (),
) -> ClassifiedImages:
    """Sort particle images into classes of like views and average them.

    Parameters
    ----------
    stack : n images of one particle each, n >= 20, the particle within the middle two thirds of the box.
    settings : `ClassifySettings`.
    frames : the order of the images in time; used where ``settings.in_time``; None: the order of the stack.
    observers : see every state of every loop; they may resume a run.

    Raises
    ------
    InputError : the images cannot be used; one line.
    """
    given = settings.annealing
    search = SearchSettings(coarsest=given.coarsest, finest=given.finest)
    road = Settings(seed=settings.seed, focal_spread=settings.focal_spread, search=search)
    if settings.classes is not None and 2 * settings.classes > len(stack):
        raise InputError(f"{settings.classes} classes of {len(stack)} images are wanted, expected 2 images a class")
    seen = map_stages.look_at(stack, road, hold_out=False)
    images, grid = map_stages.find_band(seen, road)
    n = len(images)
    order = None
    if settings.in_time:
        order = frames or FrameOrder.of_frames(torch.arange(n))
    data = classification_data(images, grid.radius, order)
    whole = _find(data, settings, torch.arange(n, device=images.centres.device), settings.classes, 0, observers)
    k = whole.state.n_classes
    halves: list[_Found] = []
    if settings.halves and n >= 2 * map_stages.LEAST_IMAGES:
        mixed = torch.randperm(n, generator=step_generator(settings.seed, 1)).to(images.centres.device)
        for number, rows in enumerate((mixed[: n // 2].sort().values, mixed[n // 2 :].sort().values), start=1):
            part = replace(data, images=images[rows], frames=None if order is None else order.part(rows))
            halves.append(_find(part, settings, rows, k, number, observers))
    rank = torch.bincount(whole.assigned.label, minlength=k).argsort(descending=True, stable=True)
    label = rank.argsort()[whole.assigned.label]
    kept = _belonging(whole.assigned.nats, label, k)
    transfer = map_transfer(seen, torch.arange(n, device=label.device), None)
    radius = grid.radius / stack.pixel_size
    power = signal_power(seen.white.images, transfer, grid.disc_radius / stack.pixel_size)
    sums = _sums(seen, transfer, whole, label, kept.float(), k)
    averages = wiener_averages(sums, power, radius)
    low, high = float(images.frequencies[images.frequencies > 0.25].min()), float(images.frequencies.max())
    frc = None
    if halves:
        first, second = (_half_averages(seen, transfer, half, label, k, power, radius) for half in halves)
        turned = _onto(first[1], second[1], halves, data, second[0], stack.pixel_size)
        frc = ring_correlation(first[0], turned, radius, stack.pixel_size)
    table = _table(whole.assigned.nats, label, kept, k, frc, low, high)
    return _concluded(seen, whole, label, kept, averages, table, frc)


def _find(
    data: ClassificationData,
    settings: ClassifySettings,
    rows: Tensor,
    wanted: int | None,
    number: int,
    observers: Sequence[Observer],
) -> _Found:
    """The classes of the images, or of one of their halves; ``number`` 0 is the whole."""
    name = f"classes/half-{number}" if number else "classes/all"
    seed = 3 * settings.seed + number
    state = classify(data, settings.annealing, seed=seed, wanted=wanted, name=name, observers=observers)
    assigned = run_stage(f"{name}-images", lambda: assign_classes(state, data, settings.annealing), observers)
    return _Found(state, data, assigned, rows.to(assigned.label.device))


def _belonging(nats: Tensor, label: Tensor, n_classes: int) -> Tensor:
    """(n,) booleans: images that show a particle, and one like the others of their class.

    An empty image is likelier without any particle, given how many such there seem to be.
    """
    share = nats.new_tensor(0.5)
    for _ in range(50):
        empty = torch.sigmoid(torch.log(share / (1 - share)) - nats)
        share = empty.mean().clamp(1e-6, 1 - 1e-6)
    kept = empty < 0.5
    for k in range(n_classes):
        own = (label == k) & kept
        if int(own.sum()) < 5:
            continue
        middle = nats[own].median()
        spread = 1.4826 * (nats[own] - middle).abs().median()
        chance = torch.sqrt(2 * middle.clamp(min=0))  # of a log likelihood ratio of that mean
        kept &= ~((label == k) & (nats < middle - _UNLIKE * torch.maximum(spread, chance)))
    return kept


def _sums(seen: Seen, transfer: Tensor, found: _Found, label: Tensor, weights: Tensor, k: int) -> WeightedSums:
    pixel = seen.stack.pixel_size
    own, rows = found.assigned, found.rows
    return sum_images(seen.white.images[rows], transfer[rows], label, own.angles, own.shifts / pixel, weights, k)


def _half_averages(
    seen: Seen, transfer: Tensor, half: _Found, label: Tensor, k: int, power: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """Averages (k, d, d) of the classes of a half that share most images with each class, and their numbers (k,)."""
    n_own = half.state.n_classes
    member = torch.nn.functional.one_hot(label[half.rows], k).float()
    own = torch.nn.functional.one_hot(half.assigned.label, n_own).float()
    shared = member.T @ own
    union = member.sum(0)[:, None] + own.sum(0) - shared
    match = (shared / union.clamp(min=1)).argmax(1)
    ones = torch.ones(len(half.rows), device=label.device)
    sums = _sums(seen, transfer, half, half.assigned.label, ones, n_own)
    return wiener_averages(sums, power, radius)[match], match


def _onto(
    first: Tensor,
    second: Tensor,
    halves: Sequence[_Found],
    data: ClassificationData,
    averages: Tensor,
    pixel_size: float,
) -> Tensor:
    """The averages of the second half, turned and shifted onto those of the first."""
    a, b = (half.state for half in halves)
    k = len(first)
    sums = torch.cat((a.sums[..., first], b.sums[..., second]), 2)
    counts = torch.cat((a.counts[:, first], b.counts[:, second]), 1)
    onto = torch.zeros(2 * k, 2 * k, dtype=torch.bool, device=counts.device)
    number = torch.arange(k, device=counts.device)
    onto[k + number, number] = True
    lying = align_classes(sums, counts, data.images, data.prior, onto, partners=1)
    return turn_images(averages, lying.angles, lying.shifts / pixel_size)


def _table(
    nats: Tensor, label: Tensor, kept: Tensor, k: int, frc: RingCorrelation | None, low: float, high: float
) -> ClassTable:
    count = torch.bincount(label[kept], minlength=k)
    total = torch.zeros(k, device=nats.device).index_add(0, label[kept], nats[kept])
    mean = total / count.clamp(min=1)
    if frc is None:
        unknown = torch.full((k,), math.nan)
        return ClassTable(count.cpu(), mean.cpu(), unknown, unknown, count.cpu() < 1)
    correlation, chance = mean_correlation(frc, low, high)
    rejected = (correlation < _SIGNIFICANT * chance) | (count < 1)
    return ClassTable(count.cpu(), mean.cpu(), correlation.cpu(), class_resolution(frc, low, high), rejected.cpu())


def _concluded(
    seen: Seen,
    whole: _Found,
    label: Tensor,
    kept: Tensor,
    averages: Tensor,
    table: ClassTable,
    frc: RingCorrelation | None,
) -> ClassifiedImages:
    own = whole.assigned
    k, n = len(averages), len(label)
    bad = int(table.rejected.sum())
    selected = kept & ~table.rejected.to(kept.device)[label]
    probability = own.probability.gather(1, own.label[:, None])[:, 0]
    columns = {
        "rlnClassNumber": label + 1,
        "rlnLogLikeliContribution": own.nats,
        "rlnMaxValueProbDistribution": probability,
        "rlnSelected": selected.long(),
    }
    warnings = list(seen.warnings)
    if bad == k:
        warnings.append("No class is more than noise: the halves of every class agree no better than chance.")
    metrics = {
        "images": float(n),
        "classes": float(k),
        "classes_rejected": float(bad),
        "images_rejected": float(n - int(selected.sum())),
        "evidence_nats_per_image": float(own.nats.mean()),
        "class_probability_mean": float(probability.mean()),
    }
    if whole.data.frames is not None:
        metrics["switch_rate_per_frame"] = whole.state.switch_rate
    if frc is not None:
        metrics["ring_correlation_mean"] = float((table.correlation * table.images).sum() / table.images.sum())
    sure = "" if frc is None else f", {bad} of them no more than noise" if bad else ", all of them reproduced by halves"
    verdict = f"{k} classes of {n} images{sure}; {n - int(kept.sum())} images belong to none."
    return ClassifiedImages(
        averages,
        seen.stack.pixel_size,
        label,
        Poses(in_plane_rotations(own.angles), own.shifts),
        columns,
        selected,
        table,
        frc,
        verdict,
        tuple(warnings),
        metrics,
    )
