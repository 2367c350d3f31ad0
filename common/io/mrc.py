"""MRC files (MRC2014): the header is held against the file's length before anything is read or allocated.

Layout: A. Cheng et al., "MRC2014: Extensions to the MRC format header for electron cryo-microscopy and tomography",
J. Struct. Biol. 192, 146 (2015). doi:10.1016/j.jsb.2015.04.002
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.data import InputError, Volume
from common.io.files import atomic_write, require_file

HEADER_BYTES = 1024
_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_STAMPS = {b"\x44\x44": "<", b"\x44\x41": "<", b"\x11\x11": ">"}
_IMOD_STAMP = 1146047817
_NAMES = {"<": "little-endian", ">": "big-endian"}


@dataclass(frozen=True)
class MrcHeader:
    """What an MRC file holds, checked against its length.

    shape : (nz, ny, nx).
    dtype : of the data on disk, with its byte order.
    data_offset : bytes before the data (header and extended header).
    voxel_size : (x, y, z) CELLA / M in angstrom, as written; 0 where the header does not say.
    space_group : ISPG; 0 for an image stack, 1 for a volume.
    sections_per_volume : MZ.
    notes : what was odd about the header, in words.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    data_offset: int
    voxel_size: tuple[float, float, float]
    space_group: int
    sections_per_volume: int
    notes: tuple[str, ...]

    @property
    def pixel_size(self) -> float | None:
        """The pixel size in angstrom, or None where the header says 0 or the customary "unknown" of 1."""
        x, y, _ = self.voxel_size
        if x in (0.0, 1.0) and y in (0.0, 1.0):
            return None
        if not (math.isfinite(x) and math.isfinite(y) and x > 0 and y > 0):
            raise InputError(
                f"{self.path}: the header's pixels are {x:g} x {y:g} angstrom, expected positive numbers; "
                "give --pixel-size"
            )
        if abs(x - y) > 0.01 * x:
            raise InputError(f"{self.path}: the header's pixels are {x:g} x {y:g} angstrom, expected square ones")
        return float(f"{x:.7g}")  # float32 in the file: 0.35, not 0.3499999940395355


def _plausible(raw: bytes, order: str) -> bool:
    nx, ny, nz, mode = (int(v) for v in np.frombuffer(raw[:16], dtype=order + "i4"))
    return min(nx, ny, nz) > 0 and 0 <= mode <= 1024 and max(nx, ny, nz) < 2**24


def _byte_order(path: Path, raw: bytes) -> tuple[str, tuple[str, ...]]:
    """The byte order in which sizes and mode make sense; the machine stamp decides only where both or neither do."""
    stamp = _STAMPS.get(raw[212:214])
    plausible = [order for order in "<>" if _plausible(raw, order)]
    if stamp in plausible or (stamp and not plausible):
        return stamp, ()
    if not plausible:
        return "<", ()
    order = plausible[0]
    stamped = f"says {_NAMES[stamp]}" if stamp else f"is {raw[212:216].hex(' ')} (unknown)"
    return order, (f"{path.name}: the machine stamp {stamped}, but the header makes sense only as {_NAMES[order]}",)


def read_header(path: str | os.PathLike[str]) -> MrcHeader:
    """Read an MRC header and hold it against the file's length; nothing is allocated.

    Returns
    -------
    The header; the file's length is exactly header + extended header + data.

    Raises
    ------
    InputError : not an MRC file, sizes that are not positive, an unknown mode, or a length that does not fit.
    """
    file = require_file(path)
    length = file.stat().st_size
    with file.open("rb") as handle:
        raw = handle.read(HEADER_BYTES)
    if len(raw) < HEADER_BYTES:
        raise InputError(f"{file}: {len(raw)} bytes long, expected at least the {HEADER_BYTES} of an MRC header")
    order, notes = _byte_order(file, raw)
    words = np.frombuffer(raw, dtype=order + "i4")
    cell = np.frombuffer(raw[40:52], dtype=order + "f4").astype(float)
    nx, ny, nz, mode = (int(v) for v in words[:4])
    intervals = [int(v) for v in words[7:10]]
    axes = tuple(int(v) for v in words[16:19])
    space_group, extended = int(words[22]), int(words[23])
    if min(nx, ny, nz) <= 0:
        raise InputError(f"{file}: the MRC header says {nx} x {ny} x {nz} (nx, ny, nz), expected positive sizes")
    if mode not in _MODES:
        raise InputError(
            f"{file}: the MRC mode is {mode}, expected 0 (int8), 1 (int16), 2 (float32), 6 (uint16) or 12 (float16)"
        )
    if extended < 0:
        raise InputError(f"{file}: the extended header is {extended} bytes long (NSYMBT), expected 0 or more")
    if axes not in ((1, 2, 3), (0, 0, 0)):
        raise InputError(f"{file}: the axes are stored as {axes} (MAPC, MAPR, MAPS), expected (1, 2, 3)")
    unsigned = mode == 0 and int(words[38]) == _IMOD_STAMP and not int(words[39]) & 1
    dtype = np.dtype("u1") if unsigned else np.dtype(order + _MODES[mode])
    offset, section = HEADER_BYTES + extended, nx * ny * dtype.itemsize
    expected = offset + nz * section
    if length < expected:
        whole = max(0, length - offset) // section
        raise InputError(
            f"{file}: truncated: {length} bytes, expected {expected} for {nz} images of {nx} x {ny} {dtype.name} "
            f"(mode {mode}); {whole} whole images are there{_fitting_modes(length - offset, nx * ny * nz)}; "
            "copy the file again"
        )
    if length > expected:
        raise InputError(
            f"{file}: too long: {length} bytes, expected {expected} for {nz} images of {nx} x {ny} {dtype.name} "
            f"(mode {mode}){_fitting_modes(length - offset, nx * ny * nz)}; write the file again"
        )
    if raw[208:211] != b"MAP":
        notes = (*notes, f"{file.name}: the header lacks the word MAP of MRC2014; read as an older MRC file")
    voxel = tuple(float(c) / m if m > 0 else 0.0 for c, m in zip(cell, intervals, strict=True))
    return MrcHeader(
        file, (nz, ny, nx), dtype, offset, (voxel[0], voxel[1], voxel[2]), space_group, intervals[2], notes
    )


