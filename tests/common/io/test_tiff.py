from pathlib import Path

import numpy as np
import pytest
import tifffile

from common.data import InputError
from common.io import peek, read_particles


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pages_are_images(tmp_path: Path, dtype: str, compression: str | None) -> None:
    data = np.random.default_rng(0).integers(0, 100, size=(5, 9, 9)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", data, compression=compression, photometric="minisblack")
    particles = read_particles(tmp_path / "a.tif", pixel_size=0.35)
    np.testing.assert_array_equal(particles.stack.images.numpy(), data.astype(np.float32))
    assert particles.stack.pixel_size == 0.35
    assert particles.image_names[4] == "000005@a.tif"
    assert peek(tmp_path / "a.tif")["images"] == 5


def test_pages_written_one_by_one_are_one_stack(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)
    with tifffile.TiffWriter(tmp_path / "a.tiff") as tif:
        for image in data:
            tif.write(image)
    np.testing.assert_array_equal(read_particles(tmp_path / "a.tiff", pixel_size=1.0).stack.images.numpy(), data)


def test_a_stack_of_imagej_behind_one_page_is_read(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(read_particles(tmp_path / "a.tif", pixel_size=1.0).stack.images.numpy(), data)


def test_the_resolution_tag_is_noted_and_not_believed(tmp_path: Path) -> None:
    data, dots_a_cm = np.ones((2, 8, 8), np.float32), (2e8, 2e8)
    tifffile.imwrite(tmp_path / "a.tif", data, resolution=dots_a_cm, resolutionunit="CENTIMETER")
    particles = read_particles(tmp_path / "a.tif", pixel_size=0.35)
    assert "a.tif: the resolution tag says 0.5 angstrom a pixel; not used" in particles.notes
    with pytest.raises(InputError, match=r"a\.tif: the file does not say the pixel size.*give --pixel-size"):
        read_particles(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_truncated_files_are_refused(tmp_path: Path, compression: str | None, keep: float) -> None:
    data = np.random.default_rng(0).normal(size=(6, 16, 16)).astype(np.float32)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, data, compression=compression, photometric="minisblack", metadata=None)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(InputError, match=r"a\.tif: ") as error:
        read_particles(path, pixel_size=1.0)
    assert "\n" not in str(error.value)


def test_what_is_no_stack_of_square_grey_images_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((2, 8, 12), np.float32))
    with pytest.raises(InputError, match=r"a\.tif: the images are 12 x 8 pixels, expected square"):
        read_particles(path, pixel_size=1.0)
    tifffile.imwrite(path, np.zeros((2, 8, 8, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match=r"a\.tif: the pages hold uint8 .* expected grey images"):
        read_particles(path, pixel_size=1.0)
    with tifffile.TiffWriter(path) as tif:
        tif.write(np.ones((8, 8), np.float32))
        tif.write(np.ones((9, 9), np.float32))
    with pytest.raises(InputError, match=r"a\.tif: pages of different sizes \(8 x 8, 9 x 9\), expected one size"):
        read_particles(path, pixel_size=1.0)
    path.write_bytes(b"no tiff at all")
    with pytest.raises(InputError, match=r"a\.tif: damaged or truncated: .*expected a whole TIFF"):
        read_particles(path, pixel_size=1.0)
