"""Movies of particles that tumble in a graphene liquid cell, as phase objects, with everything that made them kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import ase
import numpy as np
import torch
from ase.build import bulk
from torch import Tensor

from common.data import InputError, Optics
from common.image_formation import interaction_constant, phase_object_image, wave_transfer
from common.rotations import random_rotations, rotation_from_vector
from common.scattering import projected_potential, scattering_factor


@dataclass(frozen=True)
class MovieSimulation:
    """What is filmed.

    n_frames : frames.
    frame_size : pixels, square frames.
    pixel_size : angstrom.
    diameters : angstrom, one for each platinum particle.
    tumbling : degrees, rms rotation between frames.
    jump_rate : probability of a jump of 30 degrees in a frame.
    diffusion : angstrom, rms movement between frames on each axis.
    drift : angstrom per frame, (x, y), of the whole scene.
    graphene_angles : degrees, one sheet for each; empty for no graphene.
    liquid_density : carbon atoms per square angstrom of a thin disordered film, drawn anew every 50 frames.
    dose : electrons/angstrom^2 per frame, as Poisson counts; none for intensities.
    voltage_kv : kV.
    spherical_aberration_mm : mm.
    defocus_range : angstrom, positive = underfocus; each frame draws its own.
    focal_spread : angstrom, rms.
    b_factor : angstrom^2.
    seed : of all randomness.
    """

    n_frames: int = 300
    frame_size: int = 256
    pixel_size: float = 0.36
    diameters: tuple[float, ...] = (22.0, 18.0)
    tumbling: float = 2.0
    jump_rate: float = 0.005
    diffusion: float = 0.25
    drift: tuple[float, float] = (0.0, 0.0)
    graphene_angles: tuple[float, ...] = (3.0, 20.0)
    liquid_density: float = 0.2
    dose: float | None = 20.0
    voltage_kv: float = 300.0
    spherical_aberration_mm: float = -0.008
    defocus_range: tuple[float, float] = (-75.0, -45.0)
    focal_spread: float = 50.0
    b_factor: float = 0.8
    seed: int = 1


@dataclass(frozen=True)
class MovieTruth:
    """atoms : of each particle about its centre. rotations : (n, p, 3, 3). centres : (n, p, 2) of (x, y), angstrom from
    the first pixel's centre. defocus : (n,) angstrom. graphene : (sheets, 2, 2) reciprocal vectors, 1/angstrom."""

    atoms: tuple[ase.Atoms, ...]
    rotations: Tensor
    centres: Tensor
    defocus: Tensor
    graphene: Tensor


def draw_truth(settings: MovieSimulation, generator: torch.Generator, *, starts: Tensor | None = None) -> MovieTruth:
    """Particles, how they tumble and where they go.

    Parameters
    ----------
    starts : (p, 2) of (x, y), angstrom, the first centres; spread along the diagonal when None.

    Raises
    ------
    InputError : no frames, or particles that do not fit into the frame.
    """
    n, p, width = settings.n_frames, len(settings.diameters), settings.frame_size * settings.pixel_size
    if n < 1 or not p:
        raise InputError(f"{n} frames of {p} particles were asked for, expected at least one of each")
    if max(settings.diameters) + 10 > width:
        raise InputError(
            f"a particle of {max(settings.diameters):g} angstrom does not fit a frame of {width:g}: take larger frames"
        )
    atoms = tuple(platinum_ball(diameter) for diameter in settings.diameters)
    rotations = torch.empty(n, p, 3, 3, dtype=torch.float64)
    rotations[0] = random_rotations(p, generator=generator, dtype=torch.float64, device="cpu")
    centres = torch.empty(n, p, 2, dtype=torch.float64)
    apart = (torch.arange(p, dtype=torch.float64) + 0.65) / (p + 0.3) * width
    home = apart[:, None].expand(p, 2) if starts is None else starts.double()
    centres[0] = home
    drift = torch.tensor(settings.drift, dtype=torch.float64)
    for t in range(1, n):
        turn = torch.randn(p, 3, generator=generator, dtype=torch.float64)
        turn = turn * math.radians(settings.tumbling) / math.sqrt(3)
        axis = torch.randn(p, 3, generator=generator, dtype=torch.float64)
        jumps = torch.rand(p, 1, generator=generator, dtype=torch.float64) < settings.jump_rate
        turn = torch.where(jumps, axis / axis.norm(dim=1, keepdim=True) * math.radians(30), turn)
        rotations[t] = rotation_from_vector(turn) @ rotations[t - 1]
        step = settings.diffusion * torch.randn(p, 2, generator=generator, dtype=torch.float64)
        # a weak pull keeps a particle near its place, so that a long movie does not lose it
        centres[t] = centres[t - 1] + step - 0.02 * (centres[t - 1] - home - drift * (t - 1)) + drift
    low, high = settings.defocus_range
    defocus = low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)
    lattices = [_graphene_reciprocal(angle) for angle in settings.graphene_angles]
    return MovieTruth(atoms, rotations, centres, defocus, torch.stack(lattices) if lattices else torch.zeros(0, 2, 2))


