"""What a refinement of atoms against images returns, and where one starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from scipy.optimize import least_squares
from torch import Tensor

from common.atoms.likelihood import Measurement, Parameters, batches, expose_views, views_of
from common.data import ImageStack, InputError, Poses
from common.image_formation import atom_potential


@dataclass(frozen=True)
class AtomicModel:
    """Atoms, poses and imaging conditions that explain a stack of images.

    symbols : (n,) chemical symbols, "X" where unknown.
    parameters : everything refined, float64 (`common.atoms.likelihood.Parameters`).
    weights : (m,) in [0, 1], of each image; 0 for images that no pose explains.
    log_likelihood : (m,) nats that each image gained over no particle at all.
    expected : (m,) nats that the model would gain on an image made by it with the usual contrast, half that image's
        power.
    correlation : (m,) of each whitened image with its model, within the band.
    covariance : (3 n, 3 n) of the positions, angstrom^2, rigid motions left out; None before `fisher`.
    position_sigma : (n,) angstrom, per axis (rms over the three); None before `fisher`.
    cramer_rao_pm : rms 3D error that the best possible method would make on these images, pm; None before `fisher`.
    """

    symbols: tuple[str, ...]
    parameters: Parameters
    weights: Tensor
    log_likelihood: Tensor
    expected: Tensor
    correlation: Tensor
    covariance: Tensor | None = None
    position_sigma: Tensor | None = None
    cramer_rao_pm: float | None = None

    @property
    def positions(self) -> Tensor:
        return self.parameters.positions

    @property
    def heights(self) -> Tensor:
        return self.parameters.heights

    @property
    def b_factors(self) -> Tensor:
        """(n,) angstrom^2, of the mean square width of each atom's image, ``8 pi^2 <u^2>`` on each axis."""
        p = self.parameters
        return p.b_factors + 8 * math.pi**2 * (p.fractions * p.widths**2).sum()

    @property
    def poses(self) -> Poses:
        return Poses(self.parameters.rotations, self.parameters.shifts)

    @property
    def gains(self) -> Tensor:
        """(m,) contrast of each image relative to the vacuum level's prediction."""
        return torch.exp(self.parameters.gains + self.parameters.contrast)

    @property
    def defocus_offsets(self) -> Tensor:
        """(m,) angstrom, to be added to the defocus of the file."""
        return self.parameters.defocus + self.parameters.defocus_shift

    def to_ase(self) -> Atoms:
        """The atoms with per-atom arrays "peak_height", "b_factor" and, after `fisher`, "position_sigma"."""
        atoms = Atoms(list(self.symbols), positions=self.positions.cpu().numpy())
        atoms.set_array("peak_height", self.heights.cpu().numpy())
        atoms.set_array("b_factor", self.b_factors.cpu().numpy())
        if self.position_sigma is not None:
            atoms.set_array("position_sigma", self.position_sigma.cpu().numpy())
        return atoms


def atom_shape(
    symbol: str, *, b_factor: float = 0.8, limit: float = 1.2
) -> tuple[tuple[float, float], tuple[float, float], float]:
    """Two Gaussians that stand for an atom's projected potential below ``limit`` (1/angstrom).

    Parameters
    ----------
    symbol : chemical symbol; "X" is taken as gold.
    b_factor : angstrom^2, of its thermal motion.

    Returns
    -------
    Standard deviations (angstrom), their shares (sum 1), and the integral of the potential, V angstrom^3.
    """
    strengths, widths = (x.numpy() for x in atom_potential("Au" if symbol == "X" else symbol))
    q = np.linspace(0, limit, 61)
    wanted = (strengths * np.exp(-(widths + b_factor) * q[:, None] ** 2 / 4)).sum(1) / strengths.sum()

    def misfit(p: np.ndarray) -> np.ndarray:
        share = 1 / (1 + np.exp(-p[2]))
        gauss = np.exp(-2 * (np.pi * np.exp(p[:2]) * q[:, None]) ** 2)
        return ((1 - share) * gauss[:, 0] + share * gauss[:, 1] - wanted) * np.sqrt(q + 0.05)

    found = least_squares(misfit, [math.log(0.22), math.log(0.58), 0.0]).x
    share = 1 / (1 + math.exp(-found[2]))
    return (math.exp(found[0]), math.exp(found[1])), (1 - share, share), float(strengths.sum())


