"""Microscopes' own files (.dm3, .dm4, .emd, .ser, HyperSpy) through RosettaSciIO, an extra; nm become angstrom."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data import InputError
from common.io.files import require_file
from common.io.particle_file import require_square

READERS = {
    ".dm3": "digitalmicrograph",
    ".dm4": "digitalmicrograph",
    ".emd": "emd",
    ".ser": "tia",
    ".hspy": "hspy",
    ".zspy": "zspy",
}
_ANGSTROM = {"pm": 0.01, "a": 1.0, "å": 1.0, "angstrom": 1.0, "nm": 10.0, "um": 1e4, "µm": 1e4, "μm": 1e4, "m": 1e10}


def read_microscopy(
    path: str | os.PathLike[str], *, square: bool = True
) -> tuple[Tensor, float | None, tuple[str, ...]]:
    """Read an image or a stack of images from a microscope's own file; not only square ones when `square` is False.

    Returns
    -------
    Images (n, d, d) float32; the pixel size in angstrom, or None where the file does not say; notes.

    Raises
    ------
    InputError : RosettaSciIO is not installed, the file is damaged, or it holds no stack of square images.
    """
    file = Path(path)
    if not (file.suffix.lower() == ".zspy" and file.is_dir()):  # a .zspy is a folder or a zipped one
        file = require_file(path)
    try:
        reader = importlib.import_module(f"rsciio.{READERS[file.suffix.lower()]}")
    except ImportError:
        raise InputError(
            f"{file}: reading {file.suffix} needs RosettaSciIO, which is not installed; pip install nanospr[formats]"
        ) from None
    try:
        found = [d for d in reader.file_reader(str(file), lazy=False) if np.ndim(d["data"]) in (2, 3)]
    except Exception as error:  # what a damaged file raises has no common class
        raise InputError(f"{file}: cannot be read: {' '.join(str(error).split())[:160]}; export it again") from None
    if not found:
        raise InputError(f"{file}: holds no image and no stack of images, expected (n, y, x)")
    signal = max(found, key=lambda d: np.size(d["data"]))
    data = np.asarray(signal["data"])
    if data.dtype.kind not in "iuf":
        raise InputError(f"{file}: the images hold {data.dtype}, expected real numbers")
    notes = (f"{file.name}: {len(found)} data sets of images, the largest is read",) if len(found) > 1 else ()
    images = data.astype(np.float32).reshape(-1, *data.shape[-2:])
    if square:
        require_square(file, images.shape)
    size = _pixel_size(file.name, _image_axes(signal, data.ndim))
    return torch.from_numpy(images), size, notes


def _image_axes(signal: dict[str, Any], ndim: int) -> list[dict[str, Any]]:
    """The axes of rows and columns, the last two of the array."""
    axes = {axis.get("index_in_array", k): axis for k, axis in enumerate(signal["axes"])}
    return [axes[k] for k in (ndim - 2, ndim - 1) if k in axes]


def _pixel_size(name: str, axes: list[dict[str, Any]]) -> float | None:
    sizes = []
    for axis in axes:
        unit = _ANGSTROM.get(str(axis.get("units", "")).strip().lower())
        if unit is None:
            return None
        sizes.append(abs(float(axis["scale"])) * unit)
    if len(sizes) == 2 and abs(sizes[0] - sizes[1]) > 0.01 * sizes[0]:
        raise InputError(f"{name}: the pixels are {sizes[1]:g} x {sizes[0]:g} angstrom, expected square ones")
    return float(f"{sizes[0]:.7g}") if sizes else None
