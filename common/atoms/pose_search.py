"""Every image's pose searched afresh over all orientations and shifts, with atoms as the reference.

Three passes, each over fewer candidates with finer detail: the likelihood on a grid of orientations times shifts; the
best few of each image refined at low resolution; the best of these at full resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.atoms.image_model import expose_through, profiles, projected_coefficients, render
from common.atoms.likelihood import Measurement, Parameters, Views, batches, gaussians, lens_of, measure, views_of
from common.atoms.model import AtomicModel, evaluate
from common.atoms.pose_fit import Priors, fit_views
from common.data import ImageStack, Poses
from common.noise import NoiseModel
from common.parallel import map_over_shards
from common.rotations import rotation_grid


@dataclass(frozen=True)
class PoseSearchSettings:
    """How poses are searched with a model of atoms.

    resolution : angstrom, finest detail of the grid search and of the first refinement; fine enough for the first
        reflections of a lattice (2.35 of gold), without which a third of noisy images go wrong.
    full_resolution : angstrom, finest detail of the last refinement.
    reach : angstrom, how far from the given shift the particle may be, on any side.
    shift_step : angstrom, between shifts of the grid.
    sampling : step of the grid of orientations, in units of the resolution over the particle's diameter.
    candidates : orientations of each image that are refined.
    finalists : of these, refined at full resolution.
    defocus_groups : images are compared with references at the mean defocus of their group.
    margin : angstrom kept around the particle.
    batch_size : images at a time.
    """

    resolution: float = 2.2
    full_resolution: float = 0.85
    reach: float = 2.1
    shift_step: float = 0.5
    sampling: float = 1.0
    candidates: int = 6
    finalists: int = 2
    defocus_groups: int = 4
    margin: float = 3.5
    batch_size: int = 16


def search_poses(
    stack: ImageStack,
    noise: NoiseModel,
    model: AtomicModel,
    settings: PoseSearchSettings | None = None,
    *,
    poses: Poses | None = None,
    priors: Priors | None = None,
) -> AtomicModel:
    """Search every image's pose over all orientations and over shifts, and keep the likeliest.

    Parameters
    ----------
    stack, noise : m raw images; they need not be those of the model.
    model : atoms and imaging conditions, held fixed.
    poses : (m,) where each image was thought to be: centres of the shift search, and candidates beside those found.
        None:
        those of the model if it has as many images, and the centre of the box otherwise.

    Returns
    -------
    The model with m new poses, gains and defocus offsets, each at least as likely as the one given.

    Notes
    -----
    Cost: orientations (about ``8 pi^2 (radius / resolution)^3``, times 8) times shifts times images, in matrix
    products.
    """
    settings, priors = settings or PoseSearchSettings(), priors or Priors()
    m = len(stack)
    given = poses is not None or len(model.weights) == m
    placed = _placed(stack, noise, model, poses, settings)
    atoms, start, coarse, full = placed.atoms, placed.start, placed.coarse, placed.full
    found, rows = grid_search(atoms, coarse, start, placed.radius, settings)
    if given:
        found = Views(*(torch.cat((a, b)) for a, b in zip(_fields(found), _fields(start), strict=True)))
        rows = torch.cat((rows, torch.arange(m, device=rows.device)))
    found, scores = fit_views(atoms, found, coarse, rows, priors=priors, iterations=3, batch_size=settings.batch_size)
    found, rows = best_of(found, rows, scores, m, settings.finalists)
    found, scores = fit_views(atoms, found, full, rows, priors=priors, iterations=3, batch_size=settings.batch_size)
    found, rows = best_of(found, rows, scores, m, 1)
    return _with_found(model, placed, found, settings)


def refine_given(
    stack: ImageStack,
    noise: NoiseModel,
    model: AtomicModel,
    poses: Poses,
    settings: PoseSearchSettings | None = None,
    *,
    priors: Priors | None = None,
) -> AtomicModel:
    """Poses right to a few degrees refined against atoms that are held fixed, first at low resolution.

    Parameters
    ----------
    stack, noise : m raw images; they need not be those of the model. poses : (m,) where to start.

    Returns
    -------
    The model with m new poses, gains and defocus offsets.
    """
    settings, priors = settings or PoseSearchSettings(), priors or Priors()
    placed = _placed(stack, noise, model, poses, settings)
    rows = torch.arange(len(stack), device=placed.full.level.device)
    found = placed.start
    for data in (placed.coarse, placed.full):
        found, _ = fit_views(
            placed.atoms, found, data, rows, priors=priors, iterations=3, batch_size=settings.batch_size
        )
    return _with_found(model, placed, found, settings)


@dataclass(frozen=True)
class _Placed:
    """Atoms about their centre (3,), where each image is to start, and the images around there in two bands."""

    atoms: Parameters
    centre: Tensor
    radius: float
    start: Views
    coarse: Measurement
    full: Measurement


def _placed(
    stack: ImageStack, noise: NoiseModel, model: AtomicModel, poses: Poses | None, settings: PoseSearchSettings
) -> _Placed:
    start = start_views(model.parameters, poses, len(stack))
    centre = model.positions.mean(0)
    atoms = replace(model.parameters, positions=model.positions - centre)
    shifts = start.shifts + (start.rotations @ centre)[:, :2]
    radius = float(torch.linalg.vector_norm(atoms.positions, dim=1).max())
    side = min(
        8 * math.ceil(2 * (radius + settings.margin + settings.reach / 2) / stack.pixel_size / 8), stack.box_size
    )
    limits = [1 / settings.resolution, 1 / settings.full_resolution]
    coarse, full = measure(stack, noise, shifts, side=side, limits=limits)
    return _Placed(atoms, centre, radius, replace(start, shifts=shifts), coarse, full)


def _with_found(model: AtomicModel, placed: _Placed, found: Views, settings: PoseSearchSettings) -> AtomicModel:
    m = len(found.gains)
    moved = found.shifts - (found.rotations @ placed.centre)[:, :2]
    parameters = replace(
        model.parameters, rotations=found.rotations, shifts=moved, gains=found.gains, defocus=found.defocus
    )
    weights = model.weights if len(model.weights) == m else model.weights.new_ones(m)
    return evaluate(model.symbols, parameters, placed.full, weights, settings.batch_size)


def _fields(views: Views) -> tuple[Tensor, ...]:
    return views.rotations, views.shifts, views.gains, views.defocus


def start_views(parameters: Parameters, poses: Poses | None, m: int) -> Views:
    """Views of the poses given, or of the model's, or all at the centre of the box."""
    zero = parameters.positions.new_zeros(m)
    if poses is not None:
        return Views(poses.rotations.to(zero), poses.shifts.to(zero), zero, zero)
    if len(parameters.gains) == m:
        return views_of(parameters)
    identity = torch.eye(3, dtype=zero.dtype, device=zero.device).expand(m, 3, 3)
    return Views(identity, zero[:, None].expand(m, 2), zero, zero)


