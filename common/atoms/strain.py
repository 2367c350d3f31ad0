"""Displacements from each grain's own lattice, and the strain tensor with its precision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from scipy.ndimage import correlate1d

from common.atoms.crystals import BCC, FCC, HCP
from common.atoms.geometry import Floats, Integers, finite_positions
from common.atoms.grains import Grains
from common.atoms.lattice import Booleans, Lattice
from common.data import InputError

COMPONENTS = ("xx", "yy", "zz", "yz", "xz", "xy")
_ROWS, _COLUMNS = np.array([0, 1, 2, 1, 0, 0]), np.array([0, 1, 2, 2, 2, 1])
_PAIRS = [(a, b) for a in range(3) for b in range(a, 3)]
_WIDER = 1.5  # kernel beside surfaces
_LOSS = 1.3  # of the variance, beside surfaces
_LEAST_ATOMS = 10.0  # under the kernel: fewer do not say how the displacement changes along three axes


@dataclass(frozen=True)
class Strain:
    """Strain of every atom against the lattice fitted to its grain; NaN where it cannot be said.

    displacements : (n, 3) angstrom, atom minus its site on the grain's lattice.
    smooth_displacements : (n, 3) angstrom, the same under the kernel.
    tensors : (n, 3, 3) symmetric, axes x, y, z of the atoms; positive = longer.
    sigmas : (n, 3, 3) standard deviation of each component.
    rotations : (n, 3) degrees about x, y, z: the lattice's local turn against the fitted one.
    principal_strains : (n, 3) ascending.
    principal_directions : (n, 3, 3) unit vectors in columns, in the order of the principal strains.
    kernel : angstrom, standard deviation of the Gaussian.
    position_sigma : (g,) angstrom along one axis, what the atoms of each grain scatter about the smooth displacements
        (or the root mean square of what was given).
    """

    displacements: Floats
    smooth_displacements: Floats
    tensors: Floats
    sigmas: Floats
    rotations: Floats
    principal_strains: Floats
    principal_directions: Floats
    kernel: float
    position_sigma: Floats

    def components(self) -> Floats:
        """(n, 6) xx, yy, zz, yz, xz, xy (tensor shear, half of the engineering shear)."""
        return np.asarray(self.tensors[:, _ROWS, _COLUMNS])

    def component_sigmas(self) -> Floats:
        """(n, 6) standard deviations of `components`."""
        return np.asarray(self.sigmas[:, _ROWS, _COLUMNS])


def measure_strain(atoms: Atoms, grains: Grains, *, kernel: float = 5.5) -> Strain:
    """Strain tensor at every atom of a grain, from the displacements of atoms of the same grain.

    Parameters
    ----------
    atoms : n atoms. Their array "position_sigma" (angstrom, (n,) or (n, 3)), where there is one, gives the precision;
        otherwise it comes from the scatter of the atoms about the smooth displacements, grain by grain.
    grains : of the same atoms (`find_grains`).
    kernel : angstrom, > 0, standard deviation of the Gaussian: 5.5 resolves about 1 nm [1]_.

    Raises
    ------
    InputError : the kernel is not positive, "position_sigma" has another shape, or an atom is not at a finite place.

    Notes
    -----
    At each atom a plane is fitted to the displacements of its grain, weighted by the Gaussian (normalised convolution
    of first order [2]_); its slopes are the displacement gradient, their symmetric part the strain, to first order in
    the displacement. Atoms across a twin or a grain boundary have no weight, so a boundary makes no strain. Where a
    surface cuts the kernel, a plane under a kernel 1.5 times as wide is mixed in, as much as keeps the variance below
    1.3 times that of the bulk: the resolution there is coarser instead of the noise larger. Sites are
    integers on an orthogonal grid, so all sums are separable convolutions: cost O(n). The sigmas are those of this
    linear fit: noise only, not what the kernel blurs. The mean change of volume of a grain is in its lattice constant,
    not in its strain.

    References
    ----------
    .. [1] R. Xu et al., Nature Materials 14, 1099 (2015).
    .. [2] H. Knutsson, C.-F. Westin, Proc. IEEE CVPR, 515 (1993).
    """
    if not (kernel > 0 and math.isfinite(kernel)):
        raise InputError(f"the strain kernel is {kernel}, expected a positive number of angstrom")
    positions = finite_positions(atoms, "the atom list", 0)
    n = len(positions)
    given = _given_variance(atoms)
    displacements = positions - grains.expected()
    smooth, gradients, sigmas = np.full((n, 3), np.nan), np.full((n, 3, 3), np.nan), np.full((n, 3, 3), np.nan)
    scatter = np.full(len(grains.lattices), np.nan)
    for number, lattice in enumerate(grains.lattices):
        rows = grains.members(number)
        variance = None if given is None else given[rows]
        fit = _fit_planes(grains.sites[rows], lattice, displacements[rows], variance, kernel)
        smooth[rows], gradients[rows], sigmas[rows], scatter[number] = fit
    tensors = (gradients + gradients.transpose(0, 2, 1)) / 2
    turn = (gradients - gradients.transpose(0, 2, 1)) / 2
    rotations = np.degrees(np.stack((turn[:, 2, 1], turn[:, 0, 2], turn[:, 1, 0]), axis=1))
    known = np.isfinite(tensors).all((1, 2))
    principal, directions = np.full((n, 3), np.nan), np.full((n, 3, 3), np.nan)
    principal[known], directions[known] = np.linalg.eigh(tensors[known])
    return Strain(displacements, smooth, tensors, sigmas, rotations, principal, directions, kernel, scatter)


def _given_variance(atoms: Atoms) -> Floats | None:
    """(n,) angstrom^2 along one axis, from the array "position_sigma"; None without it or where it is not finite."""
    if not atoms.has("position_sigma"):
        return None
    sigma = np.asarray(atoms.get_array("position_sigma"), dtype=np.float64)
    if sigma.shape not in ((len(atoms),), (len(atoms), 3)):
        raise InputError(f"position_sigma has shape {sigma.shape}, expected ({len(atoms)},) or ({len(atoms)}, 3)")
    variance = (sigma.reshape(len(atoms), -1) ** 2).mean(1)
    return variance if bool(np.isfinite(variance).all()) else None


def _fit_planes(
    sites: Integers, lattice: Lattice, displacements: Floats, variance: Floats | None, kernel: float
) -> tuple[Floats, Floats, Floats, float]:
    """Of a grain: smooth displacements (n, 3), gradients (n, 3, 3) of u_a along x_b, sigmas (n, 3, 3), scatter."""
    grid = _SiteGrid(sites, lattice.spacing)
    wide = _WIDER * kernel
    own, own_inverse, known = _plane(grid, displacements, kernel)
    broad, broad_inverse, also = _plane(grid, displacements, wide)
    unit = _covariance(grid, (own_inverse, kernel), (own_inverse, kernel), None)
    scatter = math.nan
    if variance is None and bool(known.any()):
        residual = ((displacements - own[:, :, 0])[known] ** 2).sum()
        freedom = (1 - 2 * own_inverse[known, 0, 0] + unit[known, 0, 0]).sum()
        scatter = math.sqrt(float(residual / max(3 * freedom, 1e-9)))
        variance = np.full(len(sites), scatter**2)
    elif variance is not None:
        scatter = math.sqrt(float(variance.mean()))
    else:
        variance = np.zeros(len(sites))
    broad_unit = _covariance(grid, (broad_inverse, wide), (broad_inverse, wide), None)
    share = _own_share(unit, broad_unit, _bulk_variance(lattice, kernel))[:, None, None]
    share[~also] = 1.0
    fit = share * own + (1 - share) * broad
    spread = share**2 * _covariance(grid, (own_inverse, kernel), (own_inverse, kernel), variance)
    spread += (1 - share) ** 2 * _covariance(grid, (broad_inverse, wide), (broad_inverse, wide), variance)
    mixed = _covariance(grid, (own_inverse, kernel), (broad_inverse, wide), variance)
    spread += share * (1 - share) * (mixed + mixed.transpose(0, 2, 1))
    turn = lattice.rotation
    gradients = fit[:, :, 1:] @ turn.T
    covariance = turn @ spread[:, 1:, 1:] @ turn.T
    diagonal = np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 0.0)
    sigmas = np.sqrt(diagonal[:, :, None] + diagonal[:, None]) / 2  # of (du_a/dx_b + du_b/dx_a) / 2
    sigmas[:, range(3), range(3)] = np.sqrt(diagonal)
    smooth = fit[:, :, 0]
    for values in (smooth, gradients, sigmas):
        values[~known] = np.nan
    return smooth, gradients, sigmas, scatter


def _plane(grid: _SiteGrid, displacements: Floats, width: float) -> tuple[Floats, Floats, Booleans]:
    """Planes (n, 3, 4): displacement and its slopes along the crystal axes; inverse normal matrices; where there are
    enough atoms for it."""
    x, n = grid.places, len(displacements)
    cross = (displacements[:, :, None] * x[:, None]).reshape(n, 9)
    sums = grid.blur(np.concatenate((grid.moments, displacements, cross), axis=1), width)
    normal, first = _normal_matrices(sums[:, :10], x), sums[:, 10:13]
    slopes = sums[:, 13:].reshape(n, 3, 3) - first[:, :, None] * x[:, None]
    extent = np.linalg.eigvalsh(normal[:, 1:, 1:])[:, 0] / sums[:, 0]
    known = (sums[:, 0] > _LEAST_ATOMS) & (extent > 1.0)  # angstrom^2: atoms of one layer have no slope across it
    inverse = np.zeros_like(normal)
    inverse[known] = np.linalg.inv(normal[known])
    fit = np.einsum("nij,naj->nai", inverse, np.concatenate((first[:, :, None], slopes), axis=2))
    return fit, inverse, known


def _covariance(
    grid: _SiteGrid, one: tuple[Floats, float], other: tuple[Floats, float], variance: Floats | None
) -> Floats:
    """(n, 4, 4) covariance of the planes of two kernels, each given by its inverse normal matrices and its width, for
    positions that scatter with the variance (n,), None: 1 along each axis."""
    moments = grid.moments if variance is None else grid.moments * variance[:, None]
    width = 1 / math.sqrt(1 / one[1] ** 2 + 1 / other[1] ** 2)  # of the product of both Gaussians
    return np.asarray(one[0] @ _normal_matrices(grid.blur(moments, width), grid.places) @ other[0])


def _bulk_variance(lattice: Lattice, kernel: float) -> float:
    """Variance of a slope far from any surface, for positions of variance 1."""
    sites = {FCC: 0.5, BCC: 0.25, HCP: 1 / 6}[lattice.structure]  # of the points of the grid that are sites
    density = sites / float(np.prod(lattice.spacing))
    return 1 / (16 * math.pi**1.5 * density * kernel**5)


def _own_share(own: Floats, broad: Floats, bulk: float) -> Floats:
    """(n,) weight of the narrow kernel that keeps the mean variance of the slopes below 1.3 times that of the bulk."""
    narrow, wide = (np.trace(c[:, 1:, 1:], axis1=1, axis2=2) / 3 for c in (own, broad))
    excess = np.maximum(narrow - wide, 1e-30)
    return np.sqrt(np.clip((_LOSS * bulk - wide) / excess, 0.0, 1.0))


def _normal_matrices(sums: Floats, x: Floats) -> Floats:
    """(n, 4, 4) sums of w z z' with z = (1, x_j - x_i), from sums of w times 1, x_j and products of x_j."""
    n = len(x)
    normal = np.empty((n, 4, 4))
    weight, mean = sums[:, 0], sums[:, 1:4]
    normal[:, 0, 0] = weight
    normal[:, 0, 1:] = normal[:, 1:, 0] = mean - weight[:, None] * x
    for column, (a, b) in enumerate(_PAIRS):
        value = sums[:, 4 + column] - mean[:, a] * x[:, b] - mean[:, b] * x[:, a] + weight * x[:, a] * x[:, b]
        normal[:, 1 + a, 1 + b] = normal[:, 1 + b, 1 + a] = value
    return normal


