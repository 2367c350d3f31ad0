"""How many atoms there are: false ones taken away and missing ones added, by likelihood."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.atoms.image_model import cotangent
from common.atoms.information import unexplained
from common.atoms.likelihood import Measurement, Parameters, expose_views, views_of
from common.atoms.model import AtomicModel
from common.atoms.pose_fit import normal_equations, own_step
from common.atoms.refinement import prepare, refine_model, sampled_curvature
from common.atoms.shared import RefinementSettings, layout_of, priors_of, shared_precision
from common.data import ImageStack
from common.iteration import Observer
from common.noise import NoiseModel
from common.parallel import sum_over_shards


@dataclass(frozen=True)
class AtomCountSettings:
    """When an atom is real.

    smallest_height : share of the median height below which an atom is false.
    closest : share of the median distance of nearest neighbours below which two atoms are one.
    nats_per_parameter : log-likelihood that each of an atom's four parameters must be worth, times the log of the
        number of
        images: one half is the Bayesian information criterion.
    spacing : angstrom, of the grid on which missing atoms are looked for.
    reach : angstrom, how far outside of the outermost atom they are looked for.
    rounds : most times that atoms are added or removed.
    """

    smallest_height: float = 0.35
    closest: float = 0.55
    nats_per_parameter: float = 0.5
    spacing: float = 0.4
    reach: float = 3.5
    rounds: int = 4


@dataclass(frozen=True)
class AtomCount:
    """model : after the last round. removed, added : numbers of atoms over all rounds."""

    model: AtomicModel
    removed: int
    added: int


def add_and_remove_atoms(
    stack: ImageStack,
    noise: NoiseModel,
    model: AtomicModel,
    settings: AtomCountSettings | None = None,
    refinement: RefinementSettings | None = None,
    *,
    observers: Sequence[Observer] = (),
    name: str = "atom-count",
) -> AtomCount:
    """Remove atoms that the images do not ask for and add those that they miss, refining in between, until none
    changes.

    Parameters
    ----------
    stack, noise, model : as in `refine_model`; the model refined.
    settings, refinement : `AtomCountSettings`, `RefinementSettings`.

    Returns
    -------
    The refined model and how many atoms were removed and added on the way. Every change is judged again in the next
    round, after refinement; sigmas are dropped.

    Notes
    -----
    An atom's worth is ``height^2 / (2 var)`` nats (Wald), its variance from the information of all atoms together. A
    missing atom shows as a peak of the gradient of the log-likelihood with respect to an added atom's height (score
    test).
    """
    settings, refinement = settings or AtomCountSettings(), refinement or RefinementSettings()
    removed = added = 0
    refused = model.positions.new_zeros(0, 3)
    for number in range(settings.rounds):
        data = prepare(stack, noise, model.parameters, refinement)[1]
        layout = layout_of(model.parameters, refinement.refine_b_factors)
        curved = sampled_curvature(model.parameters, data, model.weights, refinement, iteration=number)
        curved = curved + torch.diag(shared_precision(model.parameters, refinement, layout, data))
        kept = real_atoms(model, curved, settings)
        if not bool(kept.any()):  # nothing here is an atom; leave that judgement to the caller
            break
        refused = torch.cat((refused, model.positions[~kept]))
        model = with_atoms(model, kept, model.positions.new_zeros(0, 3))
        places, _ = missing_atoms(model, data, curved, settings, refinement)
        if len(places) and len(refused):
            places = places[torch.cdist(places, refused).amin(1) > 0.7]
        removed, added = removed + int((~kept).sum()), added + len(places)
        if bool(kept.all()) and len(places) == 0:
            break
        model = with_atoms(model, torch.ones(len(model.positions), dtype=torch.bool), places)
        model = refine_model(stack, noise, model, refinement, observers=observers, name=f"{name}/{number}")
    return AtomCount(model, removed, added)


def threshold(model: AtomicModel, settings: AtomCountSettings) -> float:
    """Nats that an atom must be worth."""
    return 4 * settings.nats_per_parameter * math.log(max(len(model.weights), 2))


def nearest_distance(positions: Tensor) -> float:
    """Median distance of nearest neighbours, angstrom; 0 for a single atom."""
    if len(positions) < 2:
        return 0.0
    distances = torch.cdist(positions, positions).fill_diagonal_(math.inf)
    return float(distances.amin(1).median())


def height_variance(model: AtomicModel, curved: Tensor) -> Tensor:
    """(n,) of the heights, whatever all else is; ``curved`` (p, p) the shared curvature."""
    n = len(model.heights)
    damped = curved + torch.diag(torch.diagonal(curved) * 1e-6 + 1e-12)
    return torch.diagonal(torch.linalg.inv(damped))[3 * n : 4 * n].clamp(min=1e-30)


def atom_worth(model: AtomicModel, curved: Tensor) -> Tensor:
    """(n,) nats that the likelihood would lose without each atom; ``curved`` as for `height_variance`."""
    return model.heights**2 / (2 * height_variance(model, curved))


def real_atoms(model: AtomicModel, curved: Tensor, settings: AtomCountSettings) -> Tensor:
    """(n,) booleans: high enough, worth enough, and not the weaker one of two in the same place."""
    heights, positions = model.heights, model.positions
    worth = atom_worth(model, curved)
    real = (heights > settings.smallest_height * heights.median()) & (worth > threshold(model, settings))
    distances = torch.cdist(positions, positions).fill_diagonal_(math.inf)
    limit = settings.closest * nearest_distance(positions[real])
    for i in torch.argsort(heights).tolist():
        if bool(real[i]) and bool((real & (distances[i] < limit)).any()):
            real[i] = False
    return real


def score_map(model: AtomicModel, data: Measurement, points: Tensor, settings: RefinementSettings) -> Tensor:
    """Gradient (k,) of the log-likelihood by the height of an atom added at each of ``points`` (k, 3)."""
    parameters, band = model.parameters, data.band
    views, priors = views_of(parameters), priors_of(settings)
    blur = shape_transform(parameters, data)
    half = band.box * band.pixel_size / 2
    places = points.to(band.scale)  # single precision: looked up to a thousandth of a pixel

    def gradient(shard: Tensor) -> tuple[Tensor, ...]:
        total = torch.zeros(len(points), dtype=torch.float64, device=points.device)
        for batch in shard.to(points.device).split(settings.batch_size):
            part, view = data[batch], views[batch]
            exposure = expose_views(parameters, view, part)
            normal = normal_equations(exposure, view, part, priors)
            rest, _ = unexplained(normal, own_step(normal, torch.full_like(normal.objective, 1e-5)))
            rest = rest * (exposure.gain * model.weights[batch].to(exposure.gain))[:, None]
            back = cotangent(exposure.wave, rest, band)
            back = torch.fft.irfft2(torch.fft.rfft2(back) * blur, s=(band.box, band.box))
            flat = places @ view.rotations[:, :2].to(places).mT + (view.shifts - part.origins.double())[:, None].to(
                places
            )
            # grid_sample counts from the outer edges of the first and last pixels, -1 to 1; pixel d // 2 is the origin
            offset = band.pixel_size * (band.box // 2 + 0.5) - half
            grid = ((flat + offset) / half).to(back)
            sampled = torch.nn.functional.grid_sample(back[:, None], grid[:, None], align_corners=False)
            total -= sampled[:, 0, 0].double().sum(0)
        return (total,)

    return sum_over_shards(gradient, len(data))[0]


def shape_transform(parameters: Parameters, data: Measurement) -> Tensor:
    """(d, d // 2 + 1) transform of an atom of height 1 drawn on the grid."""
    band = data.band
    kx = torch.fft.rfftfreq(band.box, band.pixel_size, device=band.scale.device)
    ky = torch.fft.fftfreq(band.box, band.pixel_size, device=band.scale.device)
    k2 = ky[:, None] ** 2 + kx**2
    terms = zip(parameters.fractions.tolist(), parameters.widths.tolist(), strict=True)
    total = torch.stack([share * torch.exp(-2 * (math.pi * width) ** 2 * k2) for share, width in terms]).sum(0)
    return total / band.pixel_size**2


def missing_atoms(
    model: AtomicModel,
    data: Measurement,
    curved: Tensor,
    settings: AtomCountSettings,
    refinement: RefinementSettings,
) -> tuple[Tensor, Tensor]:
    """Places (k, 3), angstrom, where an added atom is worth its parameters and would be about as high as the others,
    and by how many nats (k,) it is."""
    positions = model.positions
    centre = positions.mean(0)
    radius = float(torch.linalg.vector_norm(positions - centre, dim=1).max()) + settings.reach
    n = math.ceil(radius / settings.spacing)
    axis = torch.arange(-n, n + 1, dtype=torch.float64, device=positions.device) * settings.spacing
    cube = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    inside = torch.linalg.vector_norm(cube, dim=-1) <= radius
    scores = torch.zeros(inside.shape, dtype=torch.float64, device=positions.device)
    scores[inside] = score_map(model, data, cube[inside] + centre, refinement)
    old = len(curved) - (2 * len(model.parameters.widths) + 2)
    atoms = old // (5 if refinement.refine_b_factors else 4)
    stiffness = float(torch.diagonal(curved)[3 * atoms : 4 * atoms].median())
    height, worth = scores / stiffness, scores.clamp(min=0) ** 2 / (2 * stiffness)
    peak = scores == torch.nn.functional.max_pool3d(scores[None, None], 3, 1, 1)[0, 0]
    good = peak & inside & (worth > threshold(model, settings))
    good &= height > settings.smallest_height * model.heights.median()
    order = torch.argsort(scores[good], descending=True)
    places, nats = (cube[good] + centre)[order], worth[good][order]
    taken, limit = positions, settings.closest * nearest_distance(positions)
    chosen = []
    for k, place in enumerate(places[: max(4, len(positions) // 4)]):
        if float(torch.linalg.vector_norm(taken - place, dim=1).min()) > limit:
            chosen.append(k)
            taken = torch.cat((taken, place[None]))
    return places[chosen], nats[chosen]


def with_atoms(model: AtomicModel, kept: Tensor, places: Tensor) -> AtomicModel:
    """The model with the atoms ``kept`` (n,) and new ones of median height at ``places`` (k, 3); sigmas dropped."""
    old = model.parameters
    kept = kept.to(old.heights.device)
    heights = old.heights[kept]
    common = heights.median() if len(heights) else old.heights.new_ones(())
    parameters = replace(
        old,
        positions=torch.cat((old.positions[kept], places)),
        heights=torch.cat((heights, common.expand(len(places)))),
        b_factors=torch.cat((old.b_factors[kept], places.new_zeros(len(places)))),
    )
    symbols = tuple(s for s, keep in zip(model.symbols, kept.tolist(), strict=True) if keep)
    usual = Counter(model.symbols).most_common(1)[0][0]
    symbols += (usual,) * len(places)
    return replace(
        model, symbols=symbols, parameters=parameters, covariance=None, position_sigma=None, cramer_rao_pm=None
    )
