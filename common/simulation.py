"""Images of known particles in known poses, so that what a reconstruction says can be held against the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
import torch
from torch import Tensor

from common.data import ImageStack, InputError, Optics, Poses
from common.extras import require_abtem
from common.fourier import resample_fourier
from common.image_formation import interaction_constant, phase_object_image, wave_transfer
from common.rotations import random_rotations
from common.scattering import projected_atoms, projected_potential, scattering_factor
from common.specimens import amorphous_carbon, gold_cluster

__all__ = ["Imaging", "SimulatedData", "amorphous_carbon", "gold_cluster", "multislice_images", "simulate_images"]

MODELS = ("projection", "phase_object", "multislice")


@dataclass(frozen=True)
class Imaging:
    """The microscope of a simulation.

    voltage_kv, spherical_aberration_mm, amplitude_contrast, focal_spread, convergence_mrad : as in `Optics`.
    defocus_range : angstrom, positive = underfocus; each image draws its own, uniformly.
    """

    voltage_kv: float = 300.0
    spherical_aberration_mm: float = -0.013
    amplitude_contrast: float = 0.0
    defocus_range: tuple[float, float] = (-110.0, -50.0)
    focal_spread: float = 50.0
    convergence_mrad: float = 0.0


@dataclass(frozen=True)
class SimulatedData:
    """Images with their truth: the poses and atoms that made them, and in ``stack.optics`` the true optics."""

    stack: ImageStack
    poses: Poses
    atoms: ase.Atoms


def _draw_optics(n: int, imaging: Imaging, generator: torch.Generator) -> Optics:
    low, high = imaging.defocus_range
    defocus = low + (high - low) * torch.rand(n, generator=generator, device=generator.device).cpu()

    def same(value: float) -> Tensor:
        return torch.full((n,), value)

    return Optics(
        voltage_kv=same(imaging.voltage_kv),
        spherical_aberration_mm=same(imaging.spherical_aberration_mm),
        amplitude_contrast=same(imaging.amplitude_contrast),
        defocus=torch.stack((defocus, defocus, torch.zeros(n)), 1),
        focal_spread=same(imaging.focal_spread),
        convergence_mrad=same(imaging.convergence_mrad),
    )


def _phase_object(atoms: ase.Atoms, views: Tensor, carbon: list[Tensor], data: ImageStack, b_factor: float) -> Tensor:
    """Phase-object images (n, d, d) of atoms in ``views`` (n, n_atoms, 3), float32."""
    d, pixel, optics = data.box_size, data.pixel_size, data.optics
    if optics is None:
        raise InputError("a phase object needs optics, expected one row per image")
    symbols = np.array(atoms.get_chemical_symbols())
    thermal = torch.tensor(b_factor)
    potential = torch.zeros_like(data.images)
    for symbol in np.unique(symbols):
        of_species = views[:, torch.from_numpy(symbols == symbol), :2].float()
        factor = scattering_factor(str(symbol), d, pixel).float()
        potential += projected_potential(of_species, factor, pixel_size=pixel, b_factors=thermal)
    if carbon:
        factor = scattering_factor("C", d, pixel).float()
        below = torch.stack([slab[:, :2] for slab in carbon]).float()
        potential += projected_potential(below, factor, pixel_size=pixel, b_factors=thermal)
    phase = potential * interaction_constant(optics.voltage_kv)[:, None, None]
    return phase_object_image(phase, wave_transfer(optics, d, pixel), amplitude_contrast=optics.amplitude_contrast)


def multislice_images(
    symbols: list[str],
    views: Tensor,
    optics: Optics,
    *,
    box_size: int,
    pixel_size: float,
    b_factor: float = 0.8,
    carbon: list[Tensor] | None = None,
    oversampling: int = 2,
    slice_thickness: float = 1.0,
) -> Tensor:
    """Images by multislice with abTEM (an extra: ``pip install nanospr[multislice]``), the check of the phase object.

    Parameters
    ----------
    symbols, views : n_atoms chemical symbols; (n, n_atoms, 3) positions in each view, (x, y) from pixel ``d // 2``,
        beam along +z, angstrom; the defocus counts from z = 0.
    optics : n rows; without astigmatism, source size and amplitude contrast.
    b_factor : angstrom^2, damps every atom's potential.
    carbon : one slab for each image, `amorphous_carbon`, put behind the particle.
    oversampling : grid points per pixel along each axis.
    slice_thickness : angstrom.

    Returns
    -------
    (n, d, d) intensities relative to the incoming beam, float32.

    Raises
    ------
    InputError : abTEM is not installed.
    """
    require_abtem("multislice")
    import abtem

    width, fine = box_size * pixel_size, box_size * oversampling
    k = np.fft.fftfreq(fine, width / fine)
    damping = np.exp(-b_factor / 4 * (k[:, None] ** 2 + k**2))
    origin = np.array([box_size // 2 * pixel_size] * 2)
    images = []
    for i, view in enumerate(views.double().numpy()):
        species, positions = list(symbols), view
        if carbon:
            behind = carbon[i].double().numpy() + np.array([0.0, 0.0, view[:, 2].max() + 2.0])
            species, positions = species + ["C"] * len(behind), np.concatenate((view, behind))
        lowest, highest = positions[:, 2].min() - 3.0, positions[:, 2].max() + 3.0
        placed = np.concatenate(((positions[:, :2] + origin) % width, positions[:, 2:] - lowest), axis=1)
        cell = ase.Atoms(species, positions=placed, cell=[width, width, highest - lowest], pbc=True)
        with abtem.config.set({"diagnostics.progress_bar": False}):
            potential = abtem.Potential(
                cell, gpts=fine, slice_thickness=slice_thickness, projection="infinite", parametrization="lobato"
            )
            slices = potential.build(lazy=False)
            blurred = np.fft.ifft2(np.fft.fft2(slices.array) * damping).real.astype(slices.array.dtype)
            slices = abtem.PotentialArray(blurred, slice_thickness=slices.slice_thickness, extent=slices.extent)
            lens = abtem.CTF(
                energy=float(optics.voltage_kv[i]) * 1e3,
                defocus=float(optics.defocus[i, 0]) + highest,  # abTEM counts from the exit plane
                Cs=float(optics.spherical_aberration_mm[i]) * 1e7,
                focal_spread=float(optics.focal_spread[i]) * math.sqrt(2),
            )
            wave: Any = abtem.PlaneWave(energy=float(optics.voltage_kv[i]) * 1e3).multislice(slices, lazy=False)
            intensity = wave.apply_ctf(lens).intensity().array
        # abTEM's first axis is x, and its origin is the first grid point
        images.append(torch.from_numpy(np.ascontiguousarray(np.asarray(intensity, dtype=np.float64).T)))
    return torch.stack([_coarser(image, box_size) for image in images]).float()


def _coarser(image: Tensor, box_size: int) -> Tensor:
    """Band-limit a fine image to ``box_size``, with the first sample staying the first sample."""
    fine = image.shape[-1]
    rolled = torch.roll(image, (fine // 2, fine // 2), (-2, -1))
    return torch.roll(resample_fourier(rolled, box_size, 2), (-(box_size // 2), -(box_size // 2)), (-2, -1))


def _add_white_noise(clean: Tensor, centres: Tensor, radius: float, snr: float, generator: torch.Generator) -> Tensor:
    """White noise with a variance of the signal's variance inside each particle's disc, pixels, over ``snr``."""
    axis = torch.arange(clean.shape[-1], dtype=clean.dtype) - clean.shape[-1] // 2
    dy2 = (axis - centres[:, 1, None]) ** 2
    dx2 = (axis - centres[:, 0, None]) ** 2
    inside = clean[(dy2[:, :, None] + dx2[:, None, :]) < radius**2]
    sigma = math.sqrt(float(inside.double().var()) / snr)
    return clean + sigma * torch.randn(clean.shape, generator=generator, device=generator.device).to(clean.device)


def simulate_images(
    atoms: ase.Atoms,
    n_images: int,
    *,
    box_size: int = 80,
    pixel_size: float = 0.35,
    model: str = "projection",
    snr: float | None = None,
    dose: float | None = None,
    imaging: Imaging | None = None,
    shift_sigma: float = 0.7,
    atom_sigma: float = 0.4,
    b_factor: float = 0.8,
    carbon_thickness: float = 0.0,
    batch_size: int = 64,
    generator: torch.Generator,
) -> SimulatedData:
    """Simulate images of one particle in random orientations.

    Parameters
    ----------
    atoms : the particle; it is moved to its centre of geometry.
    box_size, pixel_size : pixels; angstrom.
    model : "projection" (Gaussian atoms, summed along the beam; no optics), "phase_object", or "multislice" (abTEM).
    snr : of a projection: variance of the signal inside the particle's disc over variance of the white noise per pixel;
        None for no noise. The disc reaches 3 ``atom_sigma`` past the outermost atom.
    dose : electrons/angstrom^2 of the other models, as Poisson counts; None for intensities relative to the beam.
    imaging : the microscope of the other models.
    shift_sigma : rms of the particle's position on each axis, angstrom.
    atom_sigma : width of a projection's atoms, angstrom; their peak is 1.
    b_factor : of the other models' atoms, angstrom^2; ``8 pi^2 <u^2>``.
    carbon_thickness : angstrom of amorphous carbon behind the particle, a new film for each image; 0 for none.
    generator : all randomness.

    Returns
    -------
    The images (float32) with their poses, optics (None for projections) and atoms.

    Raises
    ------
    InputError : an unknown model, noise of the other model's kind, a value out of range, a particle beyond the box.
    """
    _check_request(atoms, n_images, box_size, pixel_size, model, snr, dose)
    centred = atoms.copy()
    centred.positions -= centred.positions.mean(0)
    rotations = random_rotations(n_images, generator=generator, dtype=torch.float64, device="cpu")
    shifts = torch.randn(n_images, 2, generator=generator, dtype=torch.float64, device=generator.device).cpu()
    poses = Poses(rotations.float(), (shifts * shift_sigma).float())
    views = torch.from_numpy(centred.positions) @ poses.rotations.double().transpose(1, 2)
    views[..., :2] += poses.shifts[:, None].double()
    optics = None if model == "projection" else _draw_optics(n_images, imaging or Imaging(), generator)

    def render(part: slice) -> Tensor:
        if optics is None:
            heights = torch.full((len(centred), 1), 2 * math.pi * atom_sigma**2)
            sigma = torch.tensor(atom_sigma)
            xy = views[part, :, :2].float()
            return projected_atoms(xy, heights, sigma, box_size=box_size, pixel_size=pixel_size)
        some, count = optics[torch.arange(n_images)[part]], len(views[part])
        carbon = []
        if carbon_thickness > 0:
            width = box_size * pixel_size
            carbon = [amorphous_carbon(width, carbon_thickness, generator=generator) for _ in range(count)]
        if model == "phase_object":
            empty = ImageStack(torch.zeros(count, box_size, box_size), pixel_size, some)
            return _phase_object(centred, views[part], carbon, empty, b_factor)
        return multislice_images(
            centred.get_chemical_symbols(),
            views[part],
            some,
            box_size=box_size,
            pixel_size=pixel_size,
            b_factor=b_factor,
            carbon=carbon,
        )

    clean = _in_batches(render, n_images, batch_size)
    if snr is not None:
        reach = float(np.linalg.norm(centred.positions, axis=1).max()) + 3 * atom_sigma
        centres = poses.shifts / pixel_size
        clean = _add_white_noise(clean, centres, reach / pixel_size, snr, generator)
    if dose is not None:
        expected = (clean * (dose * pixel_size**2)).to(generator.device)
        clean = torch.poisson(expected, generator=generator).cpu()
    return SimulatedData(ImageStack(clean, pixel_size, optics), poses, centred)


def _in_batches(render: Callable[[slice], Tensor], n: int, batch_size: int) -> Tensor:
    return torch.cat([render(slice(start, min(start + batch_size, n))) for start in range(0, n, batch_size)])


def _check_request(
    atoms: ase.Atoms, n_images: int, box_size: int, pixel_size: float, model: str, snr: float | None, dose: float | None
) -> None:
    if model not in MODELS:
        raise InputError(f"the image model is {model!r}, expected one of {', '.join(MODELS)}")
    if len(atoms) == 0 or n_images < 1:
        raise InputError(f"{n_images} images of {len(atoms)} atoms were asked for, expected at least one of each")
    for name, value in (("SNR", snr), ("dose", dose), ("pixel size", pixel_size)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"the {name} is {value}, expected a positive number")
    if snr is not None and model != "projection":
        raise InputError(f"an SNR of {snr:g} was given for the model {model}, expected a dose: its noise is counts")
    if dose is not None and model == "projection":
        raise InputError(f"a dose of {dose:g} was given for the model projection, expected an SNR: it has no counts")
    reach = float(np.linalg.norm(atoms.positions - atoms.positions.mean(0), axis=1).max())
    if 2 * reach > box_size * pixel_size:
        raise InputError(
            f"the particle is {2 * reach:.1f} angstrom across, expected less than the box of {box_size} pixels of "
            f"{pixel_size:g} angstrom: take a larger box"
        )
