"""The aligned images of a tilt series and their angles, written for other programs."""

from __future__ import annotations

import os
from pathlib import Path

from common.data import ImageStack, InputError, Poses
from common.fourier import shift_images
from common.io.imod import write_xf
from common.io.mrc import write_images
from common.io.tilt_angles import write_euler, write_tilt_angles
from common.io.tilt_series import before_origin
from common.rotations import tilt_angles_of


def write_aligned(folder: str | os.PathLike[str], stack: ImageStack, poses: Poses) -> tuple[Path, ...]:
    """Write aligned.mrc (shifts undone), aligned.tlt and euler.txt (rotations), aligned.xf (shifts) to a folder.

    Returns
    -------
    The files. In-plane rotations are not undone: euler.txt states them, aligned.tlt only the tilts. aligned.xf is
    IMOD's transform of the raw images that puts the specimen's origin at their centre.
    """
    if len(stack) != len(poses):
        raise InputError(f"{len(poses)} poses for {len(stack)} images, expected one each")
    where = Path(folder)
    files = tuple(where / name for name in ("aligned.mrc", "aligned.tlt", "euler.txt", "aligned.xf"))
    shifts = poses.shifts / stack.pixel_size
    write_images(files[0], shift_images(stack.images, -shifts), stack.pixel_size)
    write_tilt_angles(files[1], tilt_angles_of(poses.rotations))
    write_euler(files[2], poses.rotations)
    inside = stack.inside
    write_xf(files[3], shifts.double() + before_origin(int(inside.any(0).sum()), int(inside.any(1).sum())))
    return files
