"""Motion: a known drift comes back, and noise does not move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.fourier import shift_images
from common.io import write_images
from common.io.movie import Movie, read_movie
from spr.motion import MotionSettings, estimate_motion

SIZE, FRAMES, PIXEL = 96, 120, 0.5


def movie_of(frames: torch.Tensor, folder: Path) -> Movie:
    write_images(folder / "m.mrc", frames, PIXEL)
    return read_movie(folder / "m.mrc", find_defects=False)


def noise(seed: int) -> torch.Tensor:
    return torch.randn(FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def test_a_drift_far_below_the_noise_comes_back(tmp_path: Path) -> None:
    scene = torch.randn(1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    k = torch.fft.fftfreq(SIZE, PIXEL)
    band = (k[:, None] ** 2 + k**2).sqrt()
    scene = torch.fft.ifft2(torch.fft.fft2(scene) * ((band > 0.1) & (band < 0.5))).real
    t = torch.arange(FRAMES)
    drift = torch.stack((0.03 * t, 0.8 * torch.sin(t / 25)), 1)  # angstrom
    frames = shift_images(scene.expand(FRAMES, -1, -1), drift / PIXEL) * 0.7 + noise(2)
    motion = estimate_motion(movie_of(frames, tmp_path), MotionSettings(window=12, patches=1))
    off = motion.shifts - (drift - drift.mean(0))
    assert float((off - off.mean(0)).square().mean().sqrt()) < 0.12


def test_noise_does_not_move(tmp_path: Path) -> None:
    motion = estimate_motion(movie_of(noise(3), tmp_path))
    assert not bool(motion.shifts.any())
    assert any("no motion is corrected" in note for note in motion.notes)
    at = motion.displacement(5, torch.tensor([[10.0, 20.0]]))
    np.testing.assert_array_equal(at.numpy(), [[0.0, 0.0]])
