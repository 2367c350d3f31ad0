from dataclasses import replace
from typing import Any

import pytest
import torch

from aet_tilt.found_mask import find_particle
from aet_tilt.noise_gain import estimate_gain
from aet_tilt.preprocessing import PreprocessingSettings, denoise, for_reconstruction, preprocess, same_views
from common.data import ImageStack, InputError, Poses
from common.fourier import shift_images


def test_background_and_mask(dim: Any) -> None:
    found = find_particle(dim.stack.images)
    assert bool(found.isolated.all())
    torch.testing.assert_close(found.background, torch.full((25,), 3.0), atol=0.35, rtol=0)
    signal = (dim.clean - 3).clamp(min=0)
    assert float((signal * found.inside).sum() / signal.sum()) > 0.98


def test_a_film_has_no_background() -> None:
    images = torch.poisson(torch.full((5, 40, 40), 50.0), generator=torch.Generator().manual_seed(0))
    images = images + 30 * torch.rand(5, 40, 40, generator=torch.Generator().manual_seed(1))
    found = find_particle(images)
    assert not bool(found.isolated.any())
    assert float(found.background.abs().max()) == 0
    pre = preprocess(ImageStack(images, 1.0), Poses.from_tilt_angles(torch.arange(5.0)))
    assert torch.equal(pre.dose, torch.ones(5))
    assert any("border" in note for note in pre.notes)


@pytest.mark.parametrize(("gain", "read"), [(1.0, 0.0), (4.0, 0.0), (2.0, 5.0)])
def test_gain_and_read_noise(dim: Any, gain: float, read: float) -> None:
    generator = torch.Generator().manual_seed(8)
    images = gain * torch.poisson(dim.clean, generator=generator)
    images = images + read * torch.randn(images.shape, generator=generator)
    found = estimate_gain(images)
    assert found.white
    assert found.gain == pytest.approx(gain, rel=0.15)
    assert found.read_noise == pytest.approx(read, abs=0.15 * read or 0.9 * gain)


def test_denoised_images_have_no_gain(dim: Any) -> None:
    pre = preprocess(ImageStack(dim.clean, 1.0), dim.nominal)
    assert pre.gain < 0.02


def test_hot_and_dead_pixels_are_replaced_and_nothing_else(dim: Any) -> None:
    images = dim.stack.images.clone()
    images[2, 5, 6], images[9, 20, 20], images[14, 30, 8] = 4000.0, 4000.0, 900.0
    pre = preprocess(replace(dim.stack, images=images), dim.nominal)
    changed = (pre.stack.images != images).nonzero().tolist()
    assert changed == [[2, 5, 6], [9, 20, 20], [14, 30, 8]]
    assert float((pre.stack.images - dim.stack.images).abs().max()) < 30
    untouched = preprocess(dim.stack, dim.nominal)
    assert torch.equal(untouched.stack.images, dim.stack.images)
    off = preprocess(replace(dim.stack, images=images), dim.nominal, PreprocessingSettings(hot_pixels=False))
    assert torch.equal(off.stack.images, images)


def test_repeated_frames_are_averaged_without_their_drift(dim: Any) -> None:
    generator = torch.Generator().manual_seed(9)
    repeats = 4
    drift = torch.randn(25, repeats, 2, generator=generator)
    drift = drift - drift.mean(1, keepdim=True)
    frames = shift_images(dim.clean[:, None].expand(-1, repeats, -1, -1), drift).clamp(min=0)
    stack = ImageStack(torch.poisson(frames, generator=generator).flatten(0, 1), 1.0)
    poses = Poses(dim.nominal.rotations.repeat_interleave(repeats, 0), torch.zeros(25 * repeats, 2))
    pre = preprocess(stack, poses)
    assert torch.equal(pre.frames, torch.arange(25).repeat_interleave(repeats))
    torch.testing.assert_close(pre.poses.rotations, dim.nominal.rotations)
    error = (pre.stack.images - dim.clean).square().mean()
    blurred = (stack.images.view(25, repeats, 40, 40).mean(1) - dim.clean).square().mean()
    assert float(error) < 1.5 * float(dim.clean.mean()) / repeats  # the counts' own noise
    assert float(error) < 0.5 * float(blurred)


def test_same_views_need_not_be_neighbours() -> None:
    poses = Poses.from_tilt_angles(torch.tensor([0.0, 3.0, 0.0, -3.0, 3.0]))
    assert same_views(poses).tolist() == [0, 1, 0, 2, 1]


def test_dose_is_relative(dim: Any) -> None:
    factors = torch.linspace(0.7, 1.4, 25)
    generator = torch.Generator().manual_seed(10)
    images = torch.poisson(dim.clean * factors[:, None, None], generator=generator)
    pre = preprocess(ImageStack(images, 1.0), dim.nominal)
    torch.testing.assert_close(pre.dose, factors / factors.median(), rtol=0.08, atol=0)
    ready = for_reconstruction(pre).images
    expected = (images - pre.background[:, None, None]) / pre.dose[:, None, None]
    assert torch.equal(ready, expected)


@pytest.mark.parametrize("method", ["non-local means", "total variation", "wavelet", "gaussian"])
def test_denoising_comes_nearer_to_the_truth(dim: Any, method: Any) -> None:
    pytest.importorskip("skimage")
    few = dim.stack.images[:3]
    clean = denoise(few, method, gain=1.0, read_noise=0.0)
    assert clean.shape == few.shape
    assert float((clean - dim.clean[:3]).square().mean()) < 0.8 * float((few - dim.clean[:3]).square().mean())
    assert float(clean.mean()) == pytest.approx(float(few.mean()), rel=0.04)


def test_unknown_denoising_and_unequal_numbers(dim: Any) -> None:
    with pytest.raises(InputError, match="the denoising is 'bm3d'"):
        denoise(dim.stack.images, "bm3d", gain=1.0, read_noise=0.0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="3 poses for 25 images"):
        preprocess(dim.stack, dim.nominal[torch.arange(3)])
