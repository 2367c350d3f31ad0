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
    basis_for,
    compared,
    image_batches,
    lay_out,
    log_likelihood,
    moved,
    signal_of,
)
from common.atoms.spot_noise import flat_noise, measure_noise
from common.atoms.spot_normal import (
    AtomInformation,
    Linearised,
    Shared,
    atom_information,
    image_slope,
    linearise,
    own_step,
    own_variances,
    solve,
)
from common.data import ImageStack, InputError, Poses
from common.iteration import Observer, State, run
from common.least_squares import least_squares
from common.parallel import map_over, sum_over

_LEAST_SPREAD = 1e-3  # of a prior's learned width, relative to the first


@dataclass(frozen=True)
class SpotSettings:
    """How atoms are refined against the images of a tilt series.

    b_factor : angstrom^2, first guess of all blur of an atom; 0: from the images.
    b_factors : shared (one for each group of atoms), or each (one for each atom).
    b_factor_sigma : relative, how much the B factors of single atoms vary within their group.
    angle_sigma : degrees, how far the angles may be off before the images say; 0 keeps them.
    shift_sigma : angstrom, how far the shifts may be off; 0 keeps them.
    scale_sigma : relative, how much the dose varies between images; 0 keeps it.
    blur_sigma : angstrom^2, how much the blur's variance varies between images; 0 keeps it the same for all.
    background_order : of the cosines along x and y that make up each image's background; 0: a constant.
    learn_spread : the four sigmas shrink to what the images show.
    misfit : tell what the model leaves out from counting noise.
    max_steps : most steps.
    products : most products with the normal matrix in a step.
    tolerance : the refinement ends when atoms move by less than this share of their sigmas (rms).
    batch_size : images at a time.
    """

    b_factor: float = 0.0
    b_factors: str = "shared"
    b_factor_sigma: float = 0.15
    angle_sigma: float = 0.3
    shift_sigma: float = 0.3
    scale_sigma: float = 0.1
    blur_sigma: float = 0.02
    background_order: int = 0
    learn_spread: bool = True
    misfit: bool = True
    max_steps: int = 20
    products: int = 25
    tolerance: float = 0.03
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.b_factors not in ("shared", "each"):
            raise InputError(f"b_factors is {self.b_factors!r}, expected shared or each")
        for name in ("b_factor", "angle_sigma", "shift_sigma", "scale_sigma", "blur_sigma"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{name} is {getattr(self, name)}, expected a number >= 0")
        if not 0 <= self.background_order <= 4:
            raise InputError(f"the background order is {self.background_order}, expected 0 to 4")


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


def first_parameters(stack: ImageStack, poses: Poses, atoms: Atoms, settings: SpotSettings) -> SpotParameters:
    """Parameters from a list of atoms; scales and backgrounds by least squares on each image."""
    device, m = stack.images.device, len(stack)
    k = (settings.background_order + 1) * (settings.background_order + 2) // 2
    positions = torch.as_tensor(atoms.positions, dtype=torch.float64, device=device)
    heights = torch.ones(len(atoms), dtype=torch.float64, device=device)
    if atoms.has("peak_height"):
        heights = torch.as_tensor(atoms.arrays["peak_height"], dtype=torch.float64, device=device).clamp(min=0.05)
    given = atoms.arrays.get("b_factor")
    known = given is not None and bool((given > 0).all())
    bare = SpotParameters(
        positions=positions,
        heights=heights,
        b_factors=torch.as_tensor(given, dtype=torch.float64, device=device) if known else 0 * heights,
        rotations=poses.rotations.double(),
        shifts=poses.shifts.double(),
        scales=heights.new_ones(m),
        blurs=heights.new_zeros(m),
        backgrounds=heights.new_zeros(m, k),
        focus=None if stack.focus is None else replace(stack.focus, heights=stack.focus.heights.double()),
    )
    widths = [settings.b_factor] if settings.b_factor else [2.5, 5.0, 8.0, 12.0, 18.0, 27.0, 40.0]
    guesses = [bare] if known else [replace(bare, b_factors=torch.full_like(heights, b)) for b in widths]
    fits = [scaled(guess, stack, settings.batch_size) for guess in guesses]
    best = min(range(len(fits)), key=lambda i: fits[i][1])
    fitted = fits[best][0]
    level = fitted[:, 0].median()
    if float(level) <= 0:
        raise InputError("the atoms are not brighter than the background; are angles and tilt axis right?")
    return replace(
        guesses[best],
        heights=heights * level,
        scales=(fitted[:, 0] / level).clamp(0.3, 3.0),
        backgrounds=fitted[:, 1:],
    )


def scaled(bare: SpotParameters, stack: ImageStack, batch_size: int) -> tuple[Tensor, float]:
    """Scale and background (m, 1 + k) of each image by least squares, and the sum of squares that is left.

    bare : with relative heights.
    """
    basis, inside = basis_for(bare, stack), stack.inside.flatten()

    def of_images(rows: Tensor) -> tuple[Tensor, Tensor]:
        part = bare.images(rows)
        signal = signal_of(part, lay_out(part, stack))
        columns = (
            torch.cat((signal[:, None], basis.expand(len(signal), -1, -1, -1)), 1).flatten(2)[..., inside].double()
        )
        images = stack.images[rows].double().flatten(1)[:, inside, None]
        found = least_squares(columns @ columns.mT, columns @ images)
        return found[..., 0], (images - columns.mT @ found).square().sum((1, 2))

    found, left = map_over(of_images, image_batches(len(stack), batch_size, stack.images.device))
    return found, float(left.sum())


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


def shared_prior(here: SpotParameters, system: Linearised) -> Shared:
    """Gradient of the prior: single B factors are drawn to their mean."""
    offset = (here.b_factors - here.b_factors.mean()) / EIGHT_PI2
    pull = system.precision.widening
    same = len(pull) == len(offset)
    return Shared(here.heights.new_zeros(len(here.heights), 4), pull * offset if same else 0 * pull)


def own_precision(spread: Tensor, stack: ImageStack, k: int) -> Tensor:
    """(m, 7 + k) inverse variances of the priors on each image's own parameters; infinite where it is kept."""
    angle = torch.deg2rad(spread[0])
    sigmas = torch.stack((angle, angle, angle, spread[1], spread[1], spread[2], spread[3]))
    return torch.cat((sigmas**-2, sigmas.new_zeros(k))).expand(len(stack), -1)


def learned_spread(spread: Tensor, offset: Tensor, variance: Tensor) -> Tensor:
    """The sigmas that make the offsets most likely: ``sum offset^2 / sum (1 - variance / sigma^2)`` (MacKay's update).

    References
    ----------
    .. [1] D. J. C. MacKay, "Bayesian interpolation", Neural Computation 4, 415 (1992), eq. 5.3.
    """
    scale = torch.stack((torch.deg2rad(spread[0]), *spread[1:]))
    columns = ((0, 1, 2), (3, 4), (5,), (6,))
    new = []
    for sigma, which in zip(scale, columns, strict=True):
        if float(sigma) == 0:
            new.append(sigma)
            continue
        part, known = offset[:, which], variance[:, which]
        determined = (1 - known / sigma**2).clamp(min=0).sum().clamp(min=1e-3 * part.numel())
        new.append(((part**2).sum() / determined).sqrt().clamp(0.3 * sigma, 3 * sigma))
    found = torch.stack((torch.rad2deg(new[0]), *new[1:]))
    return torch.maximum(found, _LEAST_SPREAD * spread.new_tensor([0.3, 0.3, 0.1, 0.02]) * (spread > 0))


def prior_merit(offset: Tensor, precision: Tensor) -> float:
    """Nats of the priors of the images' own parameters."""
    return -float(torch.where(torch.isfinite(precision), precision * offset**2, 0.0).sum()) / 2


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
