from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from common.data import InputError
from common.io import read_particles

Star, Write = Callable[..., Path], Callable[..., Path]
COLUMNS = ("rlnImageName", "rlnOpticsGroup")
DEFOCUS = (*COLUMNS, "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
ROWS = [f"{k:06d}@stack.mrcs 1" for k in range(1, 25)]
OPTICS = "1 opticsGroup1 0.5 300.0 -0.013 0.0"


def test_images_come_in_the_order_of_the_rows(stack: Path, images: np.ndarray, write_star31: Star) -> None:
    particles = read_particles(write_star31(["5@stack.mrcs 1", "000001@stack.mrcs 1", "24@stack.mrcs 1"]))
    np.testing.assert_array_equal(particles.stack.images.numpy(), images[[4, 0, 23]])
    assert particles.image_names == ("5@stack.mrcs", "000001@stack.mrcs", "24@stack.mrcs")
    assert particles.stack.pixel_size == 0.5
    assert particles.stack.optics is None
    assert particles.poses is None
    assert [path.name for path in particles.files] == ["particles.star", "stack.mrcs"]
    assert any("plain projections" in note for note in particles.notes)


def test_images_of_several_stacks_are_mixed_as_the_rows_say(
    stack: Path, images: np.ndarray, write_mrcs: Write, write_star31: Star
) -> None:
    write_mrcs(stack.parent / "sub" / "b.mrcs", 2 * images[:3])
    particles = read_particles(write_star31(["2@sub/b.mrcs 1", "2@stack.mrcs 1", "1@sub/b.mrcs 1"]))
    np.testing.assert_array_equal(particles.stack.images.numpy(), [2 * images[1], images[1], 2 * images[0]])
    assert len(particles.files) == 3


def test_optics_are_those_of_each_images_group(stack: Path, write_star31: Star) -> None:
    rows = ["1@stack.mrcs 2 -85 -90 30", "2@stack.mrcs 1 100 100 0"]
    optics = (OPTICS, "2 b 0.5 200.0 1.2 0.1")
    particles = read_particles(write_star31(rows, DEFOCUS, optics))
    o = particles.stack.optics
    assert o is not None
    assert o.voltage_kv.tolist() == [200.0, 300.0]
    torch.testing.assert_close(o.spherical_aberration_mm, torch.tensor([1.2, -0.013]))
    torch.testing.assert_close(o.amplitude_contrast, torch.tensor([0.1, 0.0]))
    assert o.defocus.tolist() == [[-85.0, -90.0, 30.0], [100.0, 100.0, 0.0]]
    assert o.focal_spread.tolist() == o.convergence_mrad.tolist() == [0.0, 0.0]


def test_poses_are_in_our_convention(stack: Path, write_star31: Star) -> None:
    angles = [(10.0, 20.0, 30.0), (-170.0, 100.0, 5.0)]
    rows = [f"{k}@stack.mrcs 1 {r} {t} {p} -1.5 1.0" for k, (r, t, p) in enumerate(angles, start=1)]
    names = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
    poses = read_particles(write_star31(rows, (*COLUMNS, *names))).poses
    assert poses is not None
    expected = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix().transpose(0, 2, 1)
    np.testing.assert_allclose(poses.rotations.numpy(), expected, atol=1e-6)
    # the origin is the shift that centres the image: a particle 3 px right of centre (0.5 A/px) has origin x -1.5 A
    assert poses.shifts.tolist() == [[1.5, -1.0], [1.5, -1.0]]


def _star30(folder: Path, columns: str, rows: list[str], name: str = "images") -> Path:
    tags = [f"_rln{column} #{k}" for k, column in enumerate(columns.split(), start=1)]
    lines = ["", f"data_{name}", "", "loop_", *tags, *rows, ""]
    (folder / "old.star").write_text("\n".join(lines))
    return folder / "old.star"


@pytest.mark.parametrize("name", ["", "images", "particles"])
def test_relion_3_0_has_one_table_and_origins_in_pixels(stack: Path, name: str) -> None:
    columns = "ImageName Voltage DefocusU DefocusV DefocusAngle SphericalAberration AmplitudeContrast Magnification"
    columns += " DetectorPixelSize AngleRot AngleTilt AnglePsi OriginX OriginY"
    rows = [f"{k}@stack.mrcs 300 100 90 {k} 2.7 0.07 100000 5.0 0 0 0 3 -2" for k in (3, 1)]
    particles = read_particles(_star30(stack.parent, columns, rows, name))
    assert particles.stack.pixel_size == 0.5  # 5 um / 100,000
    assert particles.stack.optics is not None
    assert particles.stack.optics.defocus.tolist() == [[100.0, 90.0, 3.0], [100.0, 90.0, 1.0]]
    assert particles.poses is not None
    assert particles.poses.shifts.tolist() == [[-1.5, 1.0], [-1.5, 1.0]]


def test_without_columns_the_stack_says_the_pixel_size(stack: Path) -> None:
    assert read_particles(_star30(stack.parent, "ImageName", ["1@stack.mrcs", "2@stack.mrcs"])).stack.pixel_size == 0.5


def test_voltage_and_cs_can_be_given(stack: Path, write_star31: Star) -> None:
    path = write_star31([f"{row} -85 -85 0" for row in ROWS], DEFOCUS)
    particles = read_particles(path, voltage_kv=200.0, spherical_aberration_mm=1.0)
    assert particles.stack.optics is not None
    assert set(particles.stack.optics.voltage_kv.tolist()) == {200.0}
    assert set(particles.stack.optics.spherical_aberration_mm.tolist()) == {1.0}
    assert "rlnVoltage 200 kV as given; the STAR file says 300" in particles.notes


def test_the_project_folder_above_is_searched(stack: Path, write_star31: Star) -> None:
    path = write_star31(ROWS, path=stack.parent / "Refine3D" / "job007" / "run_data.star")
    assert len(read_particles(path).stack) == 24


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["000000@stack.mrcs 1"], r"row 1 \(line 22\): rlnImageName is '000000@stack\.mrcs', but images are counted"),
        (["0@stack.mrcs 1"], "images are counted from 1"),
        ([ROWS[0], "25@stack.mrcs 1"], r"row 2 \(line 23\): image 25 of stack\.mrcs, which holds 24 images"),
        (["99999999999999999999999@stack.mrcs 1"], "expected a number before the @"),
        (["x@stack.mrcs 1"], r"rlnImageName is 'x@stack\.mrcs', expected a number before the @"),
        (["-1@stack.mrcs 1"], "expected a number before the @"),
        (["1@gone.mrcs 1"], r"row 1 .*the stack 'gone\.mrcs' is missing; looked in .*"),
        (["1@ 1"], "the stack's name is ''"),
        (["1@../stack.mrcs 1"], r"'\.\./stack\.mrcs' leaves the data folder"),
        (["1@../../etc/stack.mrcs 1"], "leaves the data folder"),
        (["1@/elsewhere/stack.mrcs 1"], "lies outside the data folder"),
        ([ROWS[0], "2@stack.mrcs 3"], r"row 2 \(line 23\): optics group 3 is not in data_optics, expected one of"),
        ([], "has no rows"),
    ],
)
def test_rows_that_cannot_be_used_are_named(stack: Path, write_star31: Star, rows: list[str], says: str) -> None:
    with pytest.raises(InputError, match=rf"particles\.star: .*{says}") as error:
        read_particles(write_star31(rows))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("nan 1 0", r"row 2 .*rlnDefocusU is 'nan', expected a finite number"),
        ("1 x 0", r"row 2 .*rlnDefocusV is 'x', expected a number"),
    ],
)
def test_defocus_that_is_no_number_is_named_by_row(stack: Path, write_star31: Star, row: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_particles(write_star31([f"{ROWS[0]} 1 1 0", f"{ROWS[1]} {row}"], DEFOCUS))


@pytest.mark.parametrize(
    ("optics", "says"),
    [
        ("1 a 0.5 300000 2.7 0.1", r"row 1 .*the voltage is 300000 kV, expected 10 to 3000 \(volts for kilovolts"),
        ("1 a 0.5 300 -13 1.1", "rlnAmplitudeContrast is 1.1 to 1.1, expected 0 to 1"),
        ("1 a 0.5 300 2700 0.1", r"Cs is 2700 mm, expected -20 to 20 \(micrometres"),
        ("1 a 0 300 2.7 0.1", "the pixel size is 0.0, expected a positive number"),
        ("1 a nan 300 2.7 0.1", "rlnImagePixelSize is 'nan'"),
        ("1 a -0.5 300 2.7 0.1", "the pixel size is -0.5, expected a positive number"),
        ("1 a 0.05 300 2.7 0.1", "0.05 angstrom but the header of stack.mrcs says 0.5.*nanometres for angstrom"),
        ("1 a 0.52 300 2.7 0.1", "0.52 angstrom but the header of stack.mrcs says 0.5, expected agreement within 1 %"),
    ],
)
def test_optics_that_cannot_be_are_refused(stack: Path, write_star31: Star, optics: str, says: str) -> None:
    with pytest.raises(InputError, match=rf"particles\.star: .*{says}"):
        read_particles(write_star31([f"{row} 1 1 0" for row in ROWS], DEFOCUS, (optics,)))


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("rlnImageSize", 80, r"row 1 .*rlnImageSize is 80, but the stack's images are 16 px"),
        ("rlnImageDimensionality", 3, r"row 1 .*rlnImageDimensionality is 3, but only images \(2\) can be used"),
    ],
)
def test_a_table_of_other_images_is_refused(
    stack: Path, write_star31: Star, column: str, value: int, says: str
) -> None:
    path = write_star31(ROWS, optics=(f"1 {value}",), optics_columns=("rlnOpticsGroup", column))
    with pytest.raises(InputError, match=says):
        read_particles(path)


