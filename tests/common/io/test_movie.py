"""Movies: any run of frames is what the file holds, and what cannot be used is refused with one line."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile
import torch

from common.data import InputError
from common.io.movie import read_movie

COUNTS = np.random.default_rng(1).poisson(6.0, (30, 12, 16))


def write_mrc(path: Path, frames: np.ndarray) -> Path:
    with mrcfile.new(path) as file:
        file.set_data(frames)
        file.voxel_size = 0.36
    return path


@pytest.mark.parametrize("kind", ["int8", "int16", "uint16", "float16", "float32"])
def test_any_run_of_frames_is_what_the_file_holds(tmp_path: Path, kind: str) -> None:
    movie = read_movie(write_mrc(tmp_path / "m.mrc", COUNTS.astype(kind)), find_defects=False)
    assert len(movie) == 30
    assert movie.frame_shape == (12, 16)
    assert movie.pixel_size == pytest.approx(0.36)
    np.testing.assert_array_equal(movie.frames(7, 11).numpy(), COUNTS[7:11])
    together = torch.cat([frames for _, frames in movie.chunks(7)])
    np.testing.assert_array_equal(together.numpy(), COUNTS)


def test_a_tiff_stack_and_one_file_for_each_frame_hold_the_same(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "m.tif", COUNTS.astype(np.uint8), photometric="minisblack", compression="zlib")
    for k, frame in enumerate(COUNTS):
        tifffile.imwrite(tmp_path / f"frame_{k + 1}.tif", frame.astype(np.uint16))  # frame_10 comes after frame_9
    for path in (tmp_path / "m.tif", tmp_path / "frame_*.tif"):
        movie = read_movie(path, pixel_size=0.5, find_defects=False)
        np.testing.assert_array_equal(movie.frames(0, 30).numpy(), COUNTS)


def test_hot_and_dead_pixels_take_a_neighbours_counts_and_the_gain_evens_the_rest(tmp_path: Path) -> None:
    gain = np.random.default_rng(2).uniform(0.8, 1.2, (12, 16)).astype(np.float32)
    raw = (np.random.default_rng(3).poisson(60.0, (30, 12, 16)) / gain).astype(np.float32)
    raw[:, 3, 4], raw[:, 8, 9] = 900.0, 0.0
    write_mrc(tmp_path / "gain.mrc", gain[None])
    movie = read_movie(write_mrc(tmp_path / "m.mrc", raw), gain=tmp_path / "gain.mrc")
    mean = movie.frames(0, 30).mean(0)
    assert float((mean / mean.mean() - 1).abs().max()) < 0.15
    assert movie.defects is not None
    assert {(3, 4), (8, 9)} == {(int(y), int(x)) for y, x, _, _ in movie.defects}
    assert any("2 hot or dead" in note for note in movie.notes)


def test_summed_frames_carry_their_dose(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "m.mrc", COUNTS.astype(np.int16))
    movie = read_movie(path, dose=2.0, sum_frames=4, find_defects=False)
    assert len(movie) == 7
    assert movie.dose == 8.0
    np.testing.assert_array_equal(movie.frames(2, 3)[0].numpy(), COUNTS[8:12].sum(0))
    assert any("left out" in note for note in movie.notes)


def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    whole = write_mrc(tmp_path / "m.mrc", COUNTS.astype(np.int8))
    (tmp_path / "short.mrc").write_bytes(whole.read_bytes()[:-5])
    write_mrc(tmp_path / "gain.mrc", np.ones((1, 5, 5), np.float32))
    tifffile.imwrite(tmp_path / "a_1.tif", COUNTS[0].astype(np.uint8))
    tifffile.imwrite(tmp_path / "a_2.tif", COUNTS[0, :5].astype(np.uint8))
    tifffile.imwrite(tmp_path / "b.tif", COUNTS.astype(np.uint8), photometric="minisblack")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "b.tif").read_bytes()[:-500])
    nan = COUNTS.astype(np.float32)
    nan[4, 0, 0] = np.nan
    with pytest.raises(InputError, match="truncated"):
        read_movie(tmp_path / "short.mrc")
    with pytest.raises(InputError, match="gain reference is 1 x 5 x 5"):
        read_movie(whole, gain=tmp_path / "gain.mrc")
    with pytest.raises(InputError, match=r"a_2.tif: holds 1 frame of 16 x 5"):
        read_movie(tmp_path / "a_*.tif", pixel_size=0.4)
    with pytest.raises(InputError, match=r"truncated|damaged"):
        read_movie(tmp_path / "cut.tif", pixel_size=0.4)
    with pytest.raises(InputError, match="no file has a name like this"):
        read_movie(tmp_path / "none_*.tif")
    with pytest.raises(InputError, match="give --pixel-size"):
        read_movie(tmp_path / "b.tif")
    with pytest.raises(InputError, match="frame 5 holds NaN"):
        read_movie(write_mrc(tmp_path / "nan.mrc", nan), find_defects=False).frames(0, 30)
