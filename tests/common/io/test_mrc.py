import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import InputError, Volume
from common.io import read_particles, read_volume, write_images, write_volume
from common.io.mrc import HEADER_BYTES, map_sections, read_header

Write, Patch = Callable[..., Path], Callable[[Path, int, bytes], Path]


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float16", "float32"])
@pytest.mark.parametrize("size", [15, 16])
def test_what_mrcfile_writes_is_read_exactly(tmp_path: Path, write_mrcs: Write, dtype: str, size: int) -> None:
    data = np.random.default_rng(1).integers(0, 100, size=(3, size, size)).astype(dtype)
    particles = read_particles(write_mrcs(tmp_path / "a.mrcs", data, 0.35))
    assert particles.stack.images.dtype == torch.float32
    np.testing.assert_array_equal(particles.stack.images.numpy(), data.astype(np.float32))
    assert particles.stack.pixel_size == pytest.approx(0.35, rel=1e-6)
    assert particles.image_names == ("000001@a.mrcs", "000002@a.mrcs", "000003@a.mrcs")


def test_unsigned_bytes_of_imod_are_unsigned(tmp_path: Path, write_mrcs: Write, patch_bytes: Patch) -> None:
    path = write_mrcs(tmp_path / "a.mrc", np.full((2, 4, 4), -56, np.int8))
    patch_bytes(path, 152, struct.pack("<ii", 1146047817, 0))
    assert float(read_particles(path, pixel_size=1.0).stack.images[0, 0, 0]) == 200.0
    patch_bytes(path, 152, struct.pack("<ii", 1146047817, 1))
    assert float(read_particles(path, pixel_size=1.0).stack.images[0, 0, 0]) == -56.0


def _swap(path: Path, images: np.ndarray, *, stamp: bytes) -> Path:
    """The file of a big-endian machine, with this machine stamp."""
    raw = path.read_bytes()
    words = np.frombuffer(raw[:HEADER_BYTES], dtype="<i4").astype(">i4").tobytes()
    header = words[:208] + b"MAP " + stamp + words[216:]
    path.write_bytes(header + images.astype(">f4").tobytes())
    return path


def test_big_endian_is_read_whatever_the_machine_stamp_says(stack: Path, images: np.ndarray) -> None:
    particles = read_particles(_swap(stack, images, stamp=b"\x11\x11\x00\x00"))
    np.testing.assert_array_equal(particles.stack.images.numpy(), images)
    assert not any("stamp" in note for note in particles.notes)
    patched = stack.read_bytes()
    for stamp in (b"\x44\x44\x00\x00", b"\x00\x00\x00\x00"):
        stack.write_bytes(patched[:212] + stamp + patched[216:])
        particles = read_particles(stack)
        np.testing.assert_array_equal(particles.stack.images.numpy(), images)
        assert any("machine stamp" in note and "big-endian" in note for note in particles.notes)


def test_little_endian_with_the_stamp_of_a_big_one_is_read(stack: Path, images: np.ndarray, patch_bytes: Patch) -> None:
    particles = read_particles(patch_bytes(stack, 212, b"\x11\x11"))
    np.testing.assert_array_equal(particles.stack.images.numpy(), images)
    assert any("stack.mrcs: the machine stamp says big-endian" in note for note in particles.notes)


def test_the_extended_header_is_skipped(stack: Path, images: np.ndarray) -> None:
    raw = bytearray(stack.read_bytes())
    raw[92:96] = struct.pack("<i", 160)
    stack.write_bytes(bytes(raw[:HEADER_BYTES]) + b"\x07" * 160 + bytes(raw[HEADER_BYTES:]))
    np.testing.assert_array_equal(read_particles(stack).stack.images.numpy(), images)


@pytest.mark.parametrize(
    ("offset", "values", "says"),
    [
        (0, (0,), r"0 x 16 x 24 \(nx, ny, nz\), expected positive"),
        (8, (-24,), r"16 x 16 x -24"),
        (12, (3,), "mode is 3, expected 0 "),
        (12, (4,), "mode is 4"),
        (12, (101,), "mode is 101"),
        (92, (-4,), r"extended header is -4 bytes"),
        (64, (2, 1, 3), r"axes are stored as \(2, 1, 3\)"),
        (0, (2_000_000, 2_000_000, 2_000_000), r"truncated: 25600 bytes, expected 32000000000000001024 for 2000000"),
        (8, (2**31 - 1,), "truncated"),
        (92, (2**31 - 1,), "truncated"),
        (12, (1,), r"too long: 25600 bytes, expected 13312.*the length fits mode 2 \(float32\)"),
    ],
)
def test_a_header_that_cannot_be_is_refused_by_its_value(
    stack: Path, patch_bytes: Patch, offset: int, values: tuple[int, ...], says: str
) -> None:
    patch_bytes(stack, offset, struct.pack(f"<{len(values)}i", *values))
    with pytest.raises(InputError, match=rf"stack\.mrcs: .*{says}") as error:
        read_particles(stack)
    assert "\n" not in str(error.value)


def test_a_truncated_file_says_how_many_images_are_whole(stack: Path) -> None:
    stack.write_bytes(stack.read_bytes()[: HEADER_BYTES + 7 * 1024 + 100])
    with pytest.raises(InputError, match=r"truncated: 8292 bytes, expected 25600 .* 7 whole images are there"):
        read_particles(stack)
    stack.write_bytes(stack.read_bytes()[:700])
    with pytest.raises(InputError, match=r"stack\.mrcs: 700 bytes long, expected at least the 1024"):
        read_particles(stack)


