"""How a crystal of known kind lies in a few images: orientation, lattice constant and origin.

The orientation is that whose reciprocal lattice meets the brightest spots of the images' transforms (only reciprocal
points near an image's central plane count); then all of it is improved by how much of the images lies under the sites.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from ase.build import bulk
from ase.data import atomic_numbers, reference_states
from scipy.optimize import minimize
from torch import Tensor

from aet_tilt.found_mask import smooth_images
from aet_tilt.reconstruction.discrete import lattice_sites, profiles
from common.data import ImageStack, InputError, Poses
from common.rotations import random_rotations, rotation_from_vector

_STRUCTURES = ("fcc", "bcc", "sc", "hcp", "diamond")
_FINEST = 1.0  # angstrom, of reciprocal lattice points that are looked for
_TRIALS = 20_000  # orientations
_AT_ONCE = 500
_KEPT = 12  # orientations that are improved
_ORIGINS = 6  # along each edge of the cell
_PLACED = 4  # of these, whose origin is found
_ALIKE = 1e-3  # relative difference of scores
_SMOOTH = 1.5  # angstrom, rms: what is left by this says nothing of the lattice
_FIRST = (0.02, 0.02, 0.02, 0.005, 0.4, 0.4, 0.4)  # steps of turn (radian), scale and origin (angstrom)
_STRETCH = 0.05  # of the lattice constant, in a search
_BRIGHTEST = 30.0  # that a point of a spectrum may count, of its surroundings
_WIDTH = 0.5  # angstrom, rms of an atom for the search


@dataclass(frozen=True)
class Crystal:
    """A lattice with its basis, in its own axes, angstrom.

    vectors : (3, 3), rows, of a primitive cell. basis : (b, 3), places in it. structure : its name. constant : of the
    conventional cell, angstrom.
    """

    vectors: Tensor
    basis: Tensor
    structure: str
    constant: float


@dataclass(frozen=True)
class Lying:
    """Where a crystal lies. rotation : (3, 3), specimen from crystal axes. scale : of its lattice constant. origin :
    (3,) angstrom, of the specimen."""

    rotation: Tensor
    scale: float
    origin: Tensor


@dataclass(frozen=True)
class LatticeSettings:
    """Of the crystal that discrete tomography fills.

    structure : fcc, bcc, sc, hcp or diamond; none: the element's own.
    constant : angstrom, of the conventional cell, right to a few percent; 0: the element's own.
    radius : angstrom, of a ball about the particle's middle that holds it; 0: from the images.
    """

    structure: str = ""
    constant: float = 0.0
    radius: float = 0.0

    def __post_init__(self) -> None:
        if self.structure not in ("", *_STRUCTURES):
            raise InputError(f"the structure is {self.structure!r}, expected one of {', '.join(_STRUCTURES)}")
        for name in ("constant", "radius"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"the lattice's {name} is {getattr(self, name)}, expected angstrom, >= 0")


def crystal_of(elements: tuple[str, ...], settings: LatticeSettings) -> Crystal:
    """The element's crystal, or another structure and lattice constant.

    Raises
    ------
    InputError : not one element, or nothing is known of its crystal.
    """
    if len(elements) != 1:
        raise InputError(f"discrete tomography fills sites with one element, not {len(elements)}: say --element")
    state: dict[str, Any] = reference_states[atomic_numbers[elements[0]]] or {}
    own = state.get("symmetry", "")
    kind = settings.structure or own
    constant = settings.constant or (float(state["a"]) if kind == own and "a" in state else 0.0)
    if kind not in _STRUCTURES or constant == 0:
        raise InputError(
            f"the crystal of {elements[0]} is not known as {' or '.join(_STRUCTURES)} with its lattice constant: say "
            "--lattice.structure and --lattice.constant"
        )
    cell = bulk(elements[0], kind, a=constant)
    return Crystal(torch.tensor(cell.cell.array).double(), torch.tensor(cell.positions).double(), kind, constant)


def sites_of(crystal: Crystal, lying: Lying, radius: float) -> Tensor:
    """All sites (s, 3) within a radius of the specimen's origin, angstrom, float64."""
    turn = lying.scale * lying.rotation.double().mT
    vectors = crystal.vectors @ turn
    parts = [lattice_sites(vectors, lying.origin.double() + shift @ turn, radius) for shift in crystal.basis]
    return torch.cat(parts)


