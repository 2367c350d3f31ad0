"""A crystal from two to five images: where its lattice lies, and which of its sites hold an atom.

Lattice, occupancies, the width of atoms and the shifts of the images are found in turns: `lattice_search` begins,
`discrete` fills the sites, and the filled sites say better where the lattice lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from aet_tilt.reconstruction.discrete import (
    DiscreteSettings,
    DiscreteState,
    fill_lattice,
    lattice_problem,
    profiles,
)
from aet_tilt.reconstruction.lattice_search import Crystal, Lying, find_lattices, moved, sites_of
from common.atoms.spot_image import correlations
from common.data import ImageStack, Poses
from common.fourier import shift_images
from common.iteration import Observer, under
from common.registration import register_images

_WIDTH = 0.5  # angstrom, rms of an atom at first
_STEPS = (0.01, 0.01, 0.01, 0.004, 0.15, 0.15, 0.15, 0.1)  # of turn, scale, origin and log width


@dataclass(frozen=True)
class Filled:
    """A crystal and its atoms.

    lying : of the lattice. width : angstrom, rms of a projected atom. poses : with the shifts as found.
    positions : (n, 3) of the filled sites, angstrom. sites : how many there were. height : of an atom's projected peak,
    units of the images. correlation : mean of the images with the model.
    """

    lying: Lying
    width: float
    poses: Poses
    positions: Tensor
    sites: int
    height: float
    correlation: float


def fill_crystal(
    stack: ImageStack,
    poses: Poses,
    crystal: Crystal,
    radius: float,
    settings: DiscreteSettings,
    *,
    rounds: int = 3,
    seed: int = 0,
    observers: Sequence[Observer] = (),
) -> Filled:
    """The atoms of a crystal of known kind.

    Parameters
    ----------
    stack : n images without background. poses : right to a degree; the shifts to about a pixel.
    radius : angstrom, of a ball about the specimen's origin that holds the particle.
    rounds : of filling and improving, for each of the lattices that may be it.

    Raises
    ------
    InputError : the images match no lattice, or the ball holds too many sites.
    """
    # too small a problem for an accelerator
    wide = replace(stack, images=stack.images.double().cpu())
    posed = Poses(poses.rotations.double().cpu(), poses.shifts.double().cpu())
    candidates = find_lattices(wide, posed, crystal, radius, generator=torch.Generator().manual_seed(seed))
    made = []
    for number, lying in enumerate(candidates, 1):
        watched = under(f"lattice/{number}", observers)
        made.append(_improved(wide, posed, crystal, lying, radius, settings, rounds, watched))
    return max(made, key=lambda each: each.correlation)


def _improved(
    stack: ImageStack,
    poses: Poses,
    crystal: Crystal,
    lying: Lying,
    radius: float,
    settings: DiscreteSettings,
    rounds: int,
    observers: Sequence[Observer],
) -> Filled:
    def fill(name: str) -> DiscreteState:
        return fill_lattice(lattice_problem(stack, poses, sites, width), settings, name=name, observers=observers)

    width, sites = _WIDTH, sites_of(crystal, lying, radius)
    for number in range(1, rounds + 1):
        filled = fill(f"fill/{number}")
        lying, width = fitted_lattice(stack, poses, lying, sites[filled.occupancies > 0.5], width)
        sites = sites_of(crystal, lying, radius)
        filled = fill(f"refill/{number}")
        atoms = sites[filled.occupancies > 0.5]
        images = filled.height * atom_images(stack, poses, atoms, width)
        off = register_images(images, stack.images, max_frequency=0.3)
        poses = Poses(poses.rotations, poses.shifts + stack.pixel_size * off.clamp(-2, 2))
        images = shift_images(images, off)
    agreement = float(correlations(images.flatten(1), stack.images.flatten(1)).mean())
    return Filled(lying, width, poses, atoms, len(sites), filled.height, agreement)


def atom_images(stack: ImageStack, poses: Poses, atoms: Tensor, width: float) -> Tensor:
    """(n, d, d) of Gaussian atoms of unit projected peak at (a, 3), angstrom."""
    return torch.stack([along_y.mT @ along_x for along_x, along_y in profiles(stack, poses, atoms, width)])


def fitted_lattice(stack: ImageStack, poses: Poses, lying: Lying, atoms: Tensor, width: float) -> tuple[Lying, float]:
    """The turn, scale and origin of a lattice, and the width, at which the atoms' images correlate best with those
    measured; atoms (a, 3) move with their lattice."""
    inverse = torch.linalg.inv(lying.scale * lying.rotation)
    inner = (atoms - lying.origin) @ inverse.mT

    def missed(x: np.ndarray) -> float:
        there = moved(lying, x, lying.origin)
        places = inner @ (there.scale * there.rotation).mT + there.origin
        images = atom_images(stack, poses, places, width * math.exp(x[7]))
        return -float((images * stack.images).sum() / images.norm())

    options = {"initial_simplex": np.vstack((np.zeros(8), np.diag(_STEPS))), "maxfev": 500, "xatol": 1e-4}
    end = minimize(missed, np.zeros(8), method="Nelder-Mead", options=options)
    return moved(lying, end.x, lying.origin), width * math.exp(float(end.x[7]))
