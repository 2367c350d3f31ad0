"""Tilt series of known atoms: incoherent images as an annular detector sees them, with counting noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ase
import torch
from torch import Tensor

from common.data import Focus, ImageStack, InputError, Poses
from common.scattering import projected_atoms


@dataclass(frozen=True)
class AnnularImaging:
    """How atoms become counts.

    brightest : counts expected in the brightest pixel of the series, > 0. background : counts in every pixel, >= 0.
    probe_sigma : angstrom, > 0, standard deviation of the probe. b_factor : angstrom^2, >= 0, of all atoms.
    exponent : brightness goes as the atomic number to this power.
    opening : rms width of the probe per angstrom off its focus, >= 0; 0: sharp at all depths.
    """

    brightest: float = 200.0
    background: float = 2.0
    probe_sigma: float = 0.4
    b_factor: float = 0.6
    exponent: float = 1.7
    opening: float = 0.0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("brightest", self.brightest, 1e-6),
            ("background", self.background, 0.0),
            ("probe sigma", self.probe_sigma, 1e-6),
            ("B factor", self.b_factor, 0.0),
            ("opening", self.opening, 0.0),
        ):
            if not least <= value < math.inf:
                raise InputError(f"the {name} is {value}, expected a number of at least {least:g}")


@dataclass(frozen=True)
class SimulatedTilts:
    """A tilt series with its truth.

    stack : n images, counts. nominal : poses as the microscope states them. poses : as they were. atoms : the specimen.
    """

    stack: ImageStack
    nominal: Poses
    poses: Poses
    atoms: ase.Atoms


def project_atoms(
    atoms: ase.Atoms,
    poses: Poses,
    *,
    box_size: int,
    pixel_size: float,
    imaging: AnnularImaging,
    foci: Tensor | None = None,
) -> Tensor:
    """Incoherent images (n, d, d) of atoms without noise; an atom's integral is Z^exponent, times square angstrom.

    foci : (n,) angstrom, the view's z where each image is sharp; 0 when None.

    Raises
    ------
    InputError : atoms of unknown species.
    """
    if not len(atoms) or not (atoms.numbers > 0).all():
        raise InputError("atoms of unknown species (X) have no brightness; give their chemical symbols")
    heights = torch.as_tensor(atoms.numbers, dtype=torch.float64)[:, None] ** imaging.exponent
    width = math.sqrt(imaging.probe_sigma**2 + imaging.b_factor / (8 * math.pi**2))
    positions = torch.as_tensor(atoms.positions, dtype=torch.float64)
    rotations, shifts = poses.rotations.double(), poses.shifts.double()
    sharp = torch.zeros(len(poses), dtype=torch.float64) if foci is None else foci.double()
    return torch.stack(
        [
            projected_atoms(
                positions @ rotation[:2].T + shift,
                heights,
                torch.hypot(torch.full_like(heights, width), imaging.opening * (positions @ rotation[2:].T - focus)),
                box_size=box_size,
                pixel_size=pixel_size,
            )
            for rotation, shift, focus in zip(rotations, shifts, sharp, strict=True)
        ]
    )


def box_of(atoms: ase.Atoms, *, pixel_size: float, shift_sigma: float = 0.0) -> int:
    """Pixels of an even box that holds atoms about the origin at any angle, with room for shifts and background."""
    if not len(atoms):
        raise InputError("there are no atoms, expected at least one")
    radius = float((atoms.positions**2).sum(1).max()) ** 0.5
    return 2 * math.ceil((radius + 4 * shift_sigma + 5.0) / pixel_size)


def simulate_tilts(
    atoms: ase.Atoms,
    tilt_angles: Tensor,
    *,
    box_size: int,
    pixel_size: float,
    imaging: AnnularImaging | None = None,
    shift_sigma: float = 0.0,
    angle_sigma: float = 0.0,
    foci: tuple[float, ...] = (),
    noise: bool = True,
    generator: torch.Generator,
) -> SimulatedTilts:
    """Images of a specimen at many tilts, with Poisson noise.

    Parameters
    ----------
    atoms : about the origin, angstrom; their species give the brightness.
    tilt_angles : (n,) degrees about y, as the microscope states them.
    box_size : pixels, >= 8. pixel_size : angstrom, > 0.
    shift_sigma : angstrom, >= 0, rms of the specimen's place on each axis.
    angle_sigma : degrees, >= 0, rms by which a tilt is off.
    foci : angstrom; every tilt is taken at each of them in turn, a through-focal series.
    noise : draw counts; else what is expected.

    Raises
    ------
    InputError : a parameter out of its range, atoms of unknown species, or that do not fit into the box.
    """
    imaging = imaging or AnnularImaging()
    if box_size < 8 or not pixel_size > 0 or not shift_sigma >= 0 or not angle_sigma >= 0:
        raise InputError(
            f"box size {box_size}, pixel size {pixel_size}, shift sigma {shift_sigma}, angle sigma {angle_sigma}: "
            "expected at least 8 pixels, a positive pixel size and sigmas of at least 0"
        )
    radius = float((atoms.positions**2).sum(1).max()) ** 0.5
    if radius > box_size * pixel_size / 2:
        raise InputError(
            f"an atom stands {radius:.1f} A from the origin, expected at most half the box, "
            f"{box_size * pixel_size / 2:.1f} A: give a larger box"
        )
    angles = tilt_angles.double().repeat_interleave(max(1, len(foci)))
    n, focus = len(angles), Focus(torch.tensor(foci).repeat(len(tilt_angles))) if foci else None
    off, places = (
        torch.randn(size, generator=generator, dtype=torch.float64, device=generator.device).cpu()
        for size in ((n,), (n, 2))
    )
    true = Poses(Poses.from_tilt_angles(angles + angle_sigma * off).rotations, shift_sigma * places)
    clean = project_atoms(
        atoms,
        true,
        box_size=box_size,
        pixel_size=pixel_size,
        imaging=imaging,
        foci=None if focus is None else focus.heights,
    )
    expected = clean * (imaging.brightest / float(clean.max())) + imaging.background
    counts = torch.poisson(expected.to(generator.device), generator=generator).cpu() if noise else expected
    stack = ImageStack(counts.float(), pixel_size, focus=focus)
    return SimulatedTilts(stack, Poses.from_tilt_angles(angles), true, atoms)
