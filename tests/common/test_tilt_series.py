import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile
import torch
from scipy.io import savemat

from common.data import ImageStack, InputError, Poses, Volume
from common.fourier import shift_images
from common.io.aligned_series import write_aligned
from common.io.mrc import write_images
from common.io.tilt_angles import read_angles, rotations_from_triplets, triplets_from_rotations
from common.io.tilt_series import read_tilt_series
from common.projection import project
from common.rotations import random_rotations, tilt_angles_of

N = 7
ANGLES = np.linspace(-60, 60, N)


def _images(height: int = 12, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.poisson(torch.full((N, height, width), 40.0), generator=generator)


def _write(folder: Path, images: torch.Tensor, name: str = "a.mrc", angles: object = ANGLES) -> Path:
    write_images(folder / name, images, 0.35)
    np.savetxt(folder / "a.tlt", np.asarray(angles))
    return folder / name


def test_stack_and_angles_by_name(tmp_path: Path) -> None:
    images = _images()
    tilts = read_tilt_series(_write(tmp_path, images))
    assert torch.equal(tilts.stack.images, images)
    assert tilts.stack.pixel_size == pytest.approx(0.35)
    torch.testing.assert_close(tilts.poses.rotations, Poses.from_tilt_angles(torch.tensor(ANGLES)).rotations.float())
    assert tilts.files == (tmp_path / "a.mrc", tmp_path / "a.tlt")
    assert any("sign" in note and "assumed" in note for note in tilts.notes)


def test_other_image_is_not_padded_silently(tmp_path: Path) -> None:
    images = _images(9, 14)
    tilts = read_tilt_series(_write(tmp_path, images))
    assert tilts.stack.images.shape == (N, 14, 14)
    assert torch.equal(tilts.stack.images[:, 3:12], images)  # pixel 9 // 2 on pixel 14 // 2
    assert torch.equal(tilts.stack.inside.nonzero()[[0, -1]], torch.tensor([[3, 0], [11, 13]]))
    assert any("14 x 9" in note for note in tilts.notes)


def test_sign_mirrors_and_axis_turns(tmp_path: Path) -> None:
    path = _write(tmp_path, _images())
    plain, other = read_tilt_series(path), read_tilt_series(path, tilt_sign=-1)
    torch.testing.assert_close(other.poses.rotations, plain.poses.rotations.flip(0))
    turned = read_tilt_series(path, tilt_axis=90.0).poses.rotations
    along = turned @ torch.tensor([0.0, 1.0, 0.0])  # the tilt axis as seen: from y to -x
    torch.testing.assert_close(along, torch.tensor([-1.0, 0, 0]).expand(N, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(tilt_angles_of(turned), torch.tensor(ANGLES).float())


def test_mdoc_gives_angles_axis_and_pixel(tmp_path: Path) -> None:
    write_images(tmp_path / "b.mrc", _images(), 1.0)  # the customary "unknown"
    sections = "".join(f"[ZValue = {k}]\nTiltAngle = {a}\nRotationAngle = 5.0\n" for k, a in enumerate(ANGLES))
    (tmp_path / "b.mrc.mdoc").write_text(f"PixelSpacing = 0.42\n[T = a comment = 3]\n\n{sections}")
    tilts = read_tilt_series(tmp_path / "b.mrc")
    assert tilts.stack.pixel_size == pytest.approx(0.42)
    torch.testing.assert_close(tilts.tilt_angles, torch.tensor(ANGLES).float())
    assert float(tilts.poses.rotations[3, 1, 0]) == pytest.approx(np.sin(np.deg2rad(5.0)), abs=1e-6)


def test_xf_poses_predict_the_raw_images(tmp_path: Path) -> None:
    """A blob turned and moved as IMOD's .xf says lies where the poses put it, even box included."""
    d, turn, move = 32, np.deg2rad(20.0), np.array([1.5, -0.75])
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    raw_from_centre = np.linalg.solve(matrix, np.array([5.0, 2.0]) - move)  # IMOD: aligned = A raw + d
    grid = np.arange(d) - (d - 1) / 2
    blob = np.exp(-((grid - raw_from_centre[0]) ** 2 + (grid[:, None] - raw_from_centre[1]) ** 2) / 8)
    images = torch.tensor(blob).float() + _images(d, d) * 1e-4
    write_images(tmp_path / "a.st", images, 0.35)
    np.savetxt(tmp_path / "a.tlt", np.linspace(0, 30, N))
    line = " ".join(f"{v:.7f}" for v in (*matrix.ravel(), *move))
    (tmp_path / "a.xf").write_text((line + "\n") * N)
    tilts = read_tilt_series(tmp_path / "a.st")
    pose = tilts.poses[torch.tensor([0])]
    seen = pose.rotations[0, :2, :2] @ torch.tensor([5.0, 2.0]) + pose.shifts[0] / 0.35 + d // 2
    expected = torch.tensor(raw_from_centre + (d - 1) / 2).float()
    torch.testing.assert_close(seen, expected, atol=1e-4, rtol=0)


def test_euler_triplets_round_trip_and_agree_with_tilts() -> None:
    rotations = random_rotations(50, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(rotations_from_triplets(triplets_from_rotations(rotations)), rotations)
    tilts = torch.tensor([-90.0, -30, 0, 45, 90], dtype=torch.float64)
    rotations = Poses.from_tilt_angles(tilts).rotations
    triplets = torch.stack((torch.zeros(5), -tilts, torch.zeros(5)), -1)
    torch.testing.assert_close(rotations_from_triplets(triplets), rotations)
    torch.testing.assert_close(rotations_from_triplets(triplets_from_rotations(rotations)), rotations)


@pytest.mark.parametrize("form", ["mat", "npy", "tif"])
def test_published_forms(tmp_path: Path, form: str) -> None:
    images = _images(8, 10)
    triplets = np.stack((np.zeros(N), -ANGLES, np.full(N, 0.5)), 1)
    if form == "mat":
        savemat(tmp_path / "p.mat", {"projections": images.numpy().transpose(2, 1, 0), "angles": triplets})
    elif form == "npy":
        np.save(tmp_path / "p.npy", images.numpy().transpose(2, 1, 0))
        np.save(tmp_path / "angles.npy", triplets)
    else:
        tifffile.imwrite(tmp_path / "p.tif", images.numpy())
        np.savetxt(tmp_path / "p_euler.txt", triplets)
    tilts = read_tilt_series(tmp_path / f"p.{form}", pixel_size=0.3)
    assert torch.equal(tilts.stack.images[:, 1:9], images)
    assert tilts.tilt_angles is None
    torch.testing.assert_close(tilts.poses.rotations.double(), rotations_from_triplets(torch.tensor(triplets)))


def test_damaged_mat_is_one_line(tmp_path: Path) -> None:
    savemat(tmp_path / "p.mat", {"projections": np.ones((5, 5, 5))})
    whole = (tmp_path / "p.mat").read_bytes()
    (tmp_path / "p.mat").write_bytes(whole[:200])
    with pytest.raises(InputError, match=r"p\.mat: cannot be read") as caught:
        read_tilt_series(tmp_path / "p.mat", pixel_size=1.0)
    assert "\n" not in str(caught.value)


def test_aligned_files_read_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    volume = torch.zeros(16, 16, 16)
    volume[6:10, 7:11, 5:9] = 1 + torch.rand(4, 4, 4, generator=generator)
    poses = Poses.from_tilt_angles(torch.tensor(ANGLES).float())
    shifts = torch.randn(N, 2, generator=generator) * 0.5
    straight = project(Volume(volume, 0.5), poses).images
    stack = ImageStack(shift_images(straight, shifts / 0.5), 0.5)
    write_aligned(tmp_path, stack, Poses(poses.rotations, shifts))
    tilts = read_tilt_series(tmp_path / "aligned.mrc")
    torch.testing.assert_close(tilts.stack.images, straight, atol=2e-3, rtol=0)
    torch.testing.assert_close(tilts.poses.rotations, poses.rotations, atol=1e-5, rtol=0)
    again = rotations_from_triplets(read_angles(tmp_path / "euler.txt")).float()
    torch.testing.assert_close(again, poses.rotations, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (15, 15), (10, 16), (16, 11)])
def test_the_transforms_of_a_run_give_the_raw_images_its_shifts(tmp_path: Path, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(4)
    write_images(tmp_path / "raw.mrc", torch.rand(N, height, width, generator=generator), 0.5)
    np.savetxt(tmp_path / "raw.tlt", ANGLES)
    raw = read_tilt_series(tmp_path / "raw.mrc")
    shifts = torch.randn(N, 2, generator=generator)
    write_aligned(tmp_path, raw.stack, Poses(raw.poses.rotations, shifts))
    (tmp_path / "aligned.xf").rename(tmp_path / "raw.xf")
    again = read_tilt_series(tmp_path / "raw.mrc")
    torch.testing.assert_close(again.poses.shifts, shifts, atol=3e-4, rtol=0)
    torch.testing.assert_close(again.poses.rotations, raw.poses.rotations)


@pytest.mark.parametrize(
    ("angles", "said"),
    [
        ([*ANGLES[:-1]], "6 angles for 7 images"),
        ([*ANGLES[:-1], np.nan], "angle 7 is"),
        (np.deg2rad(ANGLES), "radians"),
        (np.zeros(N), "all 7 angles"),
        ([*ANGLES[:-1], 400.0], "-360 to 360"),
    ],
)
def test_bad_angles_in_one_line(tmp_path: Path, angles: object, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_tilt_series(_write(tmp_path, _images(), angles=angles))
    assert "\n" not in str(caught.value)


def test_bad_images_in_one_line(tmp_path: Path) -> None:
    for value, said in ((float("nan"), "image 3 .* NaN"), (5.0, "image 3 .* constant")):
        images = _images()
        images[2] = value
        with pytest.raises(InputError, match=said):
            read_tilt_series(_write(tmp_path, images))
    with pytest.raises(InputError, match="no such file"):
        read_tilt_series(tmp_path / "missing.mrc")
    path = _write(tmp_path, _images())
    for size in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="pixel size"):
            read_tilt_series(path, pixel_size=size)
    with mrcfile.open(path, "r+") as mrc:
        mrc.voxel_size = 0
    with pytest.raises(InputError, match="give --pixel-size"):
        read_tilt_series(path)
    (tmp_path / "a.tlt").unlink()
    with pytest.raises(InputError, match="no angles"):
        read_tilt_series(path)
    (tmp_path / "a.txt").write_text("1\n2 3\n")
    with pytest.raises(InputError, match="line 2 holds 2 numbers"):
        read_tilt_series(path)


def test_mat_reader_is_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "common.io.matlab", str(tmp_path / "no.mat"), str(tmp_path / "o.npz")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
