"""Images sharp at one depth: the projector against slices blurred one by one, its adjoint, and what it is good for."""

import math

import pytest
import torch

from aet_tilt.reconstruction.depth_of_field import focused_operator
from aet_tilt.reconstruction.operator import make_operator
from aet_tilt.reconstruction.problem import make_problem
from aet_tilt.reconstruction.sieve import SieveSettings, sieve
from common.data import Focus, ImageStack, InputError, Poses
from common.rotations import random_rotations

D, PIXEL, OPENING = 32, 0.5, 0.02


def _volume(seed: int = 0) -> torch.Tensor:
    """A few Gaussian atoms, (d, d, d) indexed (z, y, x)."""
    generator = torch.Generator().manual_seed(seed)
    centres = (torch.rand(8, 3, generator=generator) - 0.5) * 14
    grid = torch.stack(torch.meshgrid(*[torch.arange(D) - D // 2] * 3, indexing="ij")).float()
    return torch.exp(-(grid - centres[:, :, None, None, None]).square().sum(1) / (2 * 1.5**2)).sum(0)


def _blurred(images: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """(n, d, d) convolved with Gaussians of these rms widths (n,), angstrom."""
    k = torch.fft.fftfreq(D, PIXEL, dtype=torch.float64)
    squared = k[:, None] ** 2 + k**2
    transfer = torch.exp(-2 * math.pi**2 * squared * widths[:, None, None] ** 2)
    return torch.fft.ifft2(torch.fft.fft2(images) * transfer).real


@pytest.mark.parametrize("tilt", [0.0, 90.0, -90.0, 180.0])
def test_every_depth_is_blurred_by_its_distance_from_the_focus(tilt: float) -> None:
    values = _volume().double()
    poses = Poses.from_tilt_angles(torch.full((3,), tilt, dtype=torch.float64))
    heights = torch.tensor([-30.0, 0.0, 12.0], dtype=torch.float64)
    found = focused_operator(poses, D, PIXEL, Focus(heights, OPENING)).project(values)
    # the slices at z = 0 .. along the beam, each seen as an image (y, x): turned about y by hand
    turned = {0.0: values, 180.0: values.flip((0, 2)), 90.0: values.permute(2, 1, 0).flip(0)}
    turned[-90.0] = values.permute(2, 1, 0).flip(2)
    slices = turned[tilt]
    if tilt != 0.0:  # a flip of an even box moves the origin by a pixel
        axes = {180.0: (0, 2), 90.0: (0,), -90.0: (2,)}[tilt]
        slices = slices.roll([1] * len(axes), axes)
    z = PIXEL * (torch.arange(D, dtype=torch.float64) - D // 2)
    for image, focus in zip(found, heights, strict=True):
        expected = PIXEL * _blurred(slices, OPENING * (z - focus)).sum(0)
        assert float((image - expected).abs().max()) < 3e-3 * float(expected.max())


def test_without_opening_it_projects() -> None:
    values, poses = _volume(), Poses.from_tilt_angles(torch.tensor([-50.0, 0.0, 20.0]))
    poses = Poses(poses.rotations, torch.tensor([[0.3, -0.2], [0.0, 0.0], [1.0, 0.7]]))
    sharp = make_operator(poses, D, PIXEL).project(values)
    found = focused_operator(poses, D, PIXEL, Focus(torch.tensor([-20.0, 0.0, 20.0]), 0.0)).project(values)
    torch.testing.assert_close(found, sharp, atol=1e-4 * float(sharp.max()), rtol=0)


def test_the_adjoint_is_exact() -> None:
    generator = torch.Generator().manual_seed(3)
    poses = Poses.from_tilt_angles(torch.tensor([-71.0, -3.0, 40.0, 90.0], dtype=torch.float64))
    poses = Poses(poses.rotations, torch.randn(4, 2, generator=generator, dtype=torch.float64))
    operator = focused_operator(poses, D, PIXEL, Focus(torch.tensor([-40.0, 5.0, 0.0, 22.0]), OPENING))
    values = torch.randn(D, D, D, generator=generator, dtype=torch.float64)
    images = torch.randn(4, D, D, generator=generator, dtype=torch.float64)
    forward, backward = (operator.project(values) * images).sum(), (operator.backproject(images) * values).sum()
    assert float(forward) == pytest.approx(float(backward), rel=1e-9)
    part = operator.subset(torch.tensor([2, 0])).project(values)
    torch.testing.assert_close(part, operator.project(values)[[2, 0]], atol=1e-2, rtol=0)


def test_foci_tell_depths_that_few_tilts_do_not() -> None:
    """From five tilts within 30 degrees, five foci each: the true volume lies nearer when the focus is known."""
    values = _volume(4)
    angles = torch.linspace(-30, 30, 5).repeat_interleave(5)
    poses = Poses.from_tilt_angles(angles)
    focus = Focus(torch.linspace(-12, 12, 5).repeat(5), 0.1)
    images = focused_operator(poses, D, PIXEL, focus).project(values)
    away = []
    for known in (None, focus):
        stack = ImageStack(images, PIXEL, focus=known)
        found = sieve(make_problem(stack, poses), SieveSettings(40, 1.0)).values
        away.append(float((found - values).norm() / values.norm()))
    assert away[1] < 0.8 * away[0]


def test_other_poses_are_refused() -> None:
    poses = Poses(random_rotations(4, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 2))
    with pytest.raises(InputError, match="tilts about one axis"):
        focused_operator(poses, D, PIXEL, Focus(torch.zeros(4), OPENING))
