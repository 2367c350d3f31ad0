"""Images of a few known views, turned in the plane and shifted, whose classes are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from common.data import ImageStack
from common.rotations import random_rotations
from common.scattering import projected_atoms

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
