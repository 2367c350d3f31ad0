import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from common.data import InputError
from common.io import read_particles, write_particles_star
from common.rotations import matrix_to_euler

Write = Callable[..., Path]
FIELDS = [
    ("uid", "<u8"),
    ("blob/path", "S40"),
    ("blob/idx", "<u4"),
    ("blob/shape", "<u4", (2,)),
    ("blob/psize_A", "<f4"),
    ("ctf/accel_kv", "<f4"),
    ("ctf/cs_mm", "<f4"),
    ("ctf/amp_contrast", "<f4"),
    ("ctf/df1_A", "<f4"),
    ("ctf/df2_A", "<f4"),
    ("ctf/df_angle_rad", "<f4"),
    ("ctf/phase_shift_rad", "<f4"),
    ("alignments3D/pose", "<f4", (3,)),
    ("alignments3D/shift", "<f4", (2,)),
    ("alignments3D/psize_A", "<f4"),
    ("alignments2D/pose", "<f4"),
]


def _table(n: int = 3) -> np.ndarray:
    table = np.zeros(n, dtype=FIELDS)
    table["blob/path"] = b">stack.mrcs"
    table["blob/idx"] = [4, 0, 2][:n]
    table["blob/psize_A"], table["blob/shape"] = 0.5, 16
    table["ctf/accel_kv"], table["ctf/cs_mm"], table["ctf/amp_contrast"] = 300, 2.7, 0.1
    table["ctf/df1_A"], table["ctf/df2_A"], table["ctf/df_angle_rad"] = 1000, 900, math.pi / 6
    table["alignments3D/pose"] = np.random.default_rng(0).normal(size=(n, 3))
    table["alignments3D/shift"], table["alignments3D/psize_A"] = (3, -2), 1.0
    return table


def _save(folder: Path, table: np.ndarray) -> Path:
    with (folder / "p.cs").open("wb") as file:
        np.save(file, table)
    return folder / "p.cs"


def test_images_optics_and_names_are_read(stack: Path, images: np.ndarray) -> None:
    particles = read_particles(_save(stack.parent, _table()))
    np.testing.assert_array_equal(particles.stack.images.numpy(), images[[4, 0, 2]])
    assert particles.image_names == ("000005@stack.mrcs", "000001@stack.mrcs", "000003@stack.mrcs")
    assert particles.stack.pixel_size == 0.5
    o = particles.stack.optics
    assert o is not None
    torch.testing.assert_close(o.defocus, torch.tensor([[1000.0, 900.0, 30.0]]).expand(3, 3))
    torch.testing.assert_close(o.spherical_aberration_mm, torch.full((3,), 2.7))


def test_the_rotation_vector_is_the_transpose_of_relions_matrix(stack: Path) -> None:
    table = _table()
    table["alignments3D/pose"][0] = 0, 0, math.pi / 2
    poses = read_particles(_save(stack.parent, table)).poses
    assert poses is not None
    expected = Rotation.from_rotvec(table["alignments3D/pose"]).as_matrix().transpose(0, 2, 1)
    np.testing.assert_allclose(poses.rotations.numpy(), expected, atol=1e-6)
    rot, tilt, psi = matrix_to_euler(poses.rotations[0].double()).tolist()
    assert tilt == pytest.approx(0, abs=1e-4)
    assert rot + psi == pytest.approx(90, abs=1e-4)  # what pyem's csparc2star writes for this vector


def test_shifts_are_in_pixels_of_the_alignment(stack: Path) -> None:
    poses = read_particles(_save(stack.parent, _table())).poses
    assert poses is not None
    assert poses.shifts.tolist() == [[-3.0, 2.0]] * 3  # RELION's origin is 3, -2 pixels of 1 angstrom


def test_poses_go_to_relion_and_back(stack: Path) -> None:
    particles = read_particles(_save(stack.parent, _table()))
    assert particles.poses is not None
    write_particles_star(stack.parent / "out.star", particles, particles.poses)
    again = read_particles(stack.parent / "out.star")
    assert again.poses is not None
    torch.testing.assert_close(again.poses.rotations, particles.poses.rotations, atol=2e-6, rtol=0)
    torch.testing.assert_close(again.poses.shifts, particles.poses.shifts)
    assert again.stack.optics is not None
    assert particles.stack.optics is not None
    torch.testing.assert_close(again.stack.optics.defocus, particles.stack.optics.defocus)
    assert torch.equal(again.stack.images, particles.stack.images)


def test_without_ctf_and_alignments_there_are_images_alone(stack: Path) -> None:
    names = ["uid", "blob/path", "blob/idx"]
    table = np.zeros(3, dtype=[field for field in FIELDS if field[0] in names])
    for name in names:
        table[name] = _table()[name]
    particles = read_particles(_save(stack.parent, table))
    assert particles.stack.optics is None
    assert particles.poses is None
    assert particles.stack.pixel_size == 0.5  # from the header of the stack


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("blob/idx", 24, r"row 2: image 25 of stack\.mrcs, which holds 24"),
        ("blob/path", b">gone.mrcs", r"row 2: the stack 'gone\.mrcs' is missing; looked in"),
        ("blob/path", b">../a.mrcs", "leaves the data folder"),
        ("ctf/df1_A", np.nan, "row 2: ctf/df1_A is nan, expected finite"),
        ("ctf/accel_kv", 300000, "row 2: the voltage is 300000 kV"),
        ("blob/psize_A", 0.6, "blob/psize_A runs from 0.5 to 0.6"),
        ("alignments3D/pose", (0, np.inf, 0), "row 2: alignments3D/pose is"),
        ("ctf/phase_shift_rad", 1.5, "phase plate"),
    ],
)
def test_rows_that_cannot_be_used_are_named(stack: Path, field: str, value: object, says: str) -> None:
    table = _table()
    table[field][1] = value
    with pytest.raises(InputError, match=rf"p\.cs: .*{says}"):
        read_particles(_save(stack.parent, table))


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    with (tmp_path / "p.cs").open("wb") as file:
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"p\.cs: holds Python objects \(a pickle\), which are never read"):
        read_particles(tmp_path / "p.cs")


def test_files_that_are_no_table_of_particles_are_refused(tmp_path: Path, stack: Path) -> None:
    with pytest.raises(InputError, match=r"p\.cs: holds a plain array of shape \(2, 2\)"):
        read_particles(_save(tmp_path, np.zeros((2, 2))))
    with pytest.raises(InputError, match=r"p\.cs: has no field blob/path.*it has uid"):
        read_particles(_save(tmp_path, np.zeros(2, dtype=FIELDS[:1])))
    with pytest.raises(InputError, match=r"p\.cs: has no rows"):
        read_particles(_save(tmp_path, _table(0)))
    path = _save(tmp_path, _table())
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    with pytest.raises(InputError, match=r"p\.cs: truncated: \d+ bytes, expected \d+ for 3 rows"):
        read_particles(path)
    path.write_bytes(raw.replace(b"'shape': (3,)", b"'shape': (33333333333,)").replace(b" " * 10 + b"\n", b"\n"))
    with pytest.raises(InputError, match=r"p\.cs: truncated"):
        read_particles(path)


@settings(max_examples=100, deadline=None)
@given(start=st.integers(0, 700), new=st.binary(max_size=20))
def test_damaged_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, start: int, new: bytes) -> None:
    path = _save(tmp_path_factory.mktemp("fuzz"), _table())
    raw = path.read_bytes()
    path.write_bytes(raw[:start] + new + raw[start + len(new) :])
    with pytest.raises(InputError) as error:  # there is no stack beside it
        read_particles(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
