"""Small stacks with known content, and files damaged in known ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mrcfile
import numpy as np
import pytest

PIXEL = 0.5


@pytest.fixture
def images() -> np.ndarray:
    """24 different images of 16 x 16 pixels, float32."""
    return np.random.default_rng(0).normal(size=(24, 16, 16)).astype(np.float32)


@pytest.fixture
def write_mrcs() -> Callable[..., Path]:
    """Write a stack with mrcfile, the program whose files we must be able to read."""

    def write(path: Path, data: np.ndarray, pixel_size: float = PIXEL) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with mrcfile.new(path, overwrite=True) as mrc:
            mrc.set_data(data)
            mrc.set_image_stack()
            mrc.voxel_size = pixel_size
        return path

    return write


@pytest.fixture
def stack(tmp_path: Path, images: np.ndarray, write_mrcs: Callable[..., Path]) -> Path:
    return write_mrcs(tmp_path / "stack.mrcs", images)


@pytest.fixture
def patch_bytes() -> Callable[[Path, int, bytes], Path]:
    """Overwrite bytes of a file where they stand."""

    def patch(path: Path, offset: int, new: bytes) -> Path:
        raw = bytearray(path.read_bytes())
        raw[offset : offset + len(new)] = new
        path.write_bytes(bytes(raw))
        return path

    return patch


@pytest.fixture
def write_star31(tmp_path: Path) -> Callable[..., Path]:
    """Write a RELION 3.1 particle file; `rows` are the values of `columns`, `optics` a row per group."""

    def write(
        rows: Sequence[str],
        columns: Sequence[str] = ("rlnImageName", "rlnOpticsGroup"),
        optics: Sequence[str] = ("1 opticsGroup1 0.5 300.0 -0.013 0.0",),
        optics_columns: Sequence[str] = (
            "rlnOpticsGroup",
            "rlnOpticsGroupName",
            "rlnImagePixelSize",
            "rlnVoltage",
            "rlnSphericalAberration",
            "rlnAmplitudeContrast",
        ),
        path: Path = tmp_path / "particles.star",
        end: str = "\n",
    ) -> Path:
        lines = ["# version 30001", "", "data_optics", "", "loop_"]
        lines += [f"_{name} #{k}" for k, name in enumerate(optics_columns, start=1)] + list(optics)
        lines += ["", "", "# version 30001", "", "data_particles", "", "loop_"]
        lines += [f"_{name} #{k}" for k, name in enumerate(columns, start=1)] + list(rows) + [""]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(end.join(lines).encode())
        return path

    return write
