"""Frames scanned line by line of a specimen that drifts, and whose lines jitter, with the undistorted image known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from aet_tilt.preprocessing import PreprocessingSettings, preprocess
from aet_tilt.scan_distortion import correct_scan, registered
from common.data import ImageStack, InputError, Poses
from common.fourier import shift_images
from common.registration import register_images

D = 64


def specimen(x: Tensor, y: Tensor) -> Tensor:
    """A particle of 60 columns at places (d, d) of x and y, pixels from the middle; counts."""
    generator = torch.Generator().manual_seed(3)
    places = 17 * (2 * torch.rand(60, 2, generator=generator) - 1)
    squares = (x[..., None] - places[:, 0]) ** 2 + (y[..., None] - places[:, 1]) ** 2
    return 40 * torch.exp(-squares / (2 * 1.6**2)).sum(-1) + 2


def scanned(velocity: tuple[float, float], jitter: float, turns: list[int], *, noise: bool, seed: int = 0) -> Tensor:
    """Frames in a row: pixel by pixel where the specimen is when the line is scanned."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(D) - (D - 1) / 2
    frames = []
    for number, q in enumerate(turns):
        time = number + axis[:, None] / D  # of each line, frames
        off = jitter * torch.randn(D, 1, generator=generator)
        angle = q * math.pi / 2  # lines along (cos, sin), lines follow each other along (-sin, cos)
        x = math.cos(angle) * (axis - off) - math.sin(angle) * axis[:, None] - velocity[0] * time
        y = math.sin(angle) * (axis - off) + math.cos(angle) * axis[:, None] - velocity[1] * time
        lines = specimen(x, y)
        frame = torch.poisson(lines, generator=generator) if noise else lines
        frames.append(torch.rot90(frame, -q))
    return torch.stack(frames)


def error(image: Tensor) -> float:
    """Rms difference from the still specimen, wherever it lies, of its standard deviation."""
    axis = torch.arange(D) - (D - 1) / 2
    truth = specimen(axis.expand(D, D), axis[:, None].expand(D, D))
    here = shift_images(image[None], register_images(image[None], truth[None], max_frequency=0.25))[0]
    inner = slice(6, -6)
    return float((here - truth)[inner, inner].square().mean().sqrt() / truth.std())


def plainly(frames: Tensor) -> Tensor:
    return shift_images(frames, registered(frames, 0.25)).mean(0)


@pytest.mark.parametrize("turns", [[0, 0, 0], [0, 1, 0, 1], [2, 3]])
def test_drift_within_frames_is_undone(turns: list[int]) -> None:
    """3 pixels along and 2 across from one frame to the next; without noise and jitter little is left."""
    frames = scanned((3.0, -2.0), 0.0, turns, noise=False)
    found = correct_scan(frames, torch.tensor(turns))
    assert error(found.images.mean(0)) < 0.35 * error(plainly(frames))
    torch.testing.assert_close(found.velocity.mean(0), torch.tensor([3.0, -2.0]), atol=0.3, rtol=0)


@pytest.mark.parametrize("turns", [[0] * 6, [0, 1] * 3])
def test_lines_are_moved_back(turns: list[int]) -> None:
    """Frames agree as before they were distorted; only lines that cross show what all frames have in common."""
    noisy, quiet = (scanned((0.0, 0.0), 0.8, turns, noise=noise) for noise in (True, False))
    assert correct_scan(noisy, torch.tensor(turns)).jitter == pytest.approx(0.8, rel=0.3)
    found = correct_scan(quiet, torch.tensor(turns))
    assert float(found.images.std(0).mean()) < 0.4 * float(quiet.std(0).mean())
    assert 1 not in turns or error(found.images.mean(0)) < 0.6 * error(plainly(quiet))


def test_the_tilt_series_takes_the_correction() -> None:
    """Orthogonal pairs of two angles, through the preprocessing as a user asks for it."""
    frames = torch.cat([scanned((2.0, 1.0), 0.0, [0, 1], noise=False, seed=k) for k in (0, 1)])
    poses = Poses.from_tilt_angles(torch.tensor([0.0, 0.0, 3.0, 3.0]))
    asked = PreprocessingSettings(correct_scan=True, scan_angles=(0, 90), hot_pixels=False)
    pre = preprocess(ImageStack(frames, 1.0), poses, asked)
    plain = preprocess(ImageStack(frames, 1.0), poses, PreprocessingSettings(hot_pixels=False))
    assert len(pre.stack) == len(plain.stack) == 2
    assert any("within a frame" in note for note in pre.notes)
    assert error(pre.stack.images[1]) < 0.5 * error(plain.stack.images[1])
    with pytest.raises(InputError, match="multiples of 90"):
        PreprocessingSettings(scan_angles=(0, 45))


def test_frames_without_distortion_stay_as_they_are() -> None:
    frames = scanned((0.0, 0.0), 0.0, [0] * 4, noise=True)
    found = correct_scan(frames, torch.zeros(4, dtype=torch.long))
    assert found.jitter < 0.12
    assert error(found.images.mean(0)) < 1.1 * error(plainly(frames))


def test_one_frame_shows_no_distortion() -> None:
    with pytest.raises(InputError, match="expected at least 2"):
        correct_scan(torch.zeros(1, 8, 8), torch.zeros(1, dtype=torch.long))
