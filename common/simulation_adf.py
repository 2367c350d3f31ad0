"""ADF-STEM images by multislice with abTEM: thermal displacements, channelling and all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
import torch
from torch import Tensor

from common.data import InputError
from common.extras import require_abtem
from common.fourier import fast_size

_PROBE_WINDOW = 10.0  # angstrom, within which PRISM keeps a probe whole
_SLICE = 2.0  # angstrom
_ROOM = 3.0  # angstrom above and below the atoms


@dataclass(frozen=True)
class AdfOptics:
    """The microscope.

    voltage_kv : kV, > 0. convergence_mrad : half angle of the probe, > 0.
    inner_mrad, outer_mrad : of the detector, 0 <= inner < outer.
    displacement : angstrom, >= 0, rms of an atom's thermal motion on each axis.
    configurations : of frozen phonons, >= 1.
    """

    voltage_kv: float = 200.0
    convergence_mrad: float = 25.0
    inner_mrad: float = 50.0
    outer_mrad: float = 130.0
    displacement: float = 0.08
    configurations: int = 1

    def __post_init__(self) -> None:
        for name in ("voltage_kv", "convergence_mrad", "outer_mrad"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name} is {getattr(self, name)}, expected a positive number")
        if not 0 <= self.inner_mrad < self.outer_mrad:
            raise InputError(f"the detector is {self.inner_mrad} to {self.outer_mrad} mrad, expected inner below outer")
        if not (math.isfinite(self.displacement) and self.displacement >= 0 and self.configurations >= 1):
            raise InputError("expected a displacement of at least 0 angstrom and at least one configuration")


def adf_images(
    symbols: list[str],
    views: Tensor,
    optics: AdfOptics | None = None,
    *,
    box_size: int,
    pixel_size: float,
    seed: int = 0,
) -> Tensor:
    """Scan a focused probe over atoms and count what reaches an annular detector.

    Parameters
    ----------
    symbols, views : n_atoms chemical symbols; (n, n_atoms, 3) positions in each view, (x, y) from pixel ``d // 2``,
        beam along +z, angstrom. The probe is focused on z = 0.
    optics : `AdfOptics`.
    box_size, pixel_size : of the scan; the specimen should keep clear of its border, where it goes round.
    seed : of the thermal displacements.

    Returns
    -------
    (n, d, d), fractions of the beam, float32; without the size of the source.

    Raises
    ------
    InputError : abTEM is not installed.

    Notes
    -----
    PRISM [1]_; about half a CPU minute for an image of 240 gold atoms.

    References
    ----------
    .. [1] C. Ophus, "A fast image simulation algorithm for scanning transmission electron microscopy", Adv. Struct.
       Chem. Imaging 3, 13 (2017). doi:10.1186/s40679-017-0046-1
    """
    require_abtem("an ADF image by multislice")
    import abtem

    optics = optics or AdfOptics()
    width = box_size * pixel_size
    wavelength = abtem.core.energy.energy2wavelength(optics.voltage_kv * 1e3)
    # the anti-aliasing aperture passes two thirds of the grid's largest angle
    sampling = wavelength / (2 * 1.03e-3 * optics.outer_mrad) * 2 / 3
    interpolation = max(1, round(width / _PROBE_WINDOW))
    # a multiple of the interpolation; a prime number of points takes three times as long
    gpts = interpolation * fast_size(width / sampling / interpolation)
    origin = box_size // 2 * pixel_size
    images = []
    for number, view in enumerate(views.double().cpu().numpy()):
        lowest, highest = view[:, 2].min() - _ROOM, view[:, 2].max() + _ROOM
        placed = np.concatenate(((view[:, :2] + origin) % width, view[:, 2:] - lowest), axis=1)
        cell = ase.Atoms(symbols, positions=placed, cell=[width, width, highest - lowest], pbc=True)
        phonons = abtem.FrozenPhonons(
            cell, num_configs=optics.configurations, sigmas=optics.displacement, seed=seed + 1000 * number
        )
        with abtem.config.set({"diagnostics.progress_bar": False}):
            potential = abtem.Potential(
                phonons, gpts=(gpts, gpts), slice_thickness=_SLICE, projection="infinite", parametrization="lobato"
            )
            matrix = abtem.SMatrix(
                potential=potential,
                energy=optics.voltage_kv * 1e3,
                semiangle_cutoff=optics.convergence_mrad,
                interpolation=interpolation,
                downsample=False,
            )
            # the probe enters above the atoms
            lens = abtem.CTF(
                energy=optics.voltage_kv * 1e3, semiangle_cutoff=optics.convergence_mrad, defocus=-float(lowest)
            )
            scanned: Any = matrix.scan(
                abtem.GridScan((0, 0), (width, width), gpts=box_size, endpoint=False),
                detectors=abtem.AnnularDetector(optics.inner_mrad, optics.outer_mrad),
                ctf=lens,
            )
            array = np.asarray(scanned.compute(scheduler="single-threaded").array, dtype=np.float32)
        images.append(torch.from_numpy((array if array.ndim == 2 else array.mean(0)).T.copy()))
    return torch.stack(images)
