"""Tilt angles and Euler triplets: read from text, .npy or .mat, found beside a stack, written.

Euler triplets (phi, theta, psi) are those of GENFIRE and RESIRE [1]_: ``R = (Rz(phi) @ Ry(theta) @ Rx(psi)).T`` with
``view = R @ specimen``. A tilt angle is about the y axis: ``view = Ry(tilt) @ specimen``; as a triplet it is
``(0, -tilt, 0)``.

References
----------
.. [1] Pryor et al., "GENFIRE: A generalized Fourier iterative reconstruction algorithm for high-resolution 3D imaging",
   Sci. Rep. 7, 10409 (2017). doi:10.1038/s41598-017-09847-1
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.data import InputError
from common.io.files import atomic_write, require_file
from common.io.imod import read_mdoc
from common.io.matlab import read_mat

_ALIGNED = re.compile(r"(_ali|_preali|_aligned|_bin\d+)+$", re.IGNORECASE)
_NAMED_SO = ("angles", "angle", "euler", "tilt", "theta")
_FEW = 4  # suggestions in a message


def read_angles(path: str | os.PathLike[str]) -> Tensor:
    """Tilt angles or Euler triplets from a file.

    Parameters
    ----------
    path : .tlt, .rawtlt or other text (one number, or three, a line; ``#`` starts a comment), .mdoc, .npy or .mat.

    Returns
    -------
    (n,) tilt angles or (n, 3) Euler triplets (phi, theta, psi), degrees, float64, as the file has them.

    Raises
    ------
    InputError : not numbers, NaN, lines of different lengths, angles outside -360 to 360, or radians.
    """
    file = require_file(path)
    suffix = file.suffix.lower()
    if suffix == ".mdoc":
        angles = np.asarray(read_mdoc(file).tilt_angles)
    elif suffix == ".npy":
        angles = _as_rows(file, read_npy(file))
    elif suffix == ".mat":
        angles = _as_rows(file, pick_angles(file, read_mat(file)))
    else:
        angles = _read_text(file)
    return _checked(file, angles)


def read_npy(file: Path) -> NDArray:
    """An array from a .npy file; arrays of Python objects (pickles) are refused."""
    try:
        return np.load(file, allow_pickle=False)
    except Exception as error:  # what a damaged file raises has no common class
        what = " ".join(str(error).split())[:160]
        raise InputError(f"{file}: cannot be read as a .npy array: {what}; write it with numpy.save") from None


def pick_angles(file: Path, arrays: dict[str, NDArray]) -> NDArray:
    """The one array among several that holds angles: (n,), (n, 1), (n, 3) or their transposes; by name when several."""
    fitting = {k: v for k, v in arrays.items() if v.ndim <= 2 and v.size > 1 and (1 in v.shape or 3 in v.shape)}
    fitting |= {k: v for k, v in arrays.items() if v.ndim == 1 and v.size > 1}
    named = {k: v for k, v in fitting.items() if any(word in k.lower() for word in _NAMED_SO)} or fitting
    if len(named) != 1:
        have = ", ".join(f"{k} {v.shape}" for k, v in list(arrays.items())[:_FEW])
        raise InputError(f"{file}: holds {have or 'no array'}, expected one array (n,) or (n, 3) named angles")
    return next(iter(named.values()))


def _as_rows(file: Path, array: NDArray) -> NDArray:
    array = np.asarray(array)
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2):
        raise InputError(f"{file}: holds {array.dtype} of shape {array.shape}, expected angles (n,) or (n, 3)")
    if array.ndim == 2 and 1 in array.shape:
        return array.reshape(-1).astype(float)
    if array.ndim == 2 and array.shape[1] != 3 and array.shape[0] == 3:
        array = array.T
    if array.ndim == 2 and array.shape[1] != 3:
        raise InputError(f"{file}: holds an array of shape {array.shape}, expected angles (n,) or (n, 3)")
    return array.astype(float)


def _read_text(file: Path) -> NDArray:
    rows: list[list[float]] = []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{file}: is not text, expected angles, one a line") from None
    for number, line in enumerate(lines, 1):
        words = re.split(r"[\s,;]+", line.split("#")[0].strip())
        if words == [""]:
            continue
        try:
            rows.append([float(word) for word in words])
        except ValueError:
            raise InputError(f"{file}: line {number} is {line.strip()[:60]!r}, expected angles in degrees") from None
        if len(rows[-1]) not in (1, 3) or len(rows[-1]) != len(rows[0]):
            raise InputError(
                f"{file}: line {number} holds {len(rows[-1])} numbers, expected "
                f"{len(rows[0]) if len(rows) > 1 else '1 (a tilt angle) or 3 (Euler angles phi, theta, psi)'}"
            )
    if not rows:
        raise InputError(f"{file}: holds no angle, expected one a line")
    values = np.array(rows)
    return values[:, 0] if values.shape[1] == 1 else values


def _checked(file: Path, angles: NDArray) -> Tensor:
    flat = angles.reshape(len(angles), -1)
    bad = ~np.isfinite(flat).all(-1)
    if bad.any():
        k = int(bad.argmax())
        raise InputError(f"{file}: angle {k + 1} is {flat[k].tolist()}, expected a number of degrees; correct it")
    large = np.abs(flat).max(-1) > 360
    if large.any():
        k = int(large.argmax())
        raise InputError(f"{file}: angle {k + 1} is {flat[k].tolist()}, expected -360 to 360 degrees")
    spread = np.ptp(flat, axis=0).max()
    if len(flat) > 1 and spread == 0:
        raise InputError(f"{file}: all {len(flat)} angles are {flat[0].tolist()}, expected different ones")
    if len(flat) >= 5 and np.abs(flat).max() <= np.pi + 1e-3 and spread > 0.5:
        raise InputError(f"{file}: all angles lie within {spread:.3g}, which looks like radians; expected degrees")
    return torch.from_numpy(np.ascontiguousarray(angles, dtype=np.float64))


def find_angles(stack: Path) -> Path | None:
    """The angle file that belongs to a stack by its name, the most refined first; None when there is none.

    Looked for in the stack's folder, for ``name.st`` or ``name_ali.mrc``: name.tlt, name.rawtlt, name.st.mdoc,
    name.mdoc, name_angles or name_euler (.txt, .npy, .mat), name.txt; then angles or euler_angles (.txt, .npy, .mat)
    and euler.txt.
    """
    stems = list(dict.fromkeys((stack.stem, _ALIGNED.sub("", stack.stem))))
    names: list[str] = []
    for stem in stems:
        names += [f"{stem}.tlt", f"{stem}.rawtlt", f"{stack.name}.mdoc", f"{stem}.mdoc"]
        names += [f"{stem}_{word}{suffix}" for word in ("angles", "euler") for suffix in (".txt", ".npy", ".mat")]
        names.append(f"{stem}.txt")
    names += [f"{word}{suffix}" for word in ("angles", "euler_angles") for suffix in (".txt", ".npy", ".mat")]
    names.append("euler.txt")
    for name in names:
        candidate = stack.parent / name
        if candidate != stack and candidate.is_file():
            return candidate
    return None


def _axis_rotation(axis: int, degrees: Tensor) -> Tensor:
    c, s = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation = torch.zeros(*degrees.shape, 3, 3, dtype=degrees.dtype, device=degrees.device)
    rotation[..., axis, axis] = 1
    rotation[..., i, i], rotation[..., i, j] = c, -s
    rotation[..., j, i], rotation[..., j, j] = s, c
    return rotation


def rotations_from_triplets(triplets: Tensor) -> Tensor:
    """(n, 3) Euler triplets (phi, theta, psi), degrees, to the rotations (n, 3, 3) from specimen to view."""
    phi, theta, psi = triplets.unbind(-1)
    return (_axis_rotation(2, phi) @ _axis_rotation(1, theta) @ _axis_rotation(0, psi)).mT


def triplets_from_rotations(rotations: Tensor) -> Tensor:
    """The inverse of :func:`rotations_from_triplets`: (n, 3), degrees, theta in [-90, 90]; phi is 0 at theta = +-90."""
    m = rotations.mT
    cosine = torch.hypot(m[..., 0, 0], m[..., 1, 0])
    theta = torch.atan2(-m[..., 2, 0], cosine)
    pole = cosine < 8 * torch.finfo(m.dtype).eps
    phi = torch.where(pole, 0.0, torch.atan2(m[..., 1, 0], m[..., 0, 0]))
    psi = torch.where(pole, torch.atan2(-m[..., 1, 2], m[..., 1, 1]), torch.atan2(m[..., 2, 1], m[..., 2, 2]))
    return torch.rad2deg(torch.stack((phi, theta, psi), -1))


def write_tilt_angles(path: str | os.PathLike[str], angles: Tensor) -> None:
    """Write tilt angles (n,), degrees, one a line, as IMOD's .tlt."""
    with atomic_write(path, "w") as file:
        file.writelines(f"{angle:9.4f}\n" for angle in angles.tolist())


def write_euler(path: str | os.PathLike[str], rotations: Tensor) -> None:
    """Write rotations (n, 3, 3) as Euler triplets, one a line; :func:`read_angles` reads them back."""
    with atomic_write(path, "w") as file:
        file.write("# phi theta psi, degrees; R = (Rz(phi) Ry(theta) Rx(psi))^T, view = R specimen\n")
        for phi, theta, psi in triplets_from_rotations(rotations.double()).tolist():
            file.write(f"{phi:11.5f} {theta:11.5f} {psi:11.5f}\n")