def first_parameters(
    stack: ImageStack,
    atoms: Atoms,
    poses: Poses,
    *,
    widths: tuple[float, ...],
    fractions: tuple[float, ...],
    focal_spread: float,
) -> Parameters:
    """Parameters from a list of atoms and poses; heights all 1, to be scaled.

    Raises
    ------
    InputError : no atoms, or another number of poses than of images.
    """
    if len(atoms) == 0:
        raise InputError(
            "the atom list is empty, expected at least one atom to refine: trace the map with a lower threshold"
        )
    if len(poses) != len(stack):
        raise InputError(f"{len(poses)} poses for {len(stack)} images, expected one each")
    device = stack.images.device
    positions = torch.as_tensor(atoms.get_positions(), dtype=torch.float64, device=device)
    if not bool(torch.isfinite(positions).all()):
        row = int(torch.nonzero(~torch.isfinite(positions).all(1))[0]) + 1
        raise InputError(f"atom {row} is at {positions[row - 1].tolist()}, expected finite coordinates in angstrom")
    n, m = len(positions), len(stack)
    if not widths:
        widths, fractions = (0.4,), (1.0,)
        if stack.optics is not None:
            symbols = [s for s in atoms.get_chemical_symbols() if s != "X"] or ["X"]
            widths, fractions, _ = atom_shape(max(sorted(set(symbols)), key=symbols.count))
    if stack.optics is not None and float(stack.optics.focal_spread.min()) > 0:
        focal_spread = float(stack.optics.focal_spread.double().mean())
    zero, shares = positions.new_zeros(()), positions.new_tensor(fractions)
    return Parameters(
        positions,
        positions.new_ones(n),
        positions.new_zeros(n),
        positions.new_tensor(widths),
        shares / shares.sum(),
        zero + focal_spread,
        zero,
        zero,
        poses.rotations.double().to(device),
        poses.shifts.double().to(device),
        positions.new_zeros(m),
        positions.new_zeros(m),
    )


def linear_scale(parameters: Parameters, data: Measurement, batch_size: int) -> float:
    """The factor that fits the model images to the measured ones best."""
    match = power = 0.0
    for batch in batches(len(data), batch_size, data.level.device):
        model = expose_views(parameters, views_of(parameters)[batch], data[batch]).model
        match += float((model.conj() * data.spectra[batch]).real.sum(dtype=torch.float64))
        power += float((model.real**2 + model.imag**2).sum(dtype=torch.float64))
    return match / max(power, 1e-30)


def scale_heights(parameters: Parameters, data: Measurement, batch_size: int) -> Parameters:
    """Common height by linear least squares; again from there for a phase object, which is not linear."""
    if data.optics is not None:
        parameters = replace(parameters, heights=parameters.heights * 0.3)
    if not data.vacuum_known:
        factor = max(linear_scale(parameters, data, batch_size), 1e-6)
        return replace(parameters, contrast=parameters.contrast + math.log(factor))
    for _ in range(3 if data.optics is not None else 1):
        factor = min(max(linear_scale(parameters, data, batch_size), 0.1 if data.optics is not None else 1e-6), 1e6)
        parameters = replace(parameters, heights=parameters.heights * factor)
    return parameters


def evaluate(
    symbols: tuple[str, ...], parameters: Parameters, data: Measurement, weights: Tensor, batch_size: int
) -> AtomicModel:
    """The model with the likelihood and correlation of every image."""
    gained, expected, correlation = [], [], []
    for batch in batches(len(data), batch_size, data.level.device):
        part = data[batch]
        model = expose_views(parameters, views_of(parameters)[batch], part).model
        match = (model.conj() * part.spectra).real.double().sum(1)
        power = (model.real.double() ** 2 + model.imag.double() ** 2).sum(1)
        gained.append(match - power / 2)
        expected.append(power / 2 * torch.exp(-2 * parameters.gains[batch]))
        correlation.append(match / torch.sqrt(power * part.power).clamp(min=1e-30))
    return AtomicModel(symbols, parameters, weights, torch.cat(gained), torch.cat(expected), torch.cat(correlation))