class _SiteGrid:
    """Sites of a grain on their grid, and Gaussian sums over them: one column after another, so that memory stays low.

    places : (n, 3) angstrom, crystal axes. moments : (n, 10) 1, places and their products.
    """

    def __init__(self, sites: Integers, spacing: Floats) -> None:
        self.index = tuple((sites - sites.min(0)).T)
        self.shape = tuple(np.ptp(sites, axis=0) + 1)
        self.places = x = sites * spacing - (sites * spacing).mean(0)
        self.moments = np.concatenate(
            (np.ones((len(x), 1)), x, np.stack([x[:, a] * x[:, b] for a, b in _PAIRS], axis=1)), axis=1
        )
        self.spacing = spacing

    def blur(self, values: Floats, width: float) -> Floats:
        """Sums (n, c) at each site of all sites' ``values`` (n, c) with weight exp(-r^2 / (2 width^2))."""
        result = np.empty_like(values)
        for column in range(values.shape[1]):
            field = np.zeros(self.shape)
            field[self.index] = values[:, column]
            for axis, step in enumerate(self.spacing):
                reach = min(math.ceil(4.5 * width / step), self.shape[axis])
                taps = np.exp(-((np.arange(-reach, reach + 1) * step / width) ** 2) / 2)
                field = correlate1d(field, taps, axis=axis, mode="constant")
            result[:, column] = field[self.index]
        return result
