"""Discrete tomography: which sites of a known lattice hold an atom, from two to five images [1]_, [2]_.

The images are linear in the occupancies. These are first relaxed to [0, 1] and driven to its ends by a concave penalty
that rises; then atoms are added, removed or moved, the best change at a time, until none lowers the energy: squared
error, plus a price for unlike neighbours, which decides what so few images leave open.

References
----------
.. [1] Jinschek et al., "3-D reconstruction of the atomic positions in a simulated gold nanocrystal based on discrete
   tomography", Ultramicroscopy 108, 589 (2008). doi:10.1016/j.ultramic.2007.10.002
.. [2] Van Aert, Batenburg, Rossell, Erni, Van Tendeloo, "Three-dimensional atomic imaging of crystalline
   nanoparticles", Nature 470, 374 (2011). doi:10.1038/nature09741
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from common.data import ImageStack, InputError, Poses
from common.iteration import Observer, State, run

_MOST_SITES = 12_000  # their overlaps take 4 bytes times the square


@dataclass(frozen=True)
class DiscreteSettings:
    """How the sites are filled.

    relaxations : steps with occupancies in [0, 1], >= 10.
    coherence : price of an unlike pair of neighbours, as a fraction of an atom's squared image, >= 0.
    """

    relaxations: int = 150
    coherence: float = 0.02

    def __post_init__(self) -> None:
        if self.relaxations < 10 or not self.coherence >= 0:
            raise InputError(
                f"discrete tomography has {self.relaxations} relaxations and a coherence of {self.coherence}, "
                "expected at least 10 and a coherence >= 0"
            )


class LatticeProblem(NamedTuple):
    """The images as a quadratic in the occupancies.

    sites : (s, 3), (x, y, z), angstrom. overlaps : (s, s) sums over all images of products of two atoms' images.
    matches : (s,) of an atom's images with the measured ones. neighbours : (s, s) of 0 and 1.
    """

    sites: Tensor
    overlaps: Tensor
    matches: Tensor
    neighbours: Tensor


@dataclass(frozen=True)
class DiscreteState(State):
    """occupancies : (s,) in [0, 1], 0 or 1 at the end. height : of one atom's projected peak, units of the images."""

    occupancies: Tensor
    height: float


def lattice_sites(vectors: Tensor, origin: Tensor, radius: float) -> Tensor:
    """The lattice points ``origin + i a + j b + k c`` within a radius of the origin of the box: (s, 3), angstrom.

    vectors : (3, 3), rows a, b, c (x, y, z), angstrom; a primitive cell. origin : (3,). radius : angstrom.
    """
    if float(torch.linalg.det(vectors).abs()) < 1e-3:
        raise InputError("the lattice vectors lie in a plane, expected three that span a cell")
    reach = radius + float(origin.norm())
    counts = [math.ceil(reach * float(row.norm())) for row in torch.linalg.inv(vectors).T]
    axes = [torch.arange(-n, n + 1, device=vectors.device, dtype=vectors.dtype) for n in counts]
    indices = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    points = indices @ vectors + origin
    return points[points.norm(dim=-1) <= radius]


def lattice_problem(stack: ImageStack, poses: Poses, sites: Tensor, width: float) -> LatticeProblem:
    """Overlaps and matches of Gaussian atoms on the sites.

    Parameters
    ----------
    stack : n images without background. poses : n. sites : (s, 3), angstrom.
    width : rms width of a projected atom, angstrom.

    Raises
    ------
    InputError : no sites, or more than memory holds.
    """
    if not 1 < len(sites) <= _MOST_SITES:
        raise InputError(f"the lattice has {len(sites)} sites in the radius, expected 2 to {_MOST_SITES}")
    overlaps, matches = sites.new_zeros(len(sites), len(sites)), sites.new_zeros(len(sites))
    for image, (along_x, along_y) in zip(stack.images, profiles(stack, poses, sites, width), strict=True):
        overlaps += (along_x @ along_x.T) * (along_y @ along_y.T)
        matches += ((along_y @ image) * along_x).sum(-1)
    distances = torch.cdist(sites, sites)
    shortest = float(distances[distances > 1e-3].min())
    neighbours = ((distances > 1e-3) & (distances < 1.1 * shortest)).to(sites)
    return LatticeProblem(sites, overlaps, matches, neighbours)


