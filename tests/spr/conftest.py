"""Images of a few known views, whose classes are known, and of a crystal that tumbles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from common.data import ImageStack, Poses
from common.noise import NoiseModel, estimate_noise, whiten
from common.rotations import random_rotations, rotation_from_vector
from common.scattering import projected_atoms
from spr.ab_initio import SearchSettings, prepare
from spr.ring_images import RingImages
from spr.ring_sampling import SearchGrid
from spr.time_search import TimeSettings

PIXEL, BOX = 0.4, 41


@dataclass(frozen=True)
class KnownViews:
    """stack : n noisy images. clean : (k, d, d) views. label, angles, shifts : of each image; degrees, angstrom.

    ``view(x)`` is the image at ``R(-angle) x + shift``.
    """

    stack: ImageStack
    clean: Tensor
    label: Tensor
    angles: Tensor
    shifts: Tensor


def ball_of_atoms(n: int, radius: float, generator: torch.Generator) -> Tensor:
    """(n, 3) positions, no two closer than 2.2 angstrom."""
    chosen = torch.zeros(1, 3)
    while len(chosen) < n:
        tried = radius * (2 * torch.rand(2000, 3, generator=generator) - 1)
        free = tried[((tried[:, None] - chosen).norm(dim=2).amin(1) > 2.2) & (tried.norm(dim=1) < radius)]
        chosen = torch.cat((chosen, free[:1]))
    return chosen


def make_views(label: Tensor, n_views: int, snr: float, seed: int = 0, shift_sigma: float = 0.35) -> KnownViews:
    generator = torch.Generator().manual_seed(seed)
    atoms = ball_of_atoms(15, 4.5, generator)
    frames = random_rotations(n_views, generator=generator).float()
    angles = 360 * torch.rand(len(label), generator=generator)
    shifts = shift_sigma * torch.randn(len(label), 2, generator=generator)
    heights, sigmas = torch.full((15, 1), 2 * math.pi * 0.16), torch.full((15, 1), 0.4)

    def draw(positions: Tensor) -> Tensor:
        return projected_atoms(positions, heights, sigmas, box_size=BOX, pixel_size=PIXEL)

    seen = (frames @ atoms.T).mT[..., :2]  # (k, atoms, 2)
    a = torch.deg2rad(angles)
    back = torch.stack((a.cos(), a.sin(), -a.sin(), a.cos()), -1).view(-1, 2, 2)
    images = draw((back @ seen[label].mT).mT + shifts[:, None])
    inside = images[:, 8:-8, 8:-8]
    noise = float(inside.std()) / math.sqrt(snr)
    noisy = images + noise * torch.randn(images.shape, generator=generator)
    return KnownViews(ImageStack(noisy, PIXEL), draw(seen), label, angles, shifts)


@pytest.fixture(scope="session")
def known_views() -> Callable[..., KnownViews]:
    return make_views


@pytest.fixture(scope="session")
def four_views() -> KnownViews:
    """100 images of four views, in unequal numbers."""
    shares = torch.tensor([0.4, 0.3, 0.2, 0.1])
    return make_views(torch.multinomial(shares, 100, True, generator=torch.Generator().manual_seed(1)), 4, 1.0)


@dataclass(frozen=True)
class TumblingCrystal:
    """Noisy projections of an fcc particle that tumbles and, at the frames ``jumps``, jumps.

    rotations : (n, 3, 3). atoms : (k, 3). stack, noise : the images. images, grid : on rings. bond : angstrom.
    """

    rotations: Tensor
    atoms: Tensor
    stack: ImageStack
    noise: NoiseModel
    images: RingImages
    grid: SearchGrid
    search: SearchSettings
    time: TimeSettings
    bond: float
    jumps: tuple[int, int]


def crystal(bond: float) -> Tensor:
    """An fcc particle of no symmetry: a ball cut by a plane, its centre in no special place."""
    cells = torch.cartesian_prod(*[torch.arange(-3, 4).float()] * 3)
    basis = torch.tensor([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    sites = bond * math.sqrt(2) * (cells[:, None] + basis).reshape(-1, 3)
    sites = sites[(sites - torch.tensor([0.6, 1.1, 0.3])).norm(dim=1) < 6.4]
    sites = sites[sites @ torch.tensor([0.5, 0.1, 0.86]) < 3.0]
    return sites - sites.mean(0)


@pytest.fixture(scope="session")
def tumbling_crystal() -> TumblingCrystal:
    n, pixel, box, degrees, jumps, bond = 180, 0.4, 52, 4.0, (60, 120), 2.88
    generator = torch.Generator().manual_seed(2)
    turns = rotation_from_vector(math.radians(degrees) / 3**0.5 * torch.randn(n, 3, generator=generator))
    now, rotations = torch.eye(3), []
    for t, turn in enumerate(turns):
        now = random_rotations(1, generator=generator)[0].float() if t in jumps else turn @ now
        rotations.append(now)
    poses, atoms = torch.stack(rotations), crystal(bond)
    heights = torch.full((len(atoms), 1), 2 * math.pi * 0.4**2)
    clean = projected_atoms((atoms @ poses.mT)[..., :2], heights, torch.tensor(0.4), box_size=box, pixel_size=pixel)
    stack = ImageStack(clean + 1.5 * clean.std() * torch.randn(clean.shape, generator=generator), pixel)
    noise = estimate_noise(stack)
    search = SearchSettings(iterations=30, images_per_iteration=60, directions=200, coarsest=2.6, finest=1.5)
    time = TimeSettings(degrees_per_frame=degrees, stride=3, candidates=2000)
    white, still = whiten(stack, noise), torch.zeros(n, 2)
    images, grid = prepare(stack, white, noise, radius=6.5, shift_spread=0.2, settings=search, centres=still)
    return TumblingCrystal(poses, atoms, stack, noise, images, grid, search, time, bond, jumps)


@pytest.fixture(scope="session")
def misplaced(tumbling_crystal: TumblingCrystal) -> Poses:
    """The second stretch turned by a quarter about a cube axis: the lattice is the same, the outline is not."""
    rotations = tumbling_crystal.rotations.clone()
    first, last = tumbling_crystal.jumps
    rotations[first:last] = rotations[first:last] @ rotation_from_vector(torch.tensor([0.0, 0.0, math.pi / 2]))
    return Poses(rotations, torch.zeros(len(rotations), 2))