def test_pixel_sizes_of_groups_must_agree(stack: Path, write_star31: Star) -> None:
    rows = ["1@stack.mrcs 1", "2@stack.mrcs 2"]
    with pytest.raises(InputError, match=r"pixel sizes from 0.5 to 0.6 angstrom, expected one"):
        read_particles(write_star31(rows, optics=(OPTICS, "2 b 0.6 300.0 -0.013 0.0")))


def test_a_phase_plate_is_refused(stack: Path, write_star31: Star) -> None:
    path = write_star31([f"{row} 1 1 0 90" for row in ROWS], (*DEFOCUS, "rlnPhaseShift"))
    with pytest.raises(InputError, match=r"row 1 .*rlnPhaseShift is 90, expected 0"):
        read_particles(path)


def test_a_table_without_images_is_refused(stack: Path) -> None:
    with pytest.raises(InputError, match=r"no table has the column rlnImageName.*data_images \(1 rows\)"):
        read_particles(_star30(stack.parent, "MicrographName", ["a.mrc"]))


def test_missing_voltage_is_asked_for_only_when_there_is_defocus(stack: Path) -> None:
    with pytest.raises(InputError, match=r"has defocus but no rlnVoltage, expected kV; give --voltage"):
        read_particles(_star30(stack.parent, "ImageName DefocusU", ["1@stack.mrcs 100"]))
    particles = read_particles(
        _star30(stack.parent, "ImageName DefocusU", ["1@stack.mrcs 100"]), voltage_kv=300, spherical_aberration_mm=0
    )
    assert particles.stack.optics is not None
    assert particles.stack.optics.defocus.tolist() == [[100.0, 100.0, 0.0]]


def test_stacks_of_different_sizes_are_refused(
    stack: Path, images: np.ndarray, write_mrcs: Write, write_star31: Star
) -> None:
    write_mrcs(stack.parent / "b.mrcs", images[:, :12, :12])
    with pytest.raises(InputError, match=r"different sizes: 16 x 16 in stack\.mrcs, 12 x 12 in b\.mrcs"):
        read_particles(write_star31(["1@stack.mrcs 1", "1@b.mrcs 1"]))


def test_paths_outside_can_be_allowed(
    images: np.ndarray, tmp_path: Path, write_mrcs: Write, write_star31: Star
) -> None:
    write_mrcs(tmp_path / "other" / "s.mrcs", images)
    path = write_star31(["1@../other/s.mrcs 1"], path=tmp_path / "data" / "p.star")
    with pytest.raises(InputError, match="leaves the data folder"):
        read_particles(path)
    assert len(read_particles(path, allow_outside=True).stack) == 1
