import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.data import InputError
from common.io import read_particles

Write, Patch = Callable[..., Path], Callable[[Path, int, bytes], Path]


def _header_pixel(stack: Path, patch: Patch, pixel_size: float) -> Path:
    return patch(stack, 40, struct.pack("<2f", 16 * pixel_size, 16 * pixel_size))


def test_unknown_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("1\n")
    with pytest.raises(InputError, match=r"a\.xyz: the format '\.xyz' is unknown, expected \.star, "):
        read_particles(tmp_path / "a.xyz")
    with pytest.raises(InputError, match=r"a\.mrcs'?: there is no such file"):
        read_particles(tmp_path / "a.mrcs")
    (tmp_path / "b.star").touch()
    with pytest.raises(InputError, match=r"b\.star: the file is empty"):
        read_particles(tmp_path / "b.star")


@pytest.mark.parametrize("said", [0.0, 1.0])
def test_a_header_that_does_not_say_is_not_believed(stack: Path, patch_bytes: Patch, said: float) -> None:
    _header_pixel(stack, patch_bytes, said)
    with pytest.raises(InputError, match=r"stack\.mrcs: the file does not say the pixel size.*give --pixel-size"):
        read_particles(stack)
    particles = read_particles(stack, pixel_size=0.35)
    assert particles.stack.pixel_size == 0.35
    assert "the header of stack.mrcs does not say the pixel size" in particles.notes


@pytest.mark.parametrize("said", [float("nan"), float("inf"), -0.5])
def test_an_impossible_pixel_size_is_refused_unless_another_is_given(
    stack: Path, patch_bytes: Patch, said: float
) -> None:
    _header_pixel(stack, patch_bytes, said)
    with pytest.raises(InputError, match=r"stack\.mrcs: the header's pixels are (nan|inf|-0\.5) x "):
        read_particles(stack)
    assert read_particles(stack, pixel_size=0.35).stack.pixel_size == 0.35


def test_pixels_that_are_not_square_are_refused(stack: Path, patch_bytes: Patch) -> None:
    patch_bytes(stack, 40, struct.pack("<2f", 8.0, 9.0))
    with pytest.raises(InputError, match=r"stack\.mrcs: .* 0\.5 x 0\.5625 angstrom, expected square"):
        read_particles(stack)


@pytest.mark.parametrize("given", [0.0, -1.0, float("nan"), float("inf")])
def test_a_given_pixel_size_must_be_a_positive_number(stack: Path, given: float) -> None:
    with pytest.raises(InputError, match=r"--pixel-size: the pixel size is \S+, expected a positive number"):
        read_particles(stack, pixel_size=given)


def test_a_given_pixel_size_wins_and_the_difference_is_noted(stack: Path) -> None:
    particles = read_particles(stack, pixel_size=0.52)
    assert particles.stack.pixel_size == 0.52
    assert "pixel size 0.52 angstrom as given; the header of stack.mrcs says 0.5" in particles.notes
    assert not any("as given" in note for note in read_particles(stack, pixel_size=0.502).notes)


@pytest.mark.parametrize(("given", "word"), [(0.05, "more"), (5.0, "less")])
def test_ten_times_more_or_less_looks_like_nanometres(stack: Path, given: float, word: str) -> None:
    with pytest.raises(InputError, match=rf"says 0\.5, ten times {word}: it looks like nanometres for angstrom"):
        read_particles(stack, pixel_size=given)


def test_nanometres_in_the_header_or_from_the_user_are_recognised(stack: Path, patch_bytes: Patch) -> None:
    with pytest.raises(InputError, match=r"0\.035 angstrom, expected 0\.05 to 50; .*nanometres: give 0\.35"):
        read_particles(stack, pixel_size=0.035)
    _header_pixel(stack, patch_bytes, 0.035)
    with pytest.raises(InputError, match=r"stack\.mrcs.*0\.035 angstrom.*it looks like nanometres: give 0\.35"):
        read_particles(stack)


def test_a_volume_given_as_particles_is_noted(
    tmp_path: Path, images: np.ndarray, patch_bytes: Patch, write_mrcs: Write
) -> None:
    path = write_mrcs(tmp_path / "a.mrc", images[:16])
    assert not any("volume" in note for note in read_particles(path).notes)
    patch_bytes(path, 88, struct.pack("<i", 1))
    assert any("a.mrc: the header says this is a volume" in note for note in read_particles(path).notes)
