import math

import pytest
import torch

from aet_tilt.reconstruction.est import EstSettings, equal_slope, measure
from aet_tilt.reconstruction.problem import make_problem
from aet_tilt.reconstruction.pseudopolar import (
    fractional_fourier,
    invert_pseudopolar,
    pseudopolar,
    pseudopolar_adjoint,
)
from aet_tilt.reconstruction.real_space import filtered_back_projection
from common.data import ImageStack, InputError, Poses
from common.fourier import crop_or_pad
from common.rotations import random_rotations


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("d", "n_out"), [(8, 8), (7, 12), (12, 5)])
def test_the_fractional_transform_is_its_sum(d, n_out):
    values, alpha = torch.complex(normal(3, d), normal(3, d, seed=1)), torch.tensor([0.01, -0.3, 1 / 7])
    x, out = torch.arange(d) - d // 2, torch.arange(n_out) - n_out // 2
    matrix = torch.exp(-2j * math.pi * alpha.double()[:, None, None] * (out[:, None] * x))
    assert torch.allclose(fractional_fourier(values, alpha, n_out), (matrix @ values[..., None])[..., 0], atol=1e-11)


@pytest.mark.parametrize("d", [8, 9])
def test_the_pseudopolar_transform_is_its_sum_and_has_its_adjoint(d):
    slices = normal(2, d, d)
    samples = pseudopolar(slices.to(torch.complex128))
    k, slope = torch.arange(2 * d).double() - d, (torch.arange(2 * d + 1).double() - d) / d
    x = torch.arange(d) - d // 2
    steep = torch.exp(-1j * math.pi / d * (k[:, None] * slope)[..., None] * x)
    flat = torch.exp(-1j * math.pi / d * k[:, None] * x)
    complex_slices = slices.to(torch.complex128)
    assert torch.allclose(samples[:, 0], torch.einsum("rzx,kx,klz->rkl", complex_slices, flat, steep), atol=1e-10)
    assert torch.allclose(samples[:, 1], torch.einsum("rzx,kz,klx->rkl", complex_slices, flat, steep), atol=1e-10)
    other = torch.complex(normal(*samples.shape), normal(*samples.shape, seed=1))
    ours, theirs = (samples.conj() * other).sum(), (slices * pseudopolar_adjoint(other)).sum()
    assert abs(complex(ours - theirs)) < 1e-10 * float(samples.norm() * other.norm())


def test_six_steps_invert_the_pseudopolar_transform():
    slices = normal(2, 10, 10)
    found = invert_pseudopolar(pseudopolar(slices.to(torch.complex128)), torch.zeros_like(slices), 6)
    assert float((found - slices).norm() / slices.norm()) < 1e-10


def equal_slopes(n, d):
    """Tilts whose tangents or cotangents are multiples of 1 / d: they lie on pseudopolar lines."""
    slopes = torch.round(torch.linspace(-1, 1, n) * d) / d
    flat = torch.rad2deg(torch.atan(slopes))
    return Poses.from_tilt_angles(torch.cat((flat, 90 + flat[1:-1])))


def test_equally_sloped_tilts_give_the_particle(phantom, agreement):
    poses = equal_slopes(17, 32)
    problem = make_problem(ImageStack(phantom.images(poses), 0.5), poses)
    found = equal_slope(problem, EstSettings(iterations=15))
    assert agreement(found.values) > 0.98
    assert agreement(found.values) > agreement(filtered_back_projection(problem))
    truth = phantom.volume
    assert float((found.values * truth).sum() / truth.square().sum()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("oversampling", [1.0, 1.6])
def test_lines_hold_the_transform_of_the_particle(phantom, oversampling):
    poses = equal_slopes(5, 32 if oversampling == 1 else 52)
    poses = Poses(poses.rotations, torch.tensor([[0.3, -0.2]]).expand(len(poses), 2))
    problem = make_problem(ImageStack(phantom.images(poses), 0.5), poses)
    lines = measure(problem, EstSettings(oversampling=oversampling))
    slices = phantom.volume.transpose(0, 1)
    d = lines.values.shape[-1] // 2
    samples = pseudopolar(crop_or_pad(slices, d, 2).to(torch.complex64))[:, lines.sector, :, lines.slope]
    inside = (lines.used | lines.free).expand_as(lines.values)
    error = (samples - lines.values)[inside].norm() / samples[inside].norm()
    assert float(error) < 6e-3  # the atoms reach a little beyond Nyquist


def test_it_beats_back_projection_on_counts(counted, agreement):
    found = equal_slope(counted, EstSettings(iterations=10))
    assert agreement(found.values) > agreement(filtered_back_projection(counted)) + 0.05


def test_it_stops_when_the_lines_left_out_say_so(phantom, count):
    poses = equal_slopes(17, 32)
    problem = make_problem(ImageStack(count(phantom.images(poses), 2.0), 0.5), poses)
    found = equal_slope(problem, EstSettings(iterations=200, patience=2))
    assert found.iteration < 200
    assert found.iteration == found.since + 3


def test_lines_left_out_are_never_used(clean):
    measured = measure(clean, EstSettings(free_fraction=0.2))
    assert not bool((measured.used & measured.free).any())
    share = float(measured.free.sum() / (measured.free | measured.used).sum())
    assert share == pytest.approx(0.2, abs=0.03)
    assert not bool((measured.free.any(-1) & measured.used.any(-1)).any())  # whole lines


def test_other_poses_are_refused():
    poses = Poses(random_rotations(3, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 2))
    with pytest.raises(InputError, match="about the y axis"):
        measure(make_problem(ImageStack(torch.zeros(3, 8, 8), 1.0), poses), EstSettings())
