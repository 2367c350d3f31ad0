"""A particle of Gaussian atoms whose images are known exactly, without any projector."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from aet_tilt.reconstruction.problem import Problem, make_problem
from common.data import ImageStack, Poses

PIXEL = 0.5


@dataclass(frozen=True)
class Phantom:
    """centres : (a, 3), angstrom. width : rms of the atoms, angstrom. box : pixels."""

    centres: Tensor
    width: float
    box: int

    def profile(self, positions: Tensor) -> Tensor:
        axis = (torch.arange(self.box) - self.box // 2).to(positions) * PIXEL
        return torch.exp(-((axis - positions[..., None]) ** 2) / (2 * self.width**2))

    @property
    def volume(self) -> Tensor:
        x, y, z = (self.profile(self.centres[:, i]) for i in range(3))
        return torch.einsum("az,ay,ax->zyx", z, y, x)

    def images(self, poses: Poses) -> Tensor:
        seen = torch.einsum("nij,aj->nai", poses.rotations, self.centres)[..., :2] + poses.shifts[:, None]
        planes = torch.einsum("nay,nax->nyx", self.profile(seen[..., 1]), self.profile(seen[..., 0]))
        return planes * (self.width * math.sqrt(2 * math.pi))


def make_phantom(
    box: int = 32, n: int = 30, width: float = 0.5, fill: float = 0.3, dtype: torch.dtype = torch.float32
) -> Phantom:
    """Atoms at least 2 angstrom apart within ``fill`` of the box around the origin."""
    generator = torch.Generator().manual_seed(1)
    kept: list[Tensor] = []
    while len(kept) < n:
        point = (torch.rand(3, generator=generator) * 2 - 1) * fill * box * PIXEL
        if float(point.norm()) < fill * box * PIXEL and all(float((point - other).norm()) > 2.0 for other in kept):
            kept.append(point)
    return Phantom(torch.stack(kept).to(dtype), width, box)


def tilts(n: int = 31, most: float = 70.0, dtype: torch.dtype = torch.float32) -> Poses:
    return Poses.from_tilt_angles(torch.linspace(-most, most, n, dtype=dtype))


def noisy(images: Tensor, counts: float, seed: int = 0) -> Tensor:
    """Poisson images with this many counts at the brightest pixel, in the units of the images."""
    scale = counts / images.max()
    return torch.poisson(images * scale, generator=torch.Generator().manual_seed(seed)) / scale


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


@pytest.fixture(scope="session")
def new_phantom() -> Callable[..., Phantom]:
    return make_phantom


@pytest.fixture(scope="session")
def new_tilts() -> Callable[..., Poses]:
    return tilts


@pytest.fixture(scope="session")
def count() -> Callable[..., Tensor]:
    return noisy


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    return make_phantom()


@pytest.fixture(scope="session")
def clean(phantom: Phantom) -> Problem:
    return make_problem(ImageStack(phantom.images(tilts()), PIXEL), tilts())


@pytest.fixture(scope="session")
def counted(phantom: Phantom) -> Problem:
    """At most 20 counts a pixel."""
    return make_problem(ImageStack(noisy(phantom.images(tilts()), 20.0), PIXEL), tilts())


@pytest.fixture(scope="session")
def agreement(phantom: Phantom) -> Callable[[Tensor], float]:
    """The correlation of a map with the truth."""
    truth = phantom.volume
    return lambda values: correlation(values, truth)
