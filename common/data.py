"""The types everything flows through: frozen, checked at birth.

Arrays are indexed (z, y, x); vectors and rotation matrices are (x, y, z) columns; the origin is pixel ``n // 2``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: where, what came, what was expected, what to do."""


def _check_length(name: str, value: float, unit: str = "angstrom") -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value}, expected a positive number of {unit}")


def _check_shape(name: str, tensor: Tensor, expected: tuple[int | None, ...]) -> None:
    same = tensor.ndim == len(expected) and all(
        e is None or e == s for s, e in zip(tensor.shape, expected, strict=True)
    )
    if not same:
        wanted = "(" + ", ".join("n" if e is None else str(e) for e in expected) + ")"
        raise InputError(f"{name} has shape {tuple(tensor.shape)}, expected {wanted}")


def _check_finite(name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{name} holds NaN or infinite values, expected finite numbers")


@dataclass(frozen=True)
class Volume:
    """A map on a cubic grid.

    values : (d, d, d), indexed (z, y, x).
    voxel_size : angstrom, the same along every axis.
    """

    values: Tensor
    voxel_size: float

    def __post_init__(self) -> None:
        _check_shape("the volume", self.values, (None, None, None))
        if len(set(self.values.shape)) != 1:
            raise InputError(f"the volume has shape {tuple(self.values.shape)}, expected a cube")
        _check_length("the voxel size", self.voxel_size)

    @property
    def box_size(self) -> int:
        return self.values.shape[-1]


@dataclass(frozen=True)
class Optics:
    """What the microscope did to each image; every tensor has one entry (or row) per image.

    voltage_kv : (n,) acceleration voltage, kV.
    spherical_aberration_mm : (n,) Cs, mm; negative for an overcorrected microscope.
    amplitude_contrast : (n,) fraction in [0, 1].
    defocus : (n, 3) u and v in angstrom, positive = underfocus (RELION), and the angle of u to x in degrees.
    focal_spread : (n,) rms spread of focus, angstrom.
    convergence_mrad : (n,) rms half angle of the source, milliradian.
    """

    voltage_kv: Tensor
    spherical_aberration_mm: Tensor
    amplitude_contrast: Tensor
    defocus: Tensor
    focal_spread: Tensor
    convergence_mrad: Tensor

    def __post_init__(self) -> None:
        n = self.defocus.shape[0]
        _check_shape("the defocus", self.defocus, (None, 3))
        for name in ("voltage_kv", "spherical_aberration_mm", "amplitude_contrast", "focal_spread", "convergence_mrad"):
            _check_shape(name, getattr(self, name), (n,))
            _check_finite(name, getattr(self, name))
        _check_finite("the defocus", self.defocus)
        if n and float(self.voltage_kv.min()) <= 0:
            raise InputError(f"the voltage is {float(self.voltage_kv.min())} kV, expected a positive number")

    def __getitem__(self, index: Tensor) -> Optics:
        return Optics(**{name: getattr(self, name)[index] for name in self.__dataclass_fields__})

    def to(self, device: torch.device | str) -> Optics:
        return Optics(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class Focus:
    """Where images of a converged probe are sharp, so that atoms above and below look wider.

    heights : (n,) angstrom along the beam, as the view's z, from the specimen's origin.
    opening : rms width of the probe per angstrom from there, >= 0; 0 while it is not known.
    """

    heights: Tensor
    opening: float = 0.0

    def __post_init__(self) -> None:
        _check_shape("the focus", self.heights, (None,))
        _check_finite("the focus", self.heights)
        if not (math.isfinite(self.opening) and self.opening >= 0):
            raise InputError(f"the opening is {self.opening}, expected a number >= 0")

    def __getitem__(self, index: Tensor) -> Focus:
        return replace(self, heights=self.heights[index])

    def to(self, device: torch.device | str) -> Focus:
        return replace(self, heights=self.heights.to(device))


@dataclass(frozen=True)
class ImageStack:
    """Measured images.

    images : (n, d, d), indexed (y, x); electron counts or any linear unit.
    pixel_size : angstrom.
    optics : one row per image, or None when the images are plain projections (no contrast transfer).
    measured : (d, d) bool, False where images were padded and nothing was measured; None: all was.
    focus : of images that are sharp at one depth only; None: at all.
    """

    images: Tensor
    pixel_size: float
    optics: Optics | None = None
    measured: Tensor | None = None
    focus: Focus | None = None

    def __post_init__(self) -> None:
        _check_shape("the image stack", self.images, (None, None, None))
        if self.images.shape[1] != self.images.shape[2]:
            raise InputError(
                f"the images are {self.images.shape[2]} x {self.images.shape[1]} pixels, expected square ones"
            )
        _check_length("the pixel size", self.pixel_size)
        if self.optics is not None and self.optics.defocus.shape[0] != len(self):
            raise InputError(f"{self.optics.defocus.shape[0]} rows of optics for {len(self)} images, expected one each")
        if self.focus is not None and len(self.focus.heights) != len(self):
            raise InputError(f"{len(self.focus.heights)} focus heights for {len(self)} images, expected one each")
        if self.measured is not None:
            _check_shape("the mask of measured pixels", self.measured, self.images.shape[1:])

    def __len__(self) -> int:
        return self.images.shape[0]

    def __getitem__(self, index: Tensor) -> ImageStack:
        """The images at ``index`` (a tensor of integers or booleans), with their optics and focus."""
        optics = None if self.optics is None else self.optics[index]
        focus = None if self.focus is None else self.focus[index]
        return replace(self, images=self.images[index], optics=optics, focus=focus)

    @property
    def box_size(self) -> int:
        return self.images.shape[-1]

    @property
    def inside(self) -> Tensor:
        """(d, d) bool, True where pixels were measured."""
        if self.measured is not None:
            return self.measured
        return torch.ones(self.images.shape[1:], dtype=torch.bool, device=self.images.device)

    def to(self, device: torch.device | str) -> ImageStack:
        optics = None if self.optics is None else self.optics.to(device)
        measured = None if self.measured is None else self.measured.to(device)
        focus = None if self.focus is None else self.focus.to(device)
        return replace(self, images=self.images.to(device), optics=optics, measured=measured, focus=focus)


@dataclass(frozen=True)
class Poses:
    """Inferred orientations and positions: ``view = rotation @ specimen``, then the shift is added.

    rotations : (n, 3, 3) proper rotations acting on (x, y, z) columns.
    shifts : (n, 2) of the particle's origin from pixel ``d // 2``, (x, y), angstrom.
    """

    rotations: Tensor
    shifts: Tensor

    def __post_init__(self) -> None:
        _check_shape("the rotations", self.rotations, (None, 3, 3))
        _check_shape("the shifts", self.shifts, (self.rotations.shape[0], 2))

    def __len__(self) -> int:
        return self.rotations.shape[0]

    def __getitem__(self, index: Tensor) -> Poses:
        return Poses(self.rotations[index], self.shifts[index])

    @classmethod
    def from_tilt_angles(cls, angles: Tensor) -> Poses:
        """Poses of a tilt series about the y axis; ``angles`` (n,) in degrees."""
        c, s = torch.cos(torch.deg2rad(angles)), torch.sin(torch.deg2rad(angles))
        zero, one = torch.zeros_like(c), torch.ones_like(c)
        rows = (torch.stack((c, zero, s), -1), torch.stack((zero, one, zero), -1), torch.stack((-s, zero, c), -1))
        return cls(torch.stack(rows, -2), angles.new_zeros(len(angles), 2))
