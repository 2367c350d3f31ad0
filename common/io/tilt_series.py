"""Tilt series from any format: images, angles and alignment brought together, and what was assumed said in words."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.data import Focus, ImageStack, InputError, Poses
from common.io.files import require_file
from common.io.imod import read_mdoc, read_xf
from common.io.matlab import read_mat
from common.io.microscopy import READERS, read_microscopy
from common.io.mrc import map_sections, read_header
from common.io.particle_file import header_pixel_sizes, settle_pixel_size
from common.io.particles import MRC_SUFFIXES, TIFF_SUFFIXES
from common.io.stack_checks import check_stack
from common.io.tiff import read_tiff
from common.io.tilt_angles import find_angles, pick_angles, read_angles, read_npy, rotations_from_triplets

_FEWEST = 2  # discrete tomography is content with so few


@dataclass(frozen=True)
class TiltFile:
    """A tilt series as it was read.

    stack : the images, float32, square; others are padded, with a note and the mask of what was measured.
    poses : from the angles, the tilt axis and the .xf; shifts are 0 without an .xf.
    tilt_angles : (n,) degrees, sign applied; None where the file has Euler triplets.
    notes : what was assumed, in words.
    files : every file that was read.
    """

    stack: ImageStack
    poses: Poses
    tilt_angles: Tensor | None
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def read_tilt_series(
    path: str | os.PathLike[str],
    *,
    angles: str | os.PathLike[str] | None = None,
    pixel_size: float | None = None,
    tilt_axis: float | None = None,
    tilt_sign: int | None = None,
    focus: str | os.PathLike[str] | None = None,
) -> TiltFile:
    """Read a tilt series with its angles.

    Parameters
    ----------
    path : an MRC stack, TIFF, microscope's file (RosettaSciIO), or .npy or .mat as AET groups publish them.
    angles : a file of tilt angles or Euler triplets; found beside the stack by its name when None.
    pixel_size : angstrom; wins over the files.
    tilt_axis : degrees from y (rows) to the tilt axis, from x to y counted as positive; 0 when nothing says it.
    tilt_sign : 1 or -1, multiplied onto the tilt angles; 1 when None.
    focus : a file of the focus of each image, angstrom, one a line; None: images are sharp at all depths.

    Returns
    -------
    TiltFile. An .xf of the stack's name beside a raw stack becomes rotations and shifts of the poses: the images
    themselves stay as they were measured.

    Raises
    ------
    InputError : in one line, what cannot be used: no angles or another number of them, NaN, a constant image, no pixel
        size, fewer than 2 images.
    """
    file = require_image_file(path)
    _check_overrides(tilt_axis, tilt_sign)
    if angles is None and file.suffix.lower() != ".mat":
        found = find_angles(file)
    else:
        found = None if angles is None else require_file(angles)
    given = None if found is None else read_angles(found)
    images, inside, stated, notes = _read_images(file, pixel_size, None if given is None else len(given))
    given = inside if given is None else given
    if given is None:
        raise InputError(f"{file}: no angles are given and none lie beside it as {file.stem}.tlt; give --angles")
    source = file if found is None else found
    if len(given) != len(images):
        raise InputError(
            f"{source}: {len(given)} angles for {len(images)} images in {file.name}, expected one each; "
            "remove or add lines"
        )
    mdoc = _beside(file, ".mdoc") if source.suffix.lower() != ".mdoc" else source
    axis_notes: tuple[str, ...] = ()
    said_axis = None
    if mdoc is not None:
        facts = read_mdoc(mdoc)
        said_axis = facts.tilt_axis
        stated = [*stated, (mdoc.name, facts.pixel_size)]
    size, size_notes = settle_pixel_size(str(file), pixel_size, stated)
    transform = _transform_file(file)
    tilts: Tensor | None = None
    if given.ndim == 2:
        if tilt_axis is not None or tilt_sign is not None:
            raise InputError(
                f"{source}: holds Euler triplets, which state axis and sign; leave out --tilt-axis and -sign"
            )
        rotations = rotations_from_triplets(given)
        axis_notes = (f"{source.name}: Euler triplets, R = (Rz(phi) Ry(theta) Rx(psi))^T",)
        transform = None
    else:
        tilts = given * (tilt_sign or 1)
        rotations = Poses.from_tilt_angles(tilts).rotations
        axis_notes = (
            f"tilt angles from {source.name}, sign {'+' if (tilt_sign or 1) > 0 else '-'}1"
            f"{'' if tilt_sign else ' (assumed; the other sign mirrors the result)'}",
        )
        if transform is None:
            rotations, note = _about_axis(rotations, tilt_axis, said_axis, file)
            axis_notes += (note,)
        elif tilt_axis is not None:
            raise InputError(
                f"{transform}: states the tilt axis of every image; leave out --tilt-axis or move the file"
            )
    shifts = torch.zeros(len(images), 2, dtype=torch.float64)
    if transform is not None:
        rotations, shifts, xf_notes = _apply_transforms(transform, rotations, images.shape)
        axis_notes += xf_notes
    squared, measured, pad_notes = _square(file.name, images)
    foci = None if focus is None else read_foci(focus, len(images))
    stack = ImageStack(squared, size, measured=measured, focus=foci)
    names = [f"{k + 1:06d}@{file.name}" for k in range(len(images))]
    inner = ImageStack(images, size) if images.shape[1] == images.shape[2] else stack
    warned = check_stack(inner, names, minimum_images=_FEWEST, source=str(file))
    poses = Poses(rotations.float(), (shifts * size).float())
    focus_file = None if focus is None else Path(focus)
    files = tuple(dict.fromkeys(f for f in (file, found, mdoc, transform, focus_file) if f is not None))
    all_notes = (*notes, *size_notes, *axis_notes, *pad_notes, *warned)
    return TiltFile(stack, poses, None if tilts is None else tilts.float(), all_notes, files)


def read_foci(path: str | os.PathLike[str], n_images: int) -> Focus:
    """The focus of every image, angstrom, from text of one number a line; ``#`` starts a comment.

    Raises
    ------
    InputError : not one finite number a line, or another number of them than of images.
    """
    file, numbers = require_file(path), []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        word = line.partition("#")[0].strip()
        if word:
            try:
                numbers.append(float(word))
            except ValueError:
                numbers.append(math.nan)
            if not math.isfinite(numbers[-1]):
                raise InputError(f"{file}: line {number} is {word[:40]!r}, expected a focus in angstrom")
    if len(numbers) != n_images:
        raise InputError(f"{file}: {len(numbers)} foci for {n_images} images, expected one each; add or remove lines")
    return Focus(torch.tensor(numbers, dtype=torch.float32))


def require_image_file(path: str | os.PathLike[str]) -> Path:
    """The path of images: a file, or the folder that a .zspy is."""
    folder = Path(path)
    return folder if folder.suffix.lower() == ".zspy" and folder.is_dir() else require_file(path)


def _check_overrides(tilt_axis: float | None, tilt_sign: int | None) -> None:
    if tilt_sign not in (None, 1, -1):
        raise InputError(f"--tilt-sign is {tilt_sign}, expected 1 or -1")
    if tilt_axis is not None and not (math.isfinite(tilt_axis) and abs(tilt_axis) <= 360):
        raise InputError(f"--tilt-axis is {tilt_axis}, expected -360 to 360 degrees from y")


def _beside(file: Path, suffix: str) -> Path | None:
    for name in (f"{file.name}{suffix}", f"{file.stem}{suffix}"):
        if (file.parent / name).is_file():
            return file.parent / name
    return None


def _transform_file(file: Path) -> Path | None:
    """The .xf of a raw stack; an aligned stack has been through it."""
    aligned = file.suffix.lower() in (".ali", ".preali") or file.stem.lower().endswith(("_ali", "_preali", "aligned"))
    return None if aligned else _beside(file, ".xf")


def _about_axis(rotations: Tensor, given: float | None, said: float | None, file: Path) -> tuple[Tensor, str]:
    aligned = file.suffix.lower() in (".ali", ".preali") or file.stem.lower().endswith(("_ali", "_preali"))
    axis = given if given is not None else (said or 0.0) if not aligned else 0.0
    source = "as given" if given is not None else "from the .mdoc" if axis else "assumed"
    turn = torch.deg2rad(torch.tensor(axis, dtype=torch.float64))
    in_plane = torch.eye(3, dtype=torch.float64)
    in_plane[0, 0] = in_plane[1, 1] = turn.cos()
    in_plane[1, 0], in_plane[0, 1] = turn.sin(), -turn.sin()
    return in_plane @ rotations, f"tilt axis {axis:g} degrees from y ({source})"


def _apply_transforms(file: Path, rotations: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    turns, centres, notes = read_xf(file)
    if len(turns) != shape[0]:
        raise InputError(f"{file}: {len(turns)} lines for {shape[0]} images, expected one each")
    in_plane = torch.eye(3, dtype=torch.float64).repeat(len(turns), 1, 1)
    in_plane[:, :2, :2] = turns
    half = before_origin(shape[2], shape[1])
    said = f"{file.name}: its rotations and shifts are taken into the poses; the images stay as measured"
    return in_plane @ rotations, centres - half, (said, *notes)


def before_origin(width: int, height: int) -> Tensor:
    """(2,) pixels from IMOD's centre, between the middle pixels of an even image, to ours, pixel n // 2."""
    return torch.tensor([0.5 * (n % 2 == 0) for n in (width, height)], dtype=torch.float64)


