import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.data import InputError, Poses
from common.io import read_particles, write_particles_star
from common.io.star import read_star
from common.rotations import random_rotations

Star = Callable[..., Path]
COLUMNS = ("rlnImageName", "rlnMicrographName", "rlnOpticsGroup", "rlnDefocusU")
ROWS = [f"{k:06d}@stack.mrcs 'mic {k % 3}.mrc' 1 -85.{k}00" for k in (9, 4, 7)]


def _poses(n: int) -> Poses:
    g = torch.Generator().manual_seed(3)
    return Poses(random_rotations(n, generator=g), torch.randn(n, 2, generator=g))


def test_poses_come_back_in_the_order_of_the_input(stack: Path, write_star31: Star) -> None:
    particles, poses = read_particles(write_star31(ROWS, COLUMNS)), _poses(3)
    write_particles_star(stack.parent / "out.star", particles, poses)
    again = read_particles(stack.parent / "out.star")
    assert again.poses is not None
    torch.testing.assert_close(again.poses.rotations, poses.rotations, atol=1e-6, rtol=0)
    torch.testing.assert_close(again.poses.shifts, poses.shifts, atol=1e-6, rtol=0)
    assert torch.equal(again.stack.images, particles.stack.images)
    assert again.image_names == particles.image_names


def test_every_input_column_is_kept_as_written(stack: Path, write_star31: Star) -> None:
    particles = read_particles(write_star31(ROWS, COLUMNS))
    write_particles_star(stack.parent / "out.star", particles, _poses(3), {"rlnScore": torch.tensor([1, 2, 3])})
    out = read_star(stack.parent / "out.star")
    assert [table.name for table in out.tables] == ["optics", "particles"]
    table = out.table("particles")
    assert table is not None
    assert table.columns[:4] == COLUMNS
    assert table.strings("rlnMicrographName") == ("mic 0.mrc", "mic 1.mrc", "mic 1.mrc")
    assert table.strings("rlnDefocusU") == ("-85.900", "-85.400", "-85.700")
    assert table.strings("rlnScore") == ("1", "2", "3")
    assert out.tables[0].strings("rlnSphericalAberration") == ("-0.013",)
    assert out.tables[0].strings("rlnImageSize") == ("16",)


def test_extra_columns_replace_those_of_the_input(stack: Path, write_star31: Star) -> None:
    particles = read_particles(write_star31(ROWS, COLUMNS))
    write_particles_star(stack.parent / "out.star", particles, _poses(3), {"rlnDefocusU": torch.tensor([1.5, 2, 3])})
    optics = read_particles(stack.parent / "out.star").stack.optics
    assert optics is not None
    assert optics.defocus[:, 0].tolist() == [1.5, 2.0, 3.0]


def test_relion_3_0_input_is_written_as_3_1(stack: Path) -> None:
    names = "ImageName Voltage DefocusU SphericalAberration AmplitudeContrast PixelSize"
    names += " AngleRot AngleTilt AnglePsi OriginX"
    head = "\n".join(f"_rln{name}" for name in names.split())
    rows = "\n".join(f"{k}@stack.mrcs {kv} 100 2.7 0.07 0.5 0 0 0 7" for k, kv in ((1, 300), (2, 200), (3, 300)))
    (stack.parent / "old.star").write_text(f"data_\n\nloop_\n{head}\n{rows}\n")
    particles, poses = read_particles(stack.parent / "old.star"), _poses(3)
    write_particles_star(stack.parent / "out.star", particles, poses)
    out = read_star(stack.parent / "out.star")
    optics, table = out.table("optics"), out.table("particles")
    assert optics is not None
    assert table is not None
    assert optics.strings("rlnVoltage") == ("300", "200")
    assert table.strings("rlnOpticsGroup") == ("1", "2", "1")
    assert [float(v) for v in optics.strings("rlnImagePixelSize")] == [0.5, 0.5]
    assert float(table.strings("rlnOriginX")[0]) == pytest.approx(-float(poses.shifts[0, 0]) / 0.5, abs=1e-6)
    again = read_particles(stack.parent / "out.star")
    assert again.poses is not None
    torch.testing.assert_close(again.poses.shifts, poses.shifts, atol=1e-6, rtol=0)
    assert again.stack.optics is not None
    assert again.stack.optics.voltage_kv.tolist() == [300.0, 200.0, 300.0]


def test_a_bare_stack_gets_a_particle_file(stack: Path) -> None:
    particles, poses = read_particles(stack), _poses(24)
    write_particles_star(stack.parent / "out.star", particles, poses)
    again = read_particles(stack.parent / "out.star")
    assert torch.equal(again.stack.images, particles.stack.images)
    assert again.stack.pixel_size == 0.5
    assert again.poses is not None
    torch.testing.assert_close(again.poses.rotations, poses.rotations, atol=1e-6, rtol=0)


def test_what_the_user_gave_is_written(stack: Path, write_star31: Star) -> None:
    path = write_star31(ROWS, COLUMNS)
    particles = read_particles(path, pixel_size=0.55, voltage_kv=80.0)
    write_particles_star(stack.parent / "out.star", particles, _poses(3))
    optics = read_star(stack.parent / "out.star").table("optics")
    assert optics is not None
    assert float(optics.strings("rlnImagePixelSize")[0]) == 0.55
    assert float(optics.strings("rlnVoltage")[0]) == 80.0
    assert optics.strings("rlnSphericalAberration") == ("-0.013",)


def test_wrong_lengths_and_nan_leave_no_file(stack: Path, write_star31: Star, tmp_path: Path) -> None:
    particles = read_particles(write_star31(ROWS, COLUMNS))
    before = sorted(os.listdir(tmp_path))
    out = tmp_path / "out.star"
    with pytest.raises(InputError, match=r"out\.star: 2 poses for 3 images"):
        write_particles_star(out, particles, _poses(2))
    with pytest.raises(InputError, match=r"out\.star: rlnX has shape \(2,\), expected \(3,\)"):
        write_particles_star(out, particles, _poses(3), {"rlnX": torch.zeros(2)})
    with pytest.raises(InputError, match=r"out\.star: rlnX of image 2 is nan"):
        write_particles_star(out, particles, _poses(3), {"rlnX": torch.tensor([0.0, torch.nan, 0.0])})
    assert sorted(os.listdir(tmp_path)) == before