def shift_grid(reach: float, step: float, like: Tensor) -> Tensor:
    """(s, 2) points of a square lattice within a disc, angstrom."""
    n = math.floor(reach / step)
    axis = torch.arange(-n, n + 1, device=like.device, dtype=like.dtype) * step
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack((x.flatten(), y.flatten()), 1)
    return grid[torch.linalg.vector_norm(grid, dim=1) <= reach + 1e-6]


def grid_search(
    atoms: Parameters, data: Measurement, start: Views, radius: float, settings: PoseSearchSettings
) -> tuple[Views, Tensor]:
    """The likeliest orientations of each image on the grid, each with its best shift: m x k views and their images.

    ``atoms`` are centred on the origin.
    """
    step = settings.sampling * settings.resolution / (2 * max(radius, settings.resolution))
    n_directions, n_in_plane = math.ceil(4 * math.pi / step**2), math.ceil(2 * math.pi / step)
    grid = rotation_grid(n_directions, n_in_plane, dtype=data.band.scale.dtype, device=data.level.device).flatten(0, 1)
    groups = defocus_groups(data, settings.defocus_groups)
    spectra = reference_images(atoms, [data[g] for g in groups], grid, settings.batch_size)
    shifts = shift_grid(settings.reach, settings.shift_step, data.level)
    angle = 2 * math.pi * (shifts[:, :1] * data.band.kx + shifts[:, 1:] * data.band.ky)
    forward = torch.polar(torch.ones_like(angle), angle)  # undoes a shift of the image
    gain = torch.exp(start.gains + atoms.contrast).to(data.level) * data.level
    pieces = []
    # each image with the references of its own defocus
    for group, references in zip(groups, spectra, strict=True):

        def best(part: Tensor, group: Tensor = group, references: Tensor = references) -> tuple[Tensor, ...]:
            rows = group[part.to(group.device)]
            scores, places = score_grid(data.spectra[rows], references, forward, gain[rows], settings.batch_size)
            chosen = distinct(scores, grid, settings.candidates, 1.2 * step)
            return chosen, torch.gather(places, 1, chosen)

        chosen, places = map_over_shards(best, len(group))
        pieces.append((group, chosen, places))
    group, chosen, places = (torch.cat(x) for x in zip(*pieces, strict=True))
    k = chosen.shape[1]
    rows = group.repeat_interleave(k)
    place = data.origins[rows].double() + shifts[places.flatten()].double()
    return Views(grid[chosen.flatten()].double(), place, start.gains[rows], start.defocus[rows]), rows


