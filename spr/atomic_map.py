"""Matter is made of atoms: the atoms at the maxima of a map as a map of their own.

A map made from images in partly wrong orientations is a mixture of differently turned particles, each of which explains
its own images. Its highest maxima, drawn as atoms, are those that most images agree on; and a map of atoms says what
images in other orientations look like, where the map itself is empty because nobody has looked from there. In
crystallography this is the real-space half of dual-space structure solution [1]_.

References
----------
.. [1] Miller et al., "On the application of the minimal principle to solve unknown structures",
   Science 259, 1430 (1993). doi:10.1126/science.8451639
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.atoms.peaks import apart, maxima
from common.fourier import resample_fourier, rfft_shell_indices, shell_sum

_NEAREST = 0.75  # of a bond; no two atoms are closer
_HIGHEST = 1.5  # of the usual atom; what is higher is a sum of many wrong ones
_USUAL = 2 / 3  # of the atoms, the higher ones, whose median is the usual height
ATOM_WIDTH = 0.35  # angstrom, rms, of the atoms drawn; the map's own width is restored shell by shell


def atomic_map(values: Tensor, voxel_size: float, *, radius: float, bond: float) -> Tensor:
    """The map of the atoms at the maxima of a map.

    Parameters
    ----------
    values : (d, d, d), atoms positive, resolved to better than a bond.
    radius : angstrom; atoms lie within it, and there are no more of them than fit densely packed.
    bond : angstrom, distance of nearest neighbours.

    Returns
    -------
    (d, d, d), with the amplitude that fits ``values`` best in every shell; ``values`` as they are without any maximum.
    """
    d = values.shape[-1]
    places, heights = atoms_of(values, voxel_size, radius=radius, bond=bond)
    if not len(places):
        return values
    usual = heights[: max(1, round(_USUAL * len(heights)))].median()
    drawn = draw_atoms(places, heights.clamp(max=_HIGHEST * float(usual)), d, voxel_size, ATOM_WIDTH)
    return like_in_shells(drawn, values)


def atoms_of(values: Tensor, voxel_size: float, *, radius: float, bond: float) -> tuple[Tensor, Tensor]:
    """Positions (k, 3), angstrom from the middle voxel, and heights (k,) of a map's maxima, the highest first."""
    d = values.shape[-1]
    fine = resample_fourier(values, 2 * d, 3)
    axis = torch.arange(-d, d, device=values.device) * (voxel_size / 2)
    within = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < radius**2
    places, heights = maxima(fine, within)
    places = places * (voxel_size / 2)
    densest = math.floor(4 / 3 * math.pi * radius**3 * math.sqrt(2) / bond**3)
    chosen = apart(places, heights, _NEAREST * bond)[:densest]
    return torch.from_numpy(places[chosen]).to(values), torch.from_numpy(heights[chosen]).to(values)


def draw_atoms(places: Tensor, heights: Tensor, box_size: int, voxel_size: float, width: float) -> Tensor:
    """(d, d, d) of Gaussians: places (k, 3) of (x, y, z), angstrom; heights (k,); width, angstrom rms."""
    axis = (torch.arange(box_size, device=places.device) - box_size // 2) * voxel_size
    x, y, z = torch.exp(-((axis - places.T[..., None]) ** 2) / (2 * width**2))
    return torch.einsum("k,kz,ky,kx->zyx", heights, z, y, x)


def like_in_shells(values: Tensor, wanted: Tensor) -> Tensor:
    """A map (d, d, d) with each shell scaled to fit ``wanted`` best, never inverted."""
    d = values.shape[-1]
    transform, other = torch.fft.rfftn(values), torch.fft.rfftn(wanted)
    shell = rfft_shell_indices(d, 3, device=values.device)
    count = int(shell.max()) + 1
    match, power = (shell_sum(x, shell, count) for x in ((transform.conj() * other).real, transform.abs().square()))
    scale = (match / power.clamp(min=1e-30)).clamp(min=0)
    return torch.fft.irfftn(transform * scale[shell], s=values.shape)
