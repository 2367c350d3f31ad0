"""How many atoms a tilt series shows: false ones taken away and missing ones added, by likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from common.atoms.peaks import apart, bond_length
from common.atoms.spot_image import EIGHT_PI2, SpotParameters, compared, image_batches
from common.atoms.spot_settings import SpotSettings
from common.atoms.spot_solver import atom_information
from common.atoms.spots import SpotState, groups_of, linearised, refine_spots
from common.data import ImageStack, Poses
from common.iteration import Observer
from common.parallel import sum_over

Floats = NDArray[np.float64]
_POINTS_AT_ONCE = 200_000


@dataclass(frozen=True)
class SpotCountSettings:
    """When an atom of a tilt series is real.

    smallest_height : share of the height of the lightest element's atoms below which an atom is false.
    closest : share of the shortest bond below which two atoms are one.
    nats : log-likelihood that an atom must be worth.
    reach : angstrom from the atoms found, how far missing ones are looked for.
    spacing : angstrom, of the grid on which they are.
    rounds : most times that atoms are added or removed.
    """

    smallest_height: float = 0.5
    closest: float = 0.65
    nats: float = 10.0
    reach: float = 4.0
    spacing: float = 0.5
    rounds: int = 5


def settle_count(
    stack: ImageStack,
    poses: Poses,
    atoms: Atoms,
    elements: tuple[str, ...] = (),
    settings: SpotCountSettings | None = None,
    refinement: SpotSettings | None = None,
    *,
    observers: Sequence[Observer] = (),
    name: str = "spot-count",
) -> tuple[Atoms, SpotState]:
    """Refine, remove atoms that the images do not ask for, add those that they miss, and again until none changes.

    Parameters
    ----------
    stack, poses, atoms : as in `refine_spots`; a generous list of atoms.
    elements : that may be there.

    Returns
    -------
    The atoms and the state of their last refinement.

    Notes
    -----
    An atom's worth is ``height^2 / (2 var)`` nats (Wald), a missing one's ``g^2 / (2 information)`` with the slope g of
    the log-likelihood by the height of an atom added there (score test). A place that was refused twice stays empty:
    the first time its atom may have come there from elsewhere, or its neighbours were not yet in theirs.
    """
    settings, refinement = settings or SpotCountSettings(), refinement or SpotSettings()
    quick = replace(refinement, max_steps=min(8, refinement.max_steps), tolerance=0.2)
    state = refine_spots(stack, poses, atoms, quick, observers=observers, name=f"{name}/0")
    refused = np.zeros((0, 3))
    for number in range(1, settings.rounds + 1):
        real = real_atoms(stack, state, atoms, elements, settings, refinement)
        positions = state.parameters.positions.cpu().numpy()
        refused = np.concatenate((refused, positions[~real]))
        found = missing_atoms(stack, state, positions[real], refused, elements, settings)
        if real.all() and not len(found):
            break
        atoms = _changed(atoms, state, real, found)
        again = _with_atoms(atoms, state, real, len(found))
        state = refine_spots(
            stack, poses, atoms, quick, first=again, begun=state, observers=observers, name=f"{name}/{number}"
        )
    return atoms, state


def smallest_height(heights: Tensor, elements: tuple[str, ...], settings: SpotCountSettings) -> float:
    """Height below which an atom is false, in the unit of the heights."""
    numbers = [atomic_numbers[e] for e in elements if atomic_numbers.get(e, 0) > 0]
    if len(set(numbers)) < 2:
        return settings.smallest_height * float(heights.median())
    lightest = (min(numbers) / max(numbers)) ** 1.7  # intensity goes as Z^1.6 to Z^2
    return settings.smallest_height * lightest * float(heights.quantile(0.8))


def real_atoms(
    stack: ImageStack,
    state: SpotState,
    atoms: Atoms,
    elements: tuple[str, ...],
    settings: SpotCountSettings,
    refinement: SpotSettings,
) -> NDArray[np.bool_]:
    """(n,) high enough, worth enough, and not the weaker one of two in the same place."""
    heights = state.parameters.heights
    system = linearised(state, stack, groups_of(atoms, refinement), refinement)
    variance = torch.linalg.inv(atom_information(system)[0] + 1e-30 * torch.eye(4).to(heights))[:, 0, 0]
    worth = heights**2 / (2 * variance.clamp(min=1e-30))
    real = ((heights > smallest_height(heights, elements, settings)) & (worth > settings.nats)).cpu().numpy()
    strong = np.where(real, heights.cpu().numpy(), 0.0)
    positions = state.parameters.positions.cpu().numpy()
    alone = np.zeros(len(real), dtype=bool)
    alone[apart(positions, strong, settings.closest * bond_length(elements))] = True
    return real & alone


def missing_atoms(
    stack: ImageStack,
    state: SpotState,
    positions: Floats,
    refused: Floats,
    elements: tuple[str, ...],
    settings: SpotCountSettings,
) -> Floats:
    """Places (k, 3) where an added atom is worth its parameters and as high as an atom."""
    closest = 0.8 * bond_length(elements)
    low, high = positions.min(0) - settings.reach, positions.max(0) + settings.reach
    axes = [np.arange(a, b, settings.spacing) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    points = grid.reshape(-1, 3)
    atoms = cKDTree(positions)
    near = atoms.query(points, distance_upper_bound=settings.reach + 1)[0]
    usable = (near > closest) & (near < settings.reach)
    heights, worth = np.full(len(points), -np.inf), np.zeros(len(points))
    heights[usable], worth[usable] = score_points(stack, state, points[usable])
    field = torch.from_numpy(heights.reshape(grid.shape[:3]))
    top = (torch.nn.functional.max_pool3d(field[None, None], 3, 1, 1)[0, 0] == field).numpy().reshape(-1)
    least = smallest_height(state.parameters.heights, elements, settings)
    # between the points of the grid an atom is up to a third higher
    tops = points[top & (heights > 0.7 * least) & (worth > settings.nats / 2)]
    places, heights, worth = _highest_beside(stack, state, tops, settings.spacing / 2)
    good = (heights > least) & (worth > settings.nats) & (atoms.query(places)[0] > closest)
    if len(refused):
        good &= cKDTree(refused).query_ball_point(places, 0.7, return_length=True) < 2
    chosen = apart(places[good], heights[good], closest)
    return places[good][chosen[: max(4, len(positions) // 4)]]


def _highest_beside(stack: ImageStack, state: SpotState, points: Floats, step: float) -> tuple[Floats, Floats, Floats]:
    """The highest of each point (k, 3) and those a step from it along the axes and diagonals: place, height, nats."""
    around = step * np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    places = points[:, None] + around
    heights, worth = (found.reshape(places.shape[:2]) for found in score_points(stack, state, places.reshape(-1, 3)))
    rows, best = np.arange(len(points)), heights.argmax(1)
    return places[rows, best], heights[rows, best], worth[rows, best]


def score_points(stack: ImageStack, state: SpotState, points: Floats) -> tuple[Floats, Floats]:
    """Height (k,) that an atom added at each of ``points`` (k, 3) would get, the others as they are, and its nats."""
    here, pixel, d = state.parameters, stack.pixel_size, stack.box_size
    places = torch.as_tensor(points, dtype=torch.float64, device=here.heights.device)
    variance = float(here.b_factors.median()) / EIGHT_PI2 / pixel**2

    def of_image(row: Tensor) -> tuple[Tensor, Tensor]:
        slope, information = torch.zeros_like(places[:, 0]), torch.zeros_like(places[:, 0])
        expected, signal, images, inside = compared(here, stack, row)
        weight = inside / state.noise.images(row).variance(expected, signal)
        spread = max(variance + float(here.blurs[row]) / pixel**2, 0.05)
        fields = torch.cat((_blurred((images - expected) * weight, spread), _blurred(weight, spread / 2)))
        scale = float(here.scales[row])
        for start in range(0, len(places), _POINTS_AT_ONCE):
            part = slice(start, start + _POINTS_AT_ONCE)
            flat = (places[part] @ here.rotations[row[0], :2].T + here.shifts[row]) / pixel
            # grid_sample counts from the outer edges of the first and last pixels, -1 to 1
            target = ((flat + (d // 2 + 0.5)) * 2 / d - 1).to(fields)
            at = torch.nn.functional.grid_sample(fields[None], target[None, None], align_corners=False)[0, :, 0]
            slope[part] = scale * at[0].double()
            # the square of a Gaussian is one of half the variance with the sum 1 / (4 pi variance)
            information[part] = scale**2 * at[1].double() / (4 * math.pi * spread)
        return slope, information

    slope, information = sum_over(of_image, image_batches(len(here.scales), 1, here.scales.device))
    height = slope / information.clamp(min=1e-30)
    return height.cpu().numpy(), (slope.clamp(min=0) * height / 2).cpu().numpy()


def _blurred(images: Tensor, variance: float) -> Tensor:
    half = math.ceil(4 * math.sqrt(variance))
    t = torch.arange(-half, half + 1, dtype=images.dtype, device=images.device)
    g = torch.exp(-t * t / (2 * variance))
    g = g / g.sum()
    along = torch.nn.functional.conv2d(images[:, None], g[None, None, None], padding=(0, half))
    return torch.nn.functional.conv2d(along, g[None, None, :, None], padding=(half, 0))[:, 0]


def _changed(atoms: Atoms, state: SpotState, real: NDArray[np.bool_], found: Floats) -> Atoms:
    symbols = np.asarray(atoms.get_chemical_symbols())
    usual = max(set(symbols), key=list(symbols).count)
    kept = state.parameters.positions.cpu().numpy()[real]
    return Atoms([*symbols[real], *[usual] * len(found)], positions=np.concatenate((kept, found)))


def _with_atoms(atoms: Atoms, state: SpotState, real: NDArray[np.bool_], added: int) -> SpotParameters:
    old = state.parameters
    kept = torch.from_numpy(real).to(old.heights.device)
    ones = old.heights.new_ones(added)
    return replace(
        old,
        positions=torch.as_tensor(atoms.positions).to(old.positions),
        heights=torch.cat((old.heights[kept], old.heights[kept].median() * ones)),
        b_factors=torch.cat((old.b_factors[kept], old.b_factors[kept].median() * ones)),
    )