def find_lattices(
    stack: ImageStack, poses: Poses, crystal: Crystal, radius: float, *, generator: torch.Generator
) -> list[Lying]:
    """How a crystal may lie in a few images: candidates, the best spots first.

    Parameters
    ----------
    stack, poses : n images without background and their poses, float64.
    radius : angstrom, of a ball about the specimen's origin that holds the particle.

    Notes
    -----
    The scale is sought within a few percent. Equivalent settings of a lattice are as good as each other.
    """
    spots, spectra = reciprocal_points(crystal, stack.pixel_size), flat_spectra(stack)
    turns = random_rotations(_TRIALS, generator=generator).double()
    scores = torch.cat([spot_scores(spectra, poses, spots, part, radius) for part in turns.split(_AT_ONCE)])

    def missed(x: np.ndarray, first: Tensor) -> float:
        if abs(x[3]) > _STRETCH:
            return 0.0
        scaled = replace(spots, places=spots.places / (1 + x[3]))
        return -float(spot_scores(spectra, poses, scaled, _turned(x, first)[None], radius)[0])

    simplex = np.vstack((np.zeros(4), np.diag([0.04, 0.04, 0.04, 0.01])))
    found = []
    for first in turns[scores.topk(_KEPT).indices]:
        options = {"initial_simplex": simplex, "maxfev": 150}
        end = minimize(missed, np.zeros(4), (first,), method="Nelder-Mead", options=options)
        found.append((float(end.fun), Lying(_turned(end.x, first), 1 + float(end.x[3]), first.new_zeros(3))))
    found.sort(key=lambda each: each[0])
    # equivalent settings of one lattice score alike
    told = [each for k, each in enumerate(found) if k == 0 or each[0] - found[k - 1][0] > _ALIKE * -found[0][0]]
    sharp = replace(stack, images=stack.images - smooth_images(stack.images, _SMOOTH / stack.pixel_size))
    return [placed(sharp, poses, crystal, lying, radius) for _, lying in told[:_PLACED]]


def _turned(x: np.ndarray, first: Tensor) -> Tensor:
    return rotation_from_vector(torch.from_numpy(np.asarray(x[:3], dtype=float))) @ first


@dataclass(frozen=True)
class ReciprocalPoints:
    """places : (g, 3), 1/angstrom, in crystal axes. weights : (g,) of their structure factors' squares."""

    places: Tensor
    weights: Tensor