def test_bytes_past_the_data_are_refused(stack: Path) -> None:
    stack.write_bytes(stack.read_bytes() + b"\x00" * 6)
    with pytest.raises(InputError, match="too long: 25606 bytes, expected 25600"):
        read_particles(stack)


def test_non_square_images_are_refused_by_their_sizes(tmp_path: Path, write_mrcs: Write) -> None:
    with pytest.raises(InputError, match=r"a\.mrcs: the images are 16 x 12 pixels, expected square"):
        read_particles(write_mrcs(tmp_path / "a.mrcs", np.zeros((3, 12, 16), np.float32)))


@pytest.mark.parametrize("size", [7, 8])
def test_a_volume_is_written_as_mrcfile_reads_it(tmp_path: Path, size: int) -> None:
    values = torch.randn(size, size, size, generator=torch.Generator().manual_seed(0))
    write_volume(tmp_path / "v.mrc", Volume(values, 0.35))
    assert mrcfile.validate(tmp_path / "v.mrc")
    with mrcfile.open(tmp_path / "v.mrc") as mrc:
        np.testing.assert_array_equal(mrc.data, values.numpy())
        assert mrc.is_volume()
        assert mrc.voxel_size.z == pytest.approx(0.35, rel=1e-6)
        assert int(mrc.header.ispg) == 1
        assert int(mrc.header.mz) == size
    again = read_volume(tmp_path / "v.mrc")
    assert torch.equal(again.values, values)
    assert again.voxel_size == pytest.approx(0.35, rel=1e-6)


def test_images_are_written_as_mrcfile_reads_them(tmp_path: Path, images: np.ndarray) -> None:
    write_images(tmp_path / "a.mrcs", torch.from_numpy(images), 0.35)
    assert mrcfile.validate(tmp_path / "a.mrcs")
    with mrcfile.open(tmp_path / "a.mrcs") as mrc:
        np.testing.assert_array_equal(mrc.data, images)
        assert mrc.is_image_stack()
        assert (int(mrc.header.ispg), int(mrc.header.mz)) == (0, 1)
        assert mrc.voxel_size.x == pytest.approx(0.35, rel=1e-6)


def test_equal_volumes_give_equal_files(tmp_path: Path) -> None:
    for name in "ab":
        write_volume(tmp_path / name, Volume(torch.ones(4, 4, 4), 1.5))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_volumes_that_cannot_be_used_are_refused(tmp_path: Path, write_mrcs: Write, patch_bytes: Patch) -> None:
    with pytest.raises(InputError, match=r"b\.mrc: the volume is 8 x 8 x 4 \(x, y, z\), expected a cube"):
        read_volume(write_mrcs(tmp_path / "b.mrc", np.zeros((4, 8, 8), np.float32)))
    write_volume(tmp_path / "v.mrc", Volume(torch.ones(4, 4, 4), 1.5))
    patch_bytes(tmp_path / "v.mrc", 40, struct.pack("<f", 12.0))
    with pytest.raises(InputError, match=r"v\.mrc: the voxels are \(3\.0, 1\.5, 1\.5\)"):
        read_volume(tmp_path / "v.mrc")
    patch_bytes(tmp_path / "v.mrc", 40, struct.pack("<3f", 0, 0, 0))
    with pytest.raises(InputError, match=r"v\.mrc: the voxel size is 0"):
        read_volume(tmp_path / "v.mrc")
    assert read_volume(tmp_path / "v.mrc", voxel_size=2.0).voxel_size == 2.0


def test_nothing_is_written_with_an_impossible_pixel_size(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.mrcs: the pixel size to write is nan"):
        write_images(tmp_path / "a.mrcs", torch.zeros(2, 4, 4), float("nan"))
    assert os.listdir(tmp_path) == []


_WORDS = st.one_of(st.integers(-3, 40), st.integers(-(2**31), 2**31 - 1), st.sampled_from([1, 2, 6, 12, 2**24]))


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.tuples(*[_WORDS] * 4),
    extended=_WORDS,
    order=st.sampled_from("<>"),
    stamp=st.binary(min_size=4, max_size=4) | st.sampled_from([b"DD\0\0", b"\x11\x11\0\0"]),
    body=st.integers(0, 5000),
    cut=st.integers(0, 6024),
)
def test_any_header_is_read_or_refused_and_never_allocates_more_than_the_file(
    tmp_path_factory: pytest.TempPathFactory, sizes: tuple, extended: int, order: str, stamp: bytes, body: int, cut: int
) -> None:
    raw = bytearray(HEADER_BYTES)
    raw[:16] = struct.pack(order + "4i", *sizes)
    raw[92:96] = struct.pack(order + "i", extended)
    raw[208:216] = b"MAP " + stamp
    path = tmp_path_factory.mktemp("fuzz") / "a.mrcs"
    path.write_bytes((bytes(raw) + b"\x01" * body)[: cut if cut > 500 else None] or b"\0")
    tracemalloc.start()
    try:
        particles = read_particles(path, pixel_size=1.0)
    except InputError:
        pass
    else:
        assert particles.stack.images.numel() <= path.stat().st_size
        assert read_header(path).data_offset + map_sections(read_header(path)).nbytes == path.stat().st_size
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 16 * path.stat().st_size + 2**20


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(min_size=1, max_size=1500))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.mrc"
    path.write_bytes(raw)
    with pytest.raises(InputError) as error:  # 1500 random bytes are no stack
        read_particles(path, pixel_size=1.0)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
