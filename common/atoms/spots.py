"""Atoms of a tilt series refined against the raw counts by maximum likelihood, together with every image's pose.

Fisher scoring: normal equations of all atoms solved by conjugate gradients, each image's own parameters eliminated
exactly; the noise and the spread of the poses are learned on the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from ase import Atoms
from torch import Tensor

from common.atoms.shared import rigid_motions
from common.atoms.spot_image import (
    EIGHT_PI2,
    OWN,
    CountNoise,
    SpotParameters,
    compared,
    image_batches,
    log_likelihood,
    moved,
)
from common.atoms.spot_noise import flat_noise, measure_noise
from common.atoms.spot_normal import Linearised, Shared, image_slope, linearise, own_step, own_variances
from common.atoms.spot_priors import learned_spread, own_precision, prior_merit, shared_prior
from common.atoms.spot_settings import SpotSettings
from common.atoms.spot_solver import AtomInformation, atom_information, solve
from common.atoms.spot_start import first_parameters
from common.data import ImageStack, InputError, Poses
from common.iteration import Observer, State, run
from common.parallel import map_over, sum_over


@dataclass(frozen=True)
class SpotState(State):
    """parameters : the best so far. noise : of the counts. spread : (4,) sigmas of angle (degrees), shift, log scale,
    blur. offset : (m, 7 + k) of the images' own parameters from where they began. merit : nats, higher is better.
    damping : of Levenberg. stride : rms of the last step of the atoms in units of their sigmas."""

    parameters: SpotParameters
    noise: CountNoise
    spread: Tensor
    offset: Tensor
    merit: float
    damping: float
    stride: float


def refine_spots(
    stack: ImageStack,
    poses: Poses,
    atoms: Atoms,
    settings: SpotSettings | None = None,
    *,
    first: SpotParameters | None = None,
    begun: SpotState | None = None,
    observers: Sequence[Observer] = (),
    name: str = "refine-spots",
) -> SpotState:
    """Refine atoms, poses, scales, blurs and backgrounds together against raw counts.

    Parameters
    ----------
    stack : m images of counts (or of any unit linear in them: the gain is measured), not denoised.
    poses : m poses, right to about a degree and half an atom's width.
    atoms : n atoms, right to about half their width; atoms of one symbol share a B factor.
    settings : `SpotSettings`.
    first : where to go on from, instead of from ``poses`` and ``atoms``.
    begun : a state of the same images, whose noise and offsets of the images' own parameters still hold.

    Returns
    -------
    The last state; `common.atoms.spot_model.spot_model` makes atoms with sigmas of it.

    Raises
    ------
    InputError : no atoms, or another number of poses than of images.
    """
    settings = settings or SpotSettings()
    begin = start(stack, poses, atoms, settings, first=first)
    if begun is not None:
        begin = replace(begin, noise=begun.noise, spread=begun.spread, offset=begun.offset)
    groups = groups_of(atoms, settings)
    return run(name, begin, lambda state: step(state, stack, groups, settings), observers)


def groups_of(atoms: Atoms, settings: SpotSettings) -> Tensor:
    """(n,) which atoms share a B factor."""
    if settings.b_factors == "each":
        return torch.arange(len(atoms))
    return torch.unique(torch.as_tensor(atoms.numbers.astype("int64")), return_inverse=True)[1]


def start(
    stack: ImageStack, poses: Poses, atoms: Atoms, settings: SpotSettings, *, first: SpotParameters | None = None
) -> SpotState:
    """The first state: heights alike, or as given in "peak_height"; scale and background of each image fitted."""
    if len(atoms) == 0:
        raise InputError("there are no atoms to refine, expected at least one; trace with a lower threshold")
    if len(poses) != len(stack):
        raise InputError(f"{len(poses)} poses for {len(stack)} images, expected one each")
    parameters = first or first_parameters(stack, poses, atoms, settings)
    spread = torch.tensor(
        [settings.angle_sigma, settings.shift_sigma, settings.scale_sigma, settings.blur_sigma], dtype=torch.float64
    )
    m, k = parameters.backgrounds.shape
    noise = measure_noise(parameters, stack, flat_noise(stack), misfit=settings.misfit)
    if first is None:
        # where a rough model expects next to nothing, single counts would weigh without bound
        doubt = 0.3 * noise.gain * stack.images[:, stack.inside].double().mean(1).clamp(min=0)
        noise = replace(noise, read=torch.maximum(noise.read, doubt))
    return SpotState(
        iteration=0,
        done=settings.max_steps == 0,
        parameters=parameters,
        noise=noise,
        spread=spread.to(stack.images.device),
        offset=torch.zeros(m, OWN + k, dtype=torch.float64, device=stack.images.device),
        merit=-math.inf,
        damping=1e-3,
        stride=math.inf,
    )


def step(state: SpotState, stack: ImageStack, groups: Tensor, settings: SpotSettings) -> SpotState:
    """One step of Fisher scoring (Levenberg-Marquardt): solve, move, and keep it if the likelihood rises."""
    here = state.parameters
    precision = own_precision(state.spread, stack, here.backgrounds.shape[1])
    system = linearised(state, stack, groups, settings, damping=state.damping)
    right = image_slope(system) + shared_prior(here, system) * -1.0
    alone = atom_information(system)
    change, _ = solve(system, alone, right, damping=state.damping, tolerance=0.05, most=settings.products)
    change = limited(change, here, stack.pixel_size)
    own = own_step(system, change)
    widening = change.widening[system.groups]
    rise = change.atoms[:, 0] + here.heights * widening / (2 * here.b_factors / EIGHT_PI2)
    there = moved(here, torch.cat((rise[:, None], change.atoms[:, 1:]), 1), widening, own)
    offset = state.offset + own
    rise_of_prior = prior_merit(offset, precision) - prior_merit(state.offset, precision)
    better = gained(here, there, stack, state.noise, settings.batch_size) + rise_of_prior > -1e-3
    stride = stride_of(change, here.positions, alone)
    last = state.iteration + 1 >= settings.max_steps or state.damping > 1e5
    if not better:
        return replace(state, iteration=state.iteration + 1, damping=max(state.damping * 30, 1e-2), done=last)
    settled = stride < settings.tolerance and state.damping < 1
    spread = state.spread
    if settings.learn_spread:
        spread = learned_spread(state.spread, offset, own_variances(system))
    there, offset = recentred(there, offset)
    noise = measure_noise(there, stack, state.noise, misfit=settings.misfit, batch_size=settings.batch_size)
    return SpotState(
        iteration=state.iteration + 1,
        done=settled or last,
        parameters=there,
        noise=noise,
        spread=spread,
        offset=offset,
        merit=float(image_likelihoods(there, stack, noise, settings.batch_size).sum()) + prior_merit(offset, precision),
        damping=max(state.damping / 10, 1e-6),
        stride=stride,
    )


def linearised(
    state: SpotState, stack: ImageStack, groups: Tensor, settings: SpotSettings, *, damping: float = 0.0
) -> Linearised:
    """The normal equations at a state."""
    here = state.parameters
    groups = groups.to(here.heights.device)
    count = int(groups.max()) + 1
    wide = here.heights.new_zeros(count)
    if settings.b_factors == "each":
        wide = (settings.b_factor_sigma * here.b_factors / EIGHT_PI2) ** -2
    return linearise(
        here,
        stack,
        state.noise,
        groups=groups,
        precision=Shared(here.heights.new_zeros(len(here.heights), 4), wide),
        own_precision=own_precision(state.spread, stack, here.backgrounds.shape[1]),
        own_offset=state.offset,
        batch_size=settings.batch_size,
        damping=damping,
    )


def image_likelihoods(parameters: SpotParameters, stack: ImageStack, noise: CountNoise, batch_size: int) -> Tensor:
    """(m,) nats of each image."""
    batches = image_batches(len(parameters.scales), batch_size, parameters.scales.device)
    return map_over(lambda rows: (log_likelihood(compared(parameters, stack, rows), noise.images(rows)),), batches)[0]


def gained(here: SpotParameters, there: SpotParameters, stack: ImageStack, noise: CountNoise, batch_size: int) -> float:
    """Nats that the images gain from here to there, with the variance of here where the model is not exact."""
    inexact = float(noise.misfit.max()) > 0

    def of_images(rows: Tensor) -> tuple[Tensor]:
        old, new = (compared(p, stack, rows) for p in (here, there))
        part = noise.images(rows)
        if not inexact:
            return ((log_likelihood(new, part) - log_likelihood(old, part)).sum(),)
        weight = old.inside / part.variance(old.expected, old.signal)
        squares = [(model.images - model.expected).square() for model in (old, new)]
        return ((squares[0] - squares[1]).mul(weight).double().sum() / 2,)

    return float(sum_over(of_images, image_batches(len(here.scales), batch_size, here.scales.device))[0])


def limited(change: Shared, here: SpotParameters, pixel_size: float) -> Shared:
    """The step with no atom moved by more than half its width."""
    width = (here.b_factors / EIGHT_PI2).sqrt()
    length = torch.linalg.vector_norm(change.atoms[:, 1:], dim=1)
    shrink = (0.7 * width / length.clamp(min=1e-12)).clamp(max=1.0)
    height = 0.5 * here.heights.median()
    atoms = torch.cat((change.atoms[:, :1].clamp(-height, height), change.atoms[:, 1:] * shrink[:, None]), 1)
    reach = 0.3 * float(here.b_factors.median()) / EIGHT_PI2
    return Shared(atoms, change.widening.clamp(-reach, reach))


def stride_of(change: Shared, positions: Tensor, alone: AtomInformation) -> float:
    """Rms step of the atoms (positions (n, 3)) in units of their sigmas, rigid motions left out."""
    rigid, flat = rigid_motions(positions), change.atoms[:, 1:].flatten()
    place = (flat - rigid @ (rigid.T @ flat)).reshape(-1, 3)
    return math.sqrt(float(torch.einsum("ni,nij,nj->n", place, alone.blocks[:, 1:, 1:], place).mean()) / 3)


def recentred(parameters: SpotParameters, offset: Tensor) -> tuple[SpotParameters, Tensor]:
    """The same images with scales of mean 1 and blurs of mean 0; what all images share belongs to the atoms."""
    scale, blur = torch.log(parameters.scales).mean(), parameters.blurs.mean()
    moved_on = replace(
        parameters,
        scales=parameters.scales / torch.exp(scale),
        heights=parameters.heights * torch.exp(scale),
        blurs=parameters.blurs - blur,
        b_factors=(parameters.b_factors + EIGHT_PI2 * blur).clamp(min=1.0),
    )
    shared = torch.zeros_like(offset)
    shared[:, 5:7] = offset[:, 5:7].mean(0)
    return moved_on, offset - shared