def reciprocal_points(crystal: Crystal, pixel_size: float) -> ReciprocalPoints:
    """Those that images of this pixel size can show, one of each pair of opposite ones.

    Raises
    ------
    InputError : the pixels are too large for any.
    """
    finest = min(1 / _FINEST, 0.45 / pixel_size)
    counts = [math.ceil(finest * float(row.norm())) for row in crystal.vectors]
    axes = [torch.arange(-n, n + 1, dtype=torch.float64) for n in counts]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    index = index[: len(index) // 2]  # the middle one is 0, and what follows mirrors what came before
    places = index @ torch.linalg.inv(crystal.vectors).mT
    factor = torch.exp(2j * math.pi * (places @ crystal.basis.mT)).mean(1).abs().square()
    keep = (places.norm(dim=1) <= finest) & (factor > 1e-3)
    if not bool(keep.any()):
        raise InputError(
            f"pixels of {pixel_size:.3g} angstrom show no lattice planes of this crystal, expected smaller pixels"
        )
    return ReciprocalPoints(places[keep], factor[keep])


@dataclass(frozen=True)
class Spectra:
    """power : (n, k, k) of the images, over its mean at that distance from the middle, k // 2. step : 1/angstrom."""

    power: Tensor
    step: float


def flat_spectra(stack: ImageStack) -> Spectra:
    """The spectra of the images, padded to twice their size."""
    size = 2 * stack.box_size
    images = stack.images.double() - stack.images.double().mean((1, 2), keepdim=True)
    power = torch.fft.fftshift(torch.fft.fft2(images, s=(size, size)).abs().square(), dim=(1, 2))
    axis = torch.arange(size, device=power.device) - size // 2
    shell = (axis[:, None].square() + axis.square()).double().sqrt().round().long().clamp(max=size // 2)
    count = torch.bincount(shell.flatten())
    mean = torch.stack([torch.bincount(shell.flatten(), weights=each.flatten()) for each in power]) / count
    return Spectra((power / mean[:, shell].clamp(min=1e-300)).clamp(max=_BRIGHTEST), 1 / (size * stack.pixel_size))


def spot_scores(spectra: Spectra, poses: Poses, spots: ReciprocalPoints, turns: Tensor, radius: float) -> Tensor:
    """(t,) of orientations (t, 3, 3): power under the reciprocal points that lie in the images' central planes.

    radius : angstrom, of the particle; its inverse is how far off a plane a point still shows.
    """
    size = spectra.power.shape[-1]
    points = torch.einsum("tij,gj->tgi", turns, spots.places)
    total = turns.new_zeros(len(turns))
    for image, rotation in zip(spectra.power, poses.rotations.double(), strict=True):
        seen = points @ rotation.mT
        near = torch.exp(-2 * (seen[..., 2] * radius) ** 2) * spots.weights
        # from -1 at the first pixel to 1 at the last
        place = 2 * (seen[..., :2] / spectra.step + size // 2) / (size - 1) - 1
        power = torch.nn.functional.grid_sample(image[None, None], place[None], align_corners=True)[0, 0]
        total += (near * power).sum(1)
    return total


def under_sites(stack: ImageStack, poses: Poses, sites: Tensor) -> float:
    """How much of the images lies under Gaussians at the sites."""
    pairs = zip(stack.images, profiles(stack, poses, sites, _WIDTH), strict=True)
    return sum(float(((along_y @ image) * along_x).sum()) for image, (along_x, along_y) in pairs)


def placed(sharp: ImageStack, poses: Poses, crystal: Crystal, lying: Lying, radius: float) -> Lying:
    """The same crystal with its origin found, by what of the images lies under the sites, and then all of it improved.

    sharp : images without their low frequencies, to which every lattice is alike.
    """
    vectors = lying.scale * crystal.vectors @ lying.rotation.mT

    def missed(x: np.ndarray, origin: Tensor) -> float:
        if abs(x[3]) > _STRETCH:
            return 0.0
        there = moved(lying, x, origin)
        # over the square root of the number of sites, as in a correlation
        return -((1 + x[3]) ** 1.5) * under_sites(sharp, poses, sites_of(crystal, there, radius))

    part = torch.arange(_ORIGINS, dtype=torch.float64) / _ORIGINS
    origins = torch.cartesian_prod(part, part, part) @ vectors
    best = min(origins, key=lambda origin: missed(np.zeros(7), origin))
    options = {"initial_simplex": np.vstack((np.zeros(7), np.diag(_FIRST))), "maxfev": 400}
    end = minimize(missed, np.zeros(7), (best,), method="Nelder-Mead", options=options)
    return moved(lying, end.x, best)


def moved(lying: Lying, x: np.ndarray, origin: Tensor) -> Lying:
    """A crystal turned by x[:3] (radian), scaled by 1 + x[3], at ``origin`` moved by x[4:7] (angstrom)."""
    return Lying(_turned(x, lying.rotation), lying.scale * (1 + float(x[3])), origin + torch.from_numpy(x[4:7]))