def profiles(stack: ImageStack, poses: Poses, sites: Tensor, width: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each image the factors (s, d) along x and y of Gaussians of peak 1 and rms ``width`` at the sites (s, 3)."""
    d = stack.box_size
    axis = (torch.arange(d, device=sites.device, dtype=sites.dtype) - d // 2) * stack.pixel_size
    for rotation, shift in zip(poses.rotations, poses.shifts, strict=True):
        seen = sites @ rotation[:2].T + shift
        along_x, along_y = (torch.exp(-((axis - seen[:, i : i + 1]) ** 2) / (2 * width**2)) for i in range(2))
        yield along_x, along_y


def _quadratic(problem: LatticeProblem, height: float, settings: DiscreteSettings) -> tuple[Tensor, Tensor]:
    """Q and c of the energy ``x' Q x / 2 - c x``: squared error plus the price of unlike neighbours."""
    unit = settings.coherence * height**2 * float(problem.overlaps.diagonal().mean())
    laplacian = torch.diag(problem.neighbours.sum(1)) - problem.neighbours
    return height**2 * problem.overlaps + unit * laplacian, height * problem.matches


def _height_of(problem: LatticeProblem, occupancies: Tensor) -> float:
    applied = problem.overlaps @ occupancies
    return float((problem.matches @ occupancies) / (occupancies @ applied).clamp(min=1e-30))


def _upper_mean(values: Tensor) -> float:
    """The mean of the upper of two groups (two-means)."""
    low, high = float(values.min()), float(values.max())
    for _ in range(20):
        upper = values > (low + high) / 2
        if not bool(upper.any()) or bool(upper.all()):
            break
        low, high = float(values[~upper].mean()), float(values[upper].mean())
    return high


def start(problem: LatticeProblem, settings: DiscreteSettings) -> DiscreteState:
    """Amplitudes that are only kept >= 0; the height of one atom is the mean of their upper group."""
    quadratic, linear = _quadratic(problem, 1.0, settings)
    rate = 1 / float(torch.linalg.matrix_norm(quadratic, ord=1))
    amplitudes = torch.zeros_like(linear)
    for _ in range(settings.relaxations):
        amplitudes = (amplitudes - rate * (quadratic @ amplitudes - linear)).clamp(min=0)
    height = _upper_mean(amplitudes)
    if height <= 0:
        raise InputError("the images do not match the lattice anywhere, expected bright atoms: check lattice and poses")
    return DiscreteState(0, False, (amplitudes / height).clamp(max=1), height)


def step(state: DiscreteState, problem: LatticeProblem, settings: DiscreteSettings) -> DiscreteState:
    """A projected gradient step under the rising concave penalty; afterwards the best single change."""
    state = replace(state, iteration=state.iteration + 1)
    if state.iteration > settings.relaxations:
        return _change(state, problem, settings)
    quadratic, linear = _quadratic(problem, state.height, settings)
    rise = state.iteration / settings.relaxations
    penalty = 2 * rise**2 * quadratic.diagonal().mean()
    rate = 1 / (torch.linalg.matrix_norm(quadratic, ord=1) + penalty)
    gradient = quadratic @ state.occupancies - linear + penalty * (0.5 - state.occupancies)
    occupancies = (state.occupancies - rate * gradient).clamp(0, 1)
    if state.iteration == settings.relaxations:
        occupancies = (occupancies > 0.5).to(occupancies)
        return replace(state, occupancies=occupancies, done=not bool(occupancies.any()))
    return replace(state, occupancies=occupancies)


def _change(state: DiscreteState, problem: LatticeProblem, settings: DiscreteSettings) -> DiscreteState:
    """Flip the site, or the pair of sites (an atom moves), that lowers the energy most; done when none does."""
    height = _height_of(problem, state.occupancies)
    quadratic, linear = _quadratic(problem, height, settings)
    occupancies = state.occupancies
    sign = 1 - 2 * occupancies
    gain = sign * (quadratic @ occupancies - linear) + quadratic.diagonal() / 2
    pairs = gain[:, None] + gain + sign[:, None] * sign * quadratic
    pairs.fill_diagonal_(float("inf"))
    best, flat = float(pairs.min()), int(pairs.argmin())
    chosen = [flat // len(gain), flat % len(gain)]
    if float(gain.min()) <= best:
        best, chosen = float(gain.min()), [int(gain.argmin())]
    if best >= -1e-6 * height**2 * float(problem.overlaps.diagonal().mean()):
        return replace(state, done=True, height=height)
    changed = occupancies.clone()
    changed[chosen] = 1 - changed[chosen]
    return replace(state, occupancies=changed, height=height, done=not bool(changed.any()))


def fill_lattice(
    problem: LatticeProblem,
    settings: DiscreteSettings | None = None,
    *,
    name: str = "discrete",
    observers: Sequence[Observer] = (),
) -> DiscreteState:
    """The sites that hold an atom; ``problem.sites[state.occupancies > 0.5]`` are its positions."""
    chosen = settings or DiscreteSettings()
    return run(name, start(problem, chosen), lambda s: step(s, problem, chosen), observers)