def defocus_groups(data: Measurement, n_groups: int) -> list[Tensor]:
    """Images of similar defocus, as rows of the data; one group for projections."""
    m = len(data)
    if data.optics is None:
        return [torch.arange(m, device=data.level.device)]
    order = torch.argsort(data.optics.defocus[:, :2].mean(1))
    return [part for part in torch.tensor_split(order, n_groups) if len(part)]


def reference_images(atoms: Parameters, groups: list[Measurement], grid: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Model coefficients (g, f) of unit level for each rotation (g, 3, 3), at the mean defocus of each group."""
    band, dtype = groups[0].band, groups[0].band.scale.dtype
    weights, variance = gaussians(atoms, dtype)
    zero = atoms.positions.new_zeros(1)
    still = Views(grid[:1].double(), zero[:, None].expand(1, 2), zero, zero)
    lenses = []
    for group in groups:
        if group.optics is not None:
            first = torch.zeros(1, dtype=torch.long, device=grid.device)
            mean = replace(group.optics[first], defocus=group.optics.defocus.mean(0, keepdim=True))
            lens = lens_of(mean, atoms, still, band)
            lenses += [] if lens is None else [lens]
    positions, components = atoms.positions.to(dtype), len(atoms.widths)

    def images(part: Tensor) -> tuple[Tensor, ...]:
        made = []
        for batch in part.split(batch_size if lenses else 8 * batch_size):  # plain projections are small
            centres = (positions @ grid[batch.to(grid.device)].mT)[..., :2].repeat_interleave(components, 1)
            if not lenses:
                made.append([projected_coefficients(centres, variance, weights, band)])
                continue
            drawn = profiles(centres, variance, band.coordinates)
            made.append(expose_through(render(drawn.by, drawn.bx, weights), lenses, band))
        return tuple(torch.cat(column) for column in zip(*made, strict=True))

    return map_over_shards(images, len(grid))


def score_grid(
    spectra: Tensor, references: Tensor, forward: Tensor, gain: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Log-likelihood gain (m, g), nats, at the best shift of each reference, and the index (m, g) of that shift."""
    flat = torch.view_as_real(references).flatten(1)
    power = (flat**2).sum(1)
    scores, places = [], []
    for batch in batches(len(spectra), batch_size, spectra.device):
        moved = torch.view_as_real(spectra[batch][:, None] * forward).flatten(2)  # (b, s, 2 f)
        each, where = [], []
        for part, weight in zip(flat.split(2048), power.split(2048), strict=True):
            match = (moved.flatten(0, 1) @ part.T).unflatten(0, moved.shape[:2])
            top, place = match.max(1)
            each.append(gain[batch, None] * top - gain[batch, None] ** 2 / 2 * weight)
            where.append(place)
        scores.append(torch.cat(each, 1))
        places.append(torch.cat(where, 1))
    return torch.cat(scores), torch.cat(places)


def distinct(scores: Tensor, grid: Tensor, k: int, separation: float) -> Tensor:
    """Indices (m, k) of the best scores (m, g) whose rotations are at least ``separation`` (radian) apart."""
    flat = grid.flatten(1)
    cosine = 1 + 2 * math.cos(separation)  # trace of the rotation between
    left = scores.clone()
    chosen = []
    for _ in range(min(k, scores.shape[1])):
        top = left.argmax(1)
        chosen.append(top)
        near = flat[top] @ flat.T >= cosine
        left = left.masked_fill(near, -torch.inf)
    return torch.stack(chosen, 1)


def best_of(views: Views, rows: Tensor, scores: Tensor, m: int, k: int) -> tuple[Views, Tensor]:
    """The k views of each image with the lowest scores, in the order of the images."""
    order = torch.argsort(scores, stable=True)
    order = order[torch.argsort(rows[order], stable=True)]
    counts = torch.bincount(rows, minlength=m)
    first = torch.cumsum(counts, 0) - counts
    rank = torch.arange(len(rows), device=rows.device) - first[rows[order]]
    kept = order[rank < k]
    return views[kept], rows[kept]
