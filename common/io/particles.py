"""Particle images from any format; the one door through which they come in."""

from __future__ import annotations

import os
from pathlib import Path

from common.data import ImageStack, InputError
from common.io.files import require_file
from common.io.mrc import read_header
from common.io.particle_file import ParticleFile, gather_images, header_pixel_sizes, settle_pixel_size
from common.io.relion import read_relion

MRC_SUFFIXES = (".mrc", ".mrcs", ".st", ".map", ".rec", ".ali", ".preali")


def read_particles(
    path: str | os.PathLike[str],
    *,
    pixel_size: float | None = None,
    voltage_kv: float | None = None,
    spherical_aberration_mm: float | None = None,
    allow_outside: bool = False,
) -> ParticleFile:
    """Read particle images with all that their file says of them.

    Parameters
    ----------
    path : a RELION ``.star``, an MRC stack, a cryoSPARC ``.cs``, a TIFF, or a microscope's own file.
    pixel_size : angstrom; wins over the file (noted where they differ by more than 1 %).
    voltage_kv, spherical_aberration_mm : win over the file (noted where they differ).
    allow_outside : follow the paths in a table out of its data folder.

    Returns
    -------
    ParticleFile. `stack.optics` is None where the file has no defocus (plain projections); focal spread and convergence
    are 0, since no particle file holds them. `poses` is None where the file has no angles.

    Raises
    ------
    InputError : anything that cannot be used, in one line: file, row or image, value, what was expected, what to do.
    """
    file = require_file(path)
    suffix = file.suffix.lower()
    if suffix == ".star":
        return read_relion(
            file,
            pixel_size=pixel_size,
            voltage_kv=voltage_kv,
            spherical_aberration_mm=spherical_aberration_mm,
            allow_outside=allow_outside,
        )
    if suffix in MRC_SUFFIXES:
        return _read_mrc(file, pixel_size)
    raise InputError(f"{file}: the format {suffix!r} is unknown, expected .star, .mrcs, .mrc, .cs or .tif")


def _read_mrc(file: Path, pixel_size: float | None) -> ParticleFile:
    header = read_header(file)
    n = header.shape[0]
    images, headers, notes = gather_images(str(file), [(file, k, str(file)) for k in range(n)])
    stated, silent = header_pixel_sizes(headers)
    size, size_notes = settle_pixel_size(str(file), pixel_size, stated)
    names = tuple(f"{k + 1:06d}@{file.name}" for k in range(n))
    plain = f"{file.name}: no defocus: the images are taken as plain projections"
    return ParticleFile(ImageStack(images, size), None, names, None, (file,), (*notes, *silent, *size_notes, plain))