def _square(name: str, images: Tensor) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Pad to a square with each image's median, origin pixel on origin pixel; and which pixels were measured (all:
    None)."""
    n, height, width = images.shape
    side = max(height, width)
    if height == width:
        return images, None, ()
    top, left = side // 2 - height // 2, side // 2 - width // 2
    edges = images[:, :, [0, -1]].flatten(1) if width < height else images[:, [0, -1]].flatten(1)
    padded = edges.median(1).values[:, None, None].expand(n, side, side).clone()
    padded[:, top : top + height, left : left + width] = images
    measured = torch.zeros(side, side, dtype=torch.bool)
    measured[top : top + height, left : left + width] = True
    note = f"{name}: images of {width} x {height} pixels are padded to {side} x {side} with each one's border median"
    return padded, measured, (note,)


Found = tuple[Tensor, Tensor | None, list[tuple[str, float | None]], tuple[str, ...]]


def _read_images(file: Path, pixel_size: float | None, n_angles: int | None) -> Found:
    """Images (n, y, x), angles where the file has them, who states which pixel size, and notes."""
    suffix = file.suffix.lower()
    if suffix in MRC_SUFFIXES:
        header = read_header(file)
        stated, silent = header_pixel_sizes([header], pixel_size)
        data = np.array(map_sections(header), dtype=np.float32)
        return torch.from_numpy(data), None, stated, (*header.notes, *silent)
    if suffix in TIFF_SUFFIXES:
        images, notes = read_tiff(file, square=False)
        return images, None, [], notes
    if suffix in READERS:
        images, size, notes = read_microscopy(file, square=False)
        return images, None, [("the file", size)], notes
    if suffix == ".npy":
        images, notes = _published(file, read_npy(file), n_angles)
        return images, None, [], notes
    if suffix == ".mat":
        arrays = read_mat(file)
        stacks = {name: value for name, value in arrays.items() if value.ndim == 3}
        if not stacks:
            raise InputError(f"{file}: holds no array of three dimensions, expected projections (x, y, n)")
        name = max(stacks, key=lambda key: stacks[key].size)
        inside = None
        if n_angles is None:
            others = {key: value for key, value in arrays.items() if value.ndim < 3}
            picked = pick_angles(file, others)
            inside = torch.from_numpy(np.atleast_1d(_rows(picked)).astype(np.float64))
            if not bool(torch.isfinite(inside).all()):
                raise InputError(f"{file}: the angles hold NaN, expected degrees; correct them")
        n = n_angles if inside is None else len(inside)
        images, notes = _published(file, stacks[name], n)
        return images, inside, [], (f"{file.name}: projections from {name!r}", *notes)
    known = ".mrc, .st, .ali, .mrcs, .tif, .dm3, .dm4, .emd, .ser, .hspy, .zspy, .npy or .mat"
    raise InputError(f"{file}: the format {file.suffix!r} is unknown, expected {known}")


def _rows(array: NDArray) -> NDArray:
    if array.ndim == 2 and 1 in array.shape:
        return array.reshape(-1)
    return array.T if array.ndim == 2 and array.shape[1] != 3 else array


def _published(file: Path, array: NDArray, n_angles: int | None) -> tuple[Tensor, tuple[str, ...]]:
    """Images (n, y, x) from an array of unstated order: MATLAB's (x, y, n), or numpy's (n, y, x)."""
    if array.ndim != 3 or array.dtype.kind not in "iuf":
        raise InputError(
            f"{file}: holds {array.dtype} of shape {array.shape}, expected projections (x, y, n) or (n, y, x)"
        )
    last = array.shape[2] == n_angles
    if not last and array.shape[0] != n_angles:
        raise InputError(f"{file}: projections of shape {array.shape} for {n_angles} angles, expected one each")
    if last:
        order, data = "(x, y, n), as AET groups publish them", array.transpose(2, 1, 0)
    else:
        order, data = "(n, y, x)", array
    images = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
    return images, (f"{file.name}: the array {array.shape} is taken as {order}",)