def _fitting_modes(data_bytes: int, values: int) -> str:
    """A hint where the length fits another mode than the header's."""
    types = {mode: np.dtype(code) for mode, code in _MODES.items()}
    fitting = [f"{mode} ({t.name})" for mode, t in types.items() if values * t.itemsize == data_bytes]
    return f"; the length fits mode {' or '.join(fitting)}" if fitting else ""


def map_sections(header: MrcHeader) -> NDArray:
    """The data of an MRC file, (nz, ny, nx), mapped read-only: sections are read from the disk when they are used."""
    return np.memmap(header.path, dtype=header.dtype, mode="r", offset=header.data_offset, shape=header.shape)


def read_volume(path: str | os.PathLike[str], *, voxel_size: float | None = None) -> Volume:
    """Read a cubic MRC volume.

    Parameters
    ----------
    voxel_size : angstrom; only needed, and then used, where the header does not say.

    Returns
    -------
    Volume, float32.

    Raises
    ------
    InputError : a damaged file, a volume that is not a cube, voxels that are not cubes, or no voxel size.
    """
    header = read_header(path)
    nz, ny, nx = header.shape
    if not nx == ny == nz:
        raise InputError(f"{header.path}: the volume is {nx} x {ny} x {nz} (x, y, z), expected a cube")
    voxel = header.voxel_size
    if not all(math.isfinite(v) and v >= 0 for v in voxel) or max(voxel) - min(voxel) > 0.01 * max(voxel):
        raise InputError(f"{header.path}: the voxels are {voxel} angstrom, expected cubes of a positive size")
    size = voxel[0] or voxel_size
    if not size:
        raise InputError(f"{header.path}: the voxel size is 0, expected angstrom; give voxel_size")
    return Volume(_float_tensor(map_sections(header)), size)


def _float_tensor(data: NDArray) -> Tensor:
    return torch.from_numpy(np.array(data, dtype=np.float32))


def write_volume(path: str | os.PathLike[str], volume: Volume) -> None:
    """Write a volume as float32 MRC (ISPG 1, MZ = NZ), whole or not at all; the same volume gives the same bytes."""
    _write(Path(path), volume.values, volume.voxel_size, space_group=1)


def write_images(path: str | os.PathLike[str], images: Tensor, pixel_size: float) -> None:
    """Write images (n, y, x) as a float32 MRC stack (ISPG 0, MZ 1), whole or not at all.

    Parameters
    ----------
    images : (n, y, x).
    pixel_size : angstrom.
    """
    if images.ndim != 3:
        raise InputError(f"{path}: the images have shape {tuple(images.shape)}, expected (n, y, x)")
    _write(Path(path), images, pixel_size, space_group=0)


def _write(path: Path, values: Tensor, voxel_size: float, *, space_group: int) -> None:
    if not (math.isfinite(voxel_size) and voxel_size > 0):
        raise InputError(f"{path}: the pixel size to write is {voxel_size}, expected a positive number of angstrom")
    data = np.ascontiguousarray(values.detach().cpu().numpy(), dtype="<f4")
    with atomic_write(path) as file:
        file.write(_header_bytes(data, voxel_size, space_group))
        file.write(data.data)


def _header_bytes(data: NDArray, voxel_size: float, space_group: int) -> bytes:
    """A little-endian MRC2014 header. mrcfile would put the time into the label: here equal data give equal files."""
    words = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    floats = words.view("<f4")
    nz, ny, nx = data.shape
    sampling = (nx, ny, nz if space_group else 1)
    words[0:4] = nx, ny, nz, 2
    words[7:10] = sampling
    floats[10:13] = [m * voxel_size for m in sampling]
    floats[13:16] = 90.0
    words[16:19] = 1, 2, 3
    wide = data.astype(np.float64) if data.size else np.zeros(1)
    floats[19:22] = wide.min(), wide.max(), wide.mean()
    words[22] = space_group
    words[27] = 20141
    floats[54] = wide.std()
    words[55] = 1
    header = bytearray(words.tobytes())
    header[208:216] = b"MAP \x44\x44\x00\x00"
    header[224:304] = b"nanospr".ljust(80)
    return bytes(header)
