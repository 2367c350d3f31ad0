"""IMOD's and SerialEM's files beside a tilt series: .mdoc (how it was taken) and .xf (how it was aligned).

Formats: bio3d.colorado.edu/imod/doc/mdoc.html and .../xfalign.html, "Format of transformations".
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from common.data import InputError
from common.io.files import atomic_write, require_file

_SECTION = re.compile(r"\[(\w+)\s*=\s*(-?\d+)\]")
_LARGEST_STRETCH = 0.1


@dataclass(frozen=True)
class Mdoc:
    """What an .mdoc says of a tilt series.

    tilt_angles : degrees, in the order of the images in the stack.
    pixel_size : angstrom, or None.
    tilt_axis : degrees from y, counterclockwise (RotationAngle), or None.
    """

    tilt_angles: tuple[float, ...]
    pixel_size: float | None
    tilt_axis: float | None


def read_mdoc(path: str | os.PathLike[str]) -> Mdoc:
    """Read a SerialEM .mdoc.

    Raises
    ------
    InputError : no [ZValue] section, one without TiltAngle, one that is named twice, or a value that is no number.
    """
    file = require_file(path)
    heading: dict[str, str] = {}
    sections: dict[int, dict[str, str]] = {}
    current = heading
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        match = _SECTION.fullmatch(line.strip())
        if match and match[1] in ("ZValue", "FrameSet"):
            z = int(match[2])
            if z in sections:
                raise InputError(f"{file}: line {number}: section {z} is there twice, expected each image once")
            current = sections[z] = {}
        elif not line.strip().startswith("[") and "=" in line:
            key, _, value = line.partition("=")
            current[key.strip()] = value.strip()
    if not sections:
        raise InputError(f"{file}: has no section [ZValue = 0], expected an .mdoc of SerialEM")
    angles = []
    for z in sorted(sections):
        if "TiltAngle" not in sections[z]:
            raise InputError(f"{file}: section {z} has no TiltAngle, expected one for each image")
        angles.append(_number(f"{file}: section {z}: TiltAngle", sections[z]["TiltAngle"]))
    first = heading | sections[min(sections)]
    pixel, axis = (first.get(key) for key in ("PixelSpacing", "RotationAngle"))
    size = None if pixel is None else _number(f"{file}: PixelSpacing", pixel)
    return Mdoc(tuple(angles), size or None, None if axis is None else _number(f"{file}: RotationAngle", axis))


def _number(where: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where} is {word[:40]!r}, expected a number")
    return value


def read_xf(path: str | os.PathLike[str]) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Where the origin of the aligned image lies in each raw one, and how that is turned.

    Returns
    -------
    In-plane rotations (n, 2, 2) from aligned to raw coordinates; positions (n, 2), (x, y) in raw pixels from the raw
    image's centre (between the two middle pixels when it is even), of the aligned image's centre; notes.

    Raises
    ------
    InputError : a line that does not hold six numbers, a mirror, or stretches beyond 10 %.

    Notes
    -----
    A line ``A11 A12 A21 A22 DX DY`` maps raw to aligned about the centres: ``x' = A x + d``. Images stay as they were
    measured: poses take up the rotation and the shift, and of a stretch only the rotation nearest to it is used.
    """
    file = require_file(path)
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        words = line.split()
        if len(words) != 6:
            raise InputError(f"{file}: line {number} holds {len(words)} numbers, expected 6 (A11 A12 A21 A22 DX DY)")
        rows.append([_number(f"{file}: line {number}: number {k + 1}", word) for k, word in enumerate(words)])
    if not rows:
        raise InputError(f"{file}: holds no line, expected six numbers for each image")
    values = torch.tensor(rows, dtype=torch.float64)
    matrices, moves = values[:, :4].reshape(-1, 2, 2), values[:, 4:]
    left, stretch, right = torch.linalg.svd(matrices)
    worst = (stretch - 1).abs().amax(-1)
    bad = (torch.linalg.det(matrices) <= 0) | (worst > _LARGEST_STRETCH)
    if bool(bad.any()):
        k = int(bad.nonzero()[0])
        raise InputError(
            f"{file}: line {k + 1} mirrors or stretches by {100 * float(worst[k]):.0f} %, expected a rotation and a "
            "shift; align without magnification changes"
        )
    notes: tuple[str, ...] = ()
    if float(worst.max()) > 1e-3:
        notes = (f"{file.name}: stretches of up to {100 * float(worst.max()):.2g} % are left out, rotations are used",)
    centres = -torch.linalg.solve(matrices, moves[..., None])[..., 0]
    return (left @ right).mT, centres, notes


def write_xf(path: str | os.PathLike[str], centres: Tensor) -> None:
    """Write an .xf that moves images without turning them.

    Parameters
    ----------
    centres : (n, 2), of what shall lie at the aligned image's centre, as :func:`read_xf` returns them.
    """
    with atomic_write(path, "w") as file:
        file.writelines(f"{1:12.7f}{0:12.7f}{0:12.7f}{1:12.7f}{-x:12.3f}{-y:12.3f}\n" for x, y in centres.tolist())
