"""Particle images from any format; the one door through which they come in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from common.data import ImageStack, InputError
from common.io.cryosparc import read_cryosparc
from common.io.files import require_file
from common.io.microscopy import READERS, read_microscopy
from common.io.mrc import read_header
from common.io.particle_file import ParticleFile, gather_images, header_pixel_sizes, settle_pixel_size
from common.io.relion import read_relion
from common.io.tiff import read_tiff

MRC_SUFFIXES = (".mrc", ".mrcs", ".st", ".map", ".rec", ".ali", ".preali")

TIFF_SUFFIXES = (".tif", ".tiff")


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
    if suffix == ".cs":
        return read_cryosparc(
            file,
            pixel_size=pixel_size,
            voltage_kv=voltage_kv,
            spherical_aberration_mm=spherical_aberration_mm,
            allow_outside=allow_outside,
        )
    if suffix in TIFF_SUFFIXES:
        images, notes = read_tiff(file)
        return _plain(file, images, pixel_size, [], notes)
    if suffix in READERS:
        images, size, notes = read_microscopy(file)
        return _plain(file, images, pixel_size, [("the file", size)], notes)
    raise unknown_format(file)


def unknown_format(file: Path) -> InputError:
    """What to say of a file whose suffix is not known."""
    known = ".star, .mrcs, .mrc, .cs, .tif, .dm3, .dm4, .emd or .ser"
    return InputError(f"{file}: the format {file.suffix!r} is unknown, expected {known}")


def _read_mrc(file: Path, pixel_size: float | None) -> ParticleFile:
    header = read_header(file)
    named = [(file, k, f"{file}: image {k + 1}") for k in range(header.shape[0])]
    images, headers, notes = gather_images(str(file), named)
    stated, silent = header_pixel_sizes(headers, pixel_size)
    if header.space_group == 1 and len(set(header.shape)) == 1:
        notes = (*notes, f"{file.name}: the header says this is a volume (ISPG 1), its sections are read as images")
    return _plain(file, images, pixel_size, stated, (*notes, *silent))


def _plain(
    file: Path,
    images: Tensor,
    pixel_size: float | None,
    stated: Sequence[tuple[str, float | None]],
    notes: tuple[str, ...],
) -> ParticleFile:
    """A stack from a file that holds images alone."""
    size, size_notes = settle_pixel_size(str(file), pixel_size, stated)
    names = tuple(f"{k + 1:06d}@{file.name}" for k in range(len(images)))
    plain = f"{file.name}: no defocus: the images are taken as plain projections"
    return ParticleFile(ImageStack(images, size), None, names, None, (file,), (*notes, *size_notes, plain))
