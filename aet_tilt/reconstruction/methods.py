"""One door to all reconstruction methods, and the choice among them by images left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from aet_tilt.reconstruction import est, genfire, real_space, resire, sieve, sparse
from aet_tilt.reconstruction.problem import Problem, make_problem, r_factor, row_band, with_support
from aet_tilt.reconstruction.support import loose_support, tighten
from common.data import ImageStack, InputError, Poses, Volume
from common.iteration import Observer, run_stage

Method = Literal["sieve", "sparse", "resire", "genfire", "est", "sirt", "sart", "art", "cgls", "fbp"]
MethodOrAuto = Literal["auto", Method]
_TIE = 0.005  # relative difference of squared errors that says nothing: the method named first is taken
_BAND = 48  # rows that large boxes are judged by
_WIDTHS, _WEIGHTS = (0.55, 0.4, 0.75), (0.03, 0.1)  # tried; a step changes the held-out R1 by a few per mille


@dataclass(frozen=True)
class ReconstructionSettings:
    """How a volume is made.

    support : box (everything), loose (where the shadows allow) or tight (around a first reconstruction, then fixed).
    held_out_every : one of so many images is left out to judge methods, >= 2.
    """

    support: Literal["box", "loose", "tight"] = "tight"
    held_out_every: int = 7
    sieve: sieve.SieveSettings = field(default_factory=sieve.SieveSettings)
    sparse: sparse.SparseSettings = field(default_factory=sparse.SparseSettings)
    resire: resire.ResireSettings = field(default_factory=resire.ResireSettings)
    genfire: genfire.GenfireSettings = field(default_factory=genfire.GenfireSettings)
    est: est.EstSettings = field(default_factory=est.EstSettings)
    real_space: real_space.RealSpaceSettings = field(default_factory=real_space.RealSpaceSettings)

    def __post_init__(self) -> None:
        if self.held_out_every < 2:
            raise InputError(f"every {self.held_out_every}th image is left out, expected at least every 2nd to stay")
        if self.support not in ("box", "loose", "tight"):
            raise InputError(f"the support is {self.support!r}, expected box, loose or tight")


@dataclass(frozen=True)
class Candidate:
    """A method with its settings.

    held_out_error, held_out_r1 : of the images left out. label : what it is, in words.
    """

    method: Method
    settings: ReconstructionSettings
    held_out_error: float
    held_out_r1: float
    label: str


@dataclass(frozen=True)
class Choice:
    """The method that predicts best, or as well as the best. tried : all, best first. reason : one sentence."""

    method: Method
    settings: ReconstructionSettings
    tried: tuple[Candidate, ...]
    reason: str


def reconstruct_values(
    problem: Problem,
    method: Method,
    settings: ReconstructionSettings,
    *,
    name: str = "volume",
    observers: Sequence[Observer] = (),
) -> Tensor:
    """The map (d, d, d) of a problem by one method, units of the images per angstrom."""
    label = f"{name}/{method}"
    if method == "fbp":
        return real_space.filtered_back_projection(problem)
    if method == "sieve":
        return sieve.sieve(problem, settings.sieve, name=label, observers=observers).values
    if method == "sparse":
        return sparse.total_variation(problem, settings.sparse, name=label, observers=observers).values
    if method == "resire":
        return resire.resire(problem, settings.resire, name=label, observers=observers).values
    if method == "genfire":
        return genfire.genfire(problem, settings.genfire, name=label, observers=observers).values
    if method == "est":
        return est.equal_slope(problem, settings.est, name=label, observers=observers).values
    if method in ("sirt", "sart", "art", "cgls"):
        rays = replace(settings.real_space, method=method)
        return real_space.solve(problem, rays, name=label, observers=observers).values
    raise InputError(f"the method is {method!r}, expected auto or one of {', '.join(get_args(Method))}")


def find_support(problem: Problem, settings: ReconstructionSettings) -> Problem:
    """The problem with the support that the settings ask for."""
    if settings.support == "box":
        return problem
    loose = with_support(problem, loose_support(problem))
    if settings.support == "loose":
        return loose
    first = sieve.sieve(loose, replace(settings.sieve, iterations=15))
    return with_support(loose, tighten(first.values, loose.support))


def held_out(n: int, every: int) -> Tensor:
    """The numbers of the images left out: one of every so many, from the middle of the first lot."""
    return torch.arange(every // 2, n, every)


def held_out_scores(problem: Problem, method: Method, settings: ReconstructionSettings) -> tuple[float, float]:
    """How well the others predict the images left out.

    Returns
    -------
    The squared error over the squared measured values, and R1. Only scores of the same images, poses and projector
    compare. The squared error is least for the true mean of the counts; R1 is least for their median, so at few counts
    it rewards maps that are too low.

    Raises
    ------
    InputError : too few images to leave any out.
    """
    left_out, predicted = predict_left_out(problem, method, settings)
    error = float((predicted - left_out.images).square().sum() / left_out.images.square().sum())
    return error, r_factor(predicted, left_out.images)


def predict_left_out(problem: Problem, method: Method, settings: ReconstructionSettings) -> tuple[Problem, Tensor]:
    """The problem of the images left out, and these images as the volume of the others predicts them.

    Raises
    ------
    InputError : too few images to leave any out.
    """
    n = len(problem.operator)
    out = held_out(n, settings.held_out_every).to(problem.images.device)
    if not len(out) or len(out) == n:
        raise InputError(
            f"{n} images and every {settings.held_out_every}th left out, expected at least one in and one out"
        )
    kept = torch.ones(n, dtype=torch.bool, device=problem.images.device)
    kept[out] = False
    values = reconstruct_values(problem.subset(kept.nonzero().flatten()), method, settings, name="held-out")
    left_out = problem.subset(out)
    return left_out, left_out.operator.project(values)


def held_out_r1(problem: Problem, method: Method, settings: ReconstructionSettings) -> float:
    """R1 of the images left out, predicted from the others; see :func:`held_out_scores`."""
    return held_out_scores(problem, method, settings)[1]


def _candidates(problem: Problem, settings: ReconstructionSettings) -> list[tuple[Method, ReconstructionSettings, str]]:
    tried: list[tuple[Method, ReconstructionSettings, str]] = [
        ("sieve", replace(settings, sieve=replace(settings.sieve, width=width)), f"sieve of {width} voxels")
        for width in _WIDTHS
    ]
    tried += [
        ("sparse", replace(settings, sparse=replace(settings.sparse, weight=weight)), f"total variation of {weight}")
        for weight in _WEIGHTS
    ]
    if problem.images.shape[1] == problem.images.shape[2]:  # GENFIRE wants the whole box
        tried.append(("genfire", settings, "GENFIRE"))
    return [*tried, ("resire", settings, "RESIRE"), ("sirt", settings, "SIRT")]


def choose_method(problem: Problem, settings: ReconstructionSettings | None = None) -> Choice:
    """The method that best predicts images left out.

    Parameters
    ----------
    problem : n >= 8 images; in large boxes of tilts about y the middle rows are judged.
    settings : those of the methods; the sieve's width and the weight of the total variation are chosen as well.

    Returns
    -------
    The choice, by squared error, with the scores of every method tried. With fewer than 8 images the sieve, unjudged.
    """
    given = settings or ReconstructionSettings()
    n = len(problem.operator)
    if n < 8:
        return Choice("sieve", given, (), f"sieve: {n} images are too few to leave any out and judge methods by them")
    band = row_band(problem, _BAND) if problem.images.shape[-1] > 2 * _BAND + 32 else problem
    tried = [
        Candidate(method, own, *held_out_scores(band, method, own), label)
        for method, own, label in _candidates(band, given)
    ]
    least = min(candidate.held_out_error for candidate in tried)
    best = next(candidate for candidate in tried if candidate.held_out_error <= (1 + _TIE) * least)
    tried.sort(key=lambda candidate: candidate.held_out_error)
    other = next((candidate for candidate in tried if candidate.method != best.method), best)
    reason = (
        f"{best.label} predicts the images left out with a squared error of {best.held_out_error:.4f} "
        f"(R1 {best.held_out_r1:.4f}), the best other method, {other.label}, with {other.held_out_error:.4f} "
        f"(R1 {other.held_out_r1:.4f}); differences below {_TIE:.1%} count as ties and go to the sieve"
    )
    return Choice(best.method, best.settings, tuple(tried), reason)


def reconstruct_volume(
    stack: ImageStack,
    poses: Poses,
    method: Method | Literal["auto"] = "auto",
    settings: ReconstructionSettings | None = None,
    observers: Sequence[Observer] = (),
    *,
    support: Tensor | None = None,
) -> Volume:
    """The volume of a tilt series.

    Parameters
    ----------
    stack : n images (n, d, d) without background.
    poses : their poses, any rotations and shifts; tilts about y are much faster.
    method : one of :data:`Method`, or auto: :func:`choose_method`.
    support : (d, d, d) of 0 and 1, instead of the one that would be found.

    Returns
    -------
    Volume (d, d, d), units of the images per angstrom: its projections are the images.

    Raises
    ------
    InputError : no images, images and poses do not fit, or the method is unknown.
    """
    given = settings or ReconstructionSettings()
    if method != "auto" and method not in get_args(Method):
        raise InputError(f"the method is {method!r}, expected auto or one of {', '.join(get_args(Method))}")
    problem = make_problem(stack, poses, support)
    if support is None:
        problem = find_support(problem, given)
    if method == "auto":
        choice = run_stage("volume/choice", lambda: choose_method(problem, given), observers)
        method, given = choice.method, choice.settings
    values = reconstruct_values(problem, method, given, observers=observers)
    return Volume(values, stack.pixel_size)
