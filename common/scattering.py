"""Atoms as the beam sees them: scattering factors and the potential projected along the beam."""

from __future__ import annotations

import math

import gemmi
import torch
from torch import Tensor

from common.data import InputError
from common.fourier import rfft_frequencies_2d

# h^2 / (2 pi m0 e): electron scattering factor (angstrom) to transform of the potential (V angstrom^3)
POTENTIAL_PER_SCATTERING_FACTOR = 47.87764


def atom_potential(symbol: str) -> tuple[Tensor, Tensor]:
    """Projected potential of one atom as a sum of five Gaussians.

    Parameters
    ----------
    symbol : chemical symbol, H to Cf.

    Returns
    -------
    strengths (5,), V angstrom x angstrom^2 : the integral of each Gaussian over the plane.
    b_factors (5,), angstrom^2 : its width; add the atom's own B factor. ``sigma^2 = b / (8 pi^2)``.

    Raises
    ------
    InputError : not an element that the table knows.

    Notes
    -----
    Elastic scattering factors ``f(k) = sum a exp(-b k^2 / 4)`` of neutral atoms [1]_, table 1 (International Tables C,
    table 4.3.2.2, from gemmi), valid for k < 4/angstrom; the transform of the potential is 47.878 f.

    References
    ----------
    .. [1] L.-M. Peng, G. Ren, S. L. Dudarev, M. J. Whelan, Acta Cryst. A52, 257 (1996). doi:10.1107/S0108767395014371
    """
    element = gemmi.Element(symbol)
    if element.atomic_number == 0 or element.c4322 is None:
        raise InputError(f"the element is {symbol!r}, expected a chemical symbol from H to Cf, e.g. Au")
    strengths = torch.tensor(element.c4322.a, dtype=torch.float64) * POTENTIAL_PER_SCATTERING_FACTOR
    return strengths, torch.tensor(element.c4322.b, dtype=torch.float64)


def scattering_factor(symbol: str, box_size: int, pixel_size: float) -> Tensor:
    """Transform of an atom's projected potential on the grid of ``rfft2``: (d, d // 2 + 1), V angstrom^3, float64."""
    strengths, b_factors = atom_potential(symbol)
    kx, ky = rfft_frequencies_2d(box_size, pixel_size, dtype=torch.float64)
    return (strengths * torch.exp(-b_factors * (kx**2 + ky**2)[..., None] / 4)).sum(-1)


def projected_potential(
    positions: Tensor,
    scattering: Tensor,
    *,
    pixel_size: float,
    occupancies: Tensor | None = None,
    b_factors: Tensor | None = None,
) -> Tensor:
    """Projected potential of atoms of one species, band-limited by the grid and so exact however sharp the atoms are.

    Parameters
    ----------
    positions : (..., n_atoms, 2) of the atoms in the view, (x, y) from pixel ``d // 2``, angstrom.
    scattering : (d, d // 2 + 1) transform of one atom, `scattering_factor`, in the dtype of the positions.
    occupancies : (n_atoms,) strength of each atom; 1 when None.
    b_factors : (n_atoms,) or scalar, angstrom^2, ``8 pi^2 <u^2>`` on each axis; 0 when None.

    Returns
    -------
    (..., d, d) in units of the scattering per angstrom^2: V angstrom. Times `interaction_constant`: radian.

    Notes
    -----
    The phase factors and the Debye-Waller factor are separable, so the sum over atoms is one matrix product per view.
    Periodic: atoms outside the box come in on the other side.
    """
    d = scattering.shape[-2]
    ky = torch.fft.fftfreq(d, pixel_size, dtype=positions.dtype, device=positions.device)
    kx = torch.fft.rfftfreq(d, pixel_size, dtype=positions.dtype, device=positions.device)
    centred = positions + (d // 2) * pixel_size
    angle_x = -2 * math.pi * centred[..., :, 0, None] * kx
    angle_y = -2 * math.pi * centred[..., :, 1, None] * ky
    weight_x, weight_y = torch.ones_like(angle_x), torch.ones_like(angle_y)
    if b_factors is not None:
        damping = b_factors[..., None] / 4
        weight_x, weight_y = weight_x * torch.exp(-damping * kx**2), weight_y * torch.exp(-damping * ky**2)
    if occupancies is not None:
        weight_x = weight_x * occupancies[..., None]
    # explicit real parts: torch.polar refuses the negative weights that a refinement may pass through
    factor_x = torch.complex(weight_x * torch.cos(angle_x), weight_x * torch.sin(angle_x))
    factor_y = torch.complex(weight_y * torch.cos(angle_y), weight_y * torch.sin(angle_y))
    structure_factor = factor_y.transpose(-1, -2) @ factor_x
    return torch.fft.irfft2(structure_factor * scattering, s=(d, d)) / pixel_size**2


def projected_atoms(positions: Tensor, heights: Tensor, sigmas: Tensor, *, box_size: int, pixel_size: float) -> Tensor:
    """Atoms as sums of Gaussians, drawn at the pixel centres.

    Parameters
    ----------
    positions : (..., n_atoms, 2) of the atoms in the view, (x, y) from pixel ``box_size // 2``, angstrom.
    heights : (n_atoms, n_gauss) integral of each Gaussian over the plane (intensity x angstrom^2).
    sigmas : broadcastable to (n_atoms, n_gauss), angstrom; above about 0.8 pixel, below it the grid aliases
        (`projected_potential` does not).

    Returns
    -------
    (..., d, d) intensities.
    """
    grid = (torch.arange(box_size, dtype=positions.dtype, device=positions.device) - box_size // 2) * pixel_size
    sigmas = sigmas.expand_as(heights)
    offset = grid - positions[..., None, None]  # (..., n_atoms, 2, 1, d)
    profile = torch.exp(-((offset / sigmas[:, None, :, None]) ** 2) / 2)  # (..., n_atoms, 2, n_gauss, d)
    bx, by = profile[..., 0, :, :].flatten(-3, -2), profile[..., 1, :, :].flatten(-3, -2)
    peak = (heights / (2 * math.pi * sigmas**2)).reshape(-1, 1)
    return (by * peak).transpose(-1, -2) @ bx
