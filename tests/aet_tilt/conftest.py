"""A small particle of Gaussian atoms seen at many tilts: what alignment and preprocessing are tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from common.data import ImageStack, Poses
from common.scattering import projected_atoms


@dataclass(frozen=True)
class TiltCase:
    stack: ImageStack
    nominal: Poses
    true: Poses
    clean: torch.Tensor


def make_case(
    *, n: int = 25, box: int = 40, dose: float = 200.0, background: float = 3.0, shift: float = 1.5, axis: float = 0.0
) -> TiltCase:
    """40 atoms in a ball; Poisson counts; shifts (angstrom and pixels are the same here) unknown to the reader."""
    generator = torch.Generator().manual_seed(4)
    points = torch.randn(4000, 3, generator=generator) * 6
    kept: list[torch.Tensor] = []
    for point in points[points.norm(dim=-1) < 9.5]:
        if len(kept) < 40 and all(float((point - other).norm()) > 3.2 for other in kept):
            kept.append(point)
    atoms = torch.stack(kept) - torch.stack(kept).mean(0)
    tilts = torch.linspace(-66, 66, n)
    nominal = Poses.from_tilt_angles(tilts)
    turn = torch.deg2rad(torch.tensor(axis))
    in_plane = torch.eye(3)
    in_plane[:2, :2] = torch.tensor([[turn.cos(), -turn.sin()], [turn.sin(), turn.cos()]])
    shifts = shift * torch.randn(n, 2, generator=generator)
    rotations = in_plane @ nominal.rotations
    seen = torch.einsum("nij,aj->nai", rotations[:, :2], atoms) + shifts[:, None]
    heights, sigmas = torch.ones(len(atoms), 1), torch.full((len(atoms), 1), 1.1)
    clean = torch.stack([projected_atoms(p, heights, sigmas, box_size=box, pixel_size=1.0) for p in seen])
    clean = clean * (dose / clean.amax()) + background
    images = torch.poisson(clean, generator=generator)
    return TiltCase(ImageStack(images, 1.0), nominal, Poses(rotations, shifts), clean)


@pytest.fixture(scope="session")
def case() -> TiltCase:
    return make_case()


@pytest.fixture(scope="session")
def make() -> Callable[..., TiltCase]:
    return make_case


@pytest.fixture(scope="session")
def dim() -> TiltCase:
    """Few counts: at most 40 a pixel."""
    return make_case(dose=40.0)
