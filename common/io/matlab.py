"""MATLAB's .mat files, read in a process of their own: scipy's reader can crash on a damaged file.

``python -m common.io.matlab FILE.mat OUT.npz`` is that process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data import InputError
from common.io.files import require_file

_SECONDS = 600
_HDF5 = b"\x89HDF\r\n\x1a\n"


def read_mat(path: str | os.PathLike[str]) -> dict[str, NDArray]:
    """The numeric arrays of a .mat file (version 4 to 7.2; 7.3 with h5py), by name; fields of structures as ``s.f``.

    Raises
    ------
    InputError : damaged, or it holds no numeric array.
    """
    file = require_file(path)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "arrays.npz"
        command = [sys.executable, "-m", "common.io.matlab", str(file.absolute()), str(out)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise InputError(f"{file}: was not read within {_SECONDS} s; save it again") from None
        if done.returncode or not out.is_file():
            last = (done.stderr.strip().splitlines() or [f"the reader ended with status {done.returncode}"])[-1]
            raise InputError(f"{file}: cannot be read as a .mat file: {last[:160]}; save it again")
        with np.load(out, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files}
    if not arrays:
        raise InputError(f"{file}: holds no numeric array, expected images or angles")
    return arrays


def _numeric(name: str, value: Any, found: dict[str, NDArray]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _numeric(f"{name}.{key}" if name else key, inner, found)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "iufb" and value.size:
        found[name] = value.astype("u1") if value.dtype.kind == "b" else value


def _load(path: str) -> dict[str, NDArray]:
    found: dict[str, NDArray] = {}
    with open(path, "rb") as handle:
        start = handle.read(520)
    if _HDF5 in (start[:8], start[512:520]):
        import h5py

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and not name.startswith("#"):
                _numeric(name.replace("/", "."), np.asarray(item[()]).T, found)  # HDF5 turns MATLAB's order of axes

        with h5py.File(path, "r") as file:
            file.visititems(visit)
        return found
    from scipy.io import loadmat

    loaded = loadmat(path, simplify_cells=True)
    _numeric("", {name: value for name, value in loaded.items() if not name.startswith("__")}, found)
    return found


if __name__ == "__main__":
    try:
        np.savez(sys.argv[2], **_load(sys.argv[1]))  # type: ignore[arg-type]
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