def platinum_ball(diameter: float) -> ase.Atoms:
    """A ball of fcc platinum about the origin; ``diameter`` in angstrom."""
    repeats = math.ceil(diameter / 3.92) + 1
    block = bulk("Pt", "fcc", a=3.92, cubic=True).repeat(repeats)
    block.positions -= block.positions.mean(0)
    kept = block[np.linalg.norm(block.positions, axis=1) < diameter / 2]
    return ase.Atoms(kept.get_chemical_symbols(), positions=kept.positions - kept.positions.mean(0))


def _graphene_reciprocal(angle: float) -> Tensor:
    """(2, 2) g1 and g2, 60 degrees apart, of a sheet whose g1 lies ``angle`` degrees from x."""
    directions = torch.tensor([angle, angle + 60.0], dtype=torch.float64).deg2rad()
    return torch.stack((directions.cos(), directions.sin()), 1) / 2.13


def graphene_atoms(reciprocal: Tensor, width: float) -> Tensor:
    """Carbon atoms (n, 2) of a sheet that covers a square of ``width`` angstrom and 10 beyond, from the first pixel."""
    real = torch.linalg.inv(reciprocal).T  # rows a1, a2 with g_i a_j = delta_ij
    count = math.ceil(1.6 * (width + 20) / 2.13)
    index = torch.arange(-count, count + 1, dtype=torch.float64)
    i, j = torch.meshgrid(index, index, indexing="ij")
    cells = i.flatten()[:, None] * real[0] + j.flatten()[:, None] * real[1]
    atoms = torch.cat((cells + (real[0] + real[1]) / 3, cells - (real[0] + real[1]) / 3))
    return atoms[((atoms > -10) & (atoms < width + 10)).all(1)]


def simulate_movie(settings: MovieSimulation, truth: MovieTruth, generator: torch.Generator) -> Iterator[Tensor]:
    """The frames (y, x) one after the other, float32: counts, or intensities relative to the beam without a dose.

    Notes
    -----
    Sheets, liquid and particles add up to one phase; their defocus is the same. The field is padded by 12 angstrom on
    every side, so that neither sheets nor the fringes of the particles wrap around.
    """
    pad = math.ceil(12 / settings.pixel_size)
    size, pixel = settings.frame_size + 2 * pad, settings.pixel_size
    width, origin = settings.frame_size * pixel, (size // 2 - pad) * pixel
    carbon, platinum = (scattering_factor(symbol, size, pixel).float() for symbol in ("C", "Pt"))
    thermal = torch.tensor(settings.b_factor)
    strength = interaction_constant(torch.tensor([settings.voltage_kv]))
    sheets = [graphene_atoms(reciprocal, width) for reciprocal in truth.graphene]
    still = torch.cat(sheets) if sheets else torch.zeros(0, 2, dtype=torch.float64)
    drift = torch.tensor(settings.drift, dtype=torch.float64)
    fixed = torch.zeros(size, size)
    for t in range(settings.n_frames):
        if t % 50 == 0:
            n_liquid = round(settings.liquid_density * width * width)
            liquid = torch.rand(n_liquid, 2, generator=generator, dtype=torch.float64) * width
        if t % 50 == 0 or bool(drift.any()):
            everything = (torch.cat((still, liquid)) + drift * t).float() - origin
            fixed = projected_potential(everything, carbon, pixel_size=pixel, b_factors=thermal)
        potential = fixed
        for k, atoms in enumerate(truth.atoms):
            view = torch.from_numpy(atoms.positions) @ truth.rotations[t, k].T
            placed = (view[:, :2] + truth.centres[t, k]).float() - origin
            potential = potential + projected_potential(placed, platinum, pixel_size=pixel, b_factors=thermal)
        value = torch.ones(1)
        focus = value * float(truth.defocus[t])
        optics = Optics(
            value * settings.voltage_kv,
            value * settings.spherical_aberration_mm,
            value * 0,
            torch.stack((focus, focus, focus * 0), 1),
            value * settings.focal_spread,
            value * 0,
        )
        image = phase_object_image(potential[None] * strength, wave_transfer(optics, size, pixel))[0]
        image = image[pad : pad + settings.frame_size, pad : pad + settings.frame_size].contiguous()
        if settings.dose is not None:
            image = torch.poisson(image * settings.dose * pixel**2, generator=generator)
        yield image
