"""A map as identical atoms: ``F(k) = T(|k|) sum_j h_j exp(-2 pi i k r_j) + noise`` within a band.

The atom's transfer T and the noise spectrum are measured shell by shell from the map itself, so that missing low
frequencies, rings around the atoms and coloured noise are part of the model and not of the answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import bmat, coo_matrix, csr_matrix, diags
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree
from torch import Tensor

from common.data import Volume

Floats = NDArray[np.float64]
_TWO_PI = 2 * math.pi
_ATOMS_AT_ONCE = 256


@dataclass(frozen=True)
class BandTransform:
    """The transform of a map within a sphere, kx >= 0, origin at the centre voxel.

    values : (2 m + 1, 2 m + 1, m + 1) complex, indexed (kz, ky, kx).
    weight : how many coefficients each entry stands for (2, or 1 at kx = 0); 0 outside the band and at k = 0.
    shell : nearest shell, 0 ... m; shell s lies at s / box.
    box : angstrom, edge of the map.
    """

    values: Tensor
    weight: Tensor
    shell: Tensor
    box: float

    @property
    def reach(self) -> int:
        return self.values.shape[2] - 1

    @property
    def finest(self) -> float:
        """Finest spacing in the band, angstrom."""
        return self.box / self.reach

    def frequency(self) -> Tensor:
        """(2 m + 1,) 1/angstrom, ascending."""
        return torch.arange(-self.reach, self.reach + 1, dtype=self.weight.dtype, device=self.weight.device) / self.box

    def shell_sum(self, values: Tensor) -> Tensor:
        """Sum over the coefficients of each shell, (m + 1,)."""
        total = values.new_zeros(self.reach + 1)
        return total.index_add_(0, self.shell.reshape(-1), (values * self.weight).reshape(-1))


@dataclass(frozen=True)
class MapModel:
    """Atoms and what they look like in the map.

    positions : (n, 3), (x, y, z), angstrom from the centre voxel.
    heights : (n,) median 1.
    transfer : (m + 1,) T of the atom with height 1, by shell.
    noise : (m + 1,) mean |F|^2 of what the atoms leave, by shell.
    """

    positions: Floats
    heights: Floats
    transfer: Tensor
    noise: Tensor


def band_transform(volume: Volume, resolution: float | None = None) -> BandTransform:
    """Transform of a map up to ``1 / resolution`` (angstrom), or up to where it holds anything, at most Nyquist."""
    n, box = volume.box_size, volume.box_size * volume.voxel_size
    full = torch.fft.fftshift(torch.fft.rfftn(torch.fft.ifftshift(volume.values.double())), dim=(0, 1))
    reach = (n - 1) // 2
    if resolution is not None:
        reach = min(reach, max(2, math.floor(box / resolution)))

    def crop(m: int) -> BandTransform:
        values = full[n // 2 - m : n // 2 + m + 1, n // 2 - m : n // 2 + m + 1, : m + 1]
        k = torch.arange(-m, m + 1, device=values.device).double()
        radius = torch.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, m:] ** 2)
        inside = (radius <= m + 1e-9) & (radius > 0)
        weight = inside * (1.0 + (k[m:] > 0).double())
        return BandTransform(values, weight, radius.round().long().clamp(max=m), box)

    band = crop(reach)
    power = band.shell_sum(band.values.abs() ** 2) / band.shell_sum(torch.ones_like(band.weight)).clamp(min=1)
    held = torch.nonzero(power > 1e-6 * power[1:].max()).max()
    return crop(max(2, int(held))) if int(held) < reach else band


def structure_factor(band: BandTransform, positions: Floats, heights: Floats) -> Tensor:
    """``sum_j h_j exp(-2 pi i k r_j)`` on the coefficients of the band."""
    total = torch.zeros_like(band.values).reshape(band.values.shape[0], -1)
    for start in range(0, len(positions), _ATOMS_AT_ONCE):
        part = slice(start, start + _ATOMS_AT_ONCE)
        ex, ey, ez = _waves(band, positions[part])
        h = torch.as_tensor(heights[part], device=ez.device)
        plane = (ey.conj()[:, :, None] * ex.conj()[:, None, :]).reshape(len(h), -1)
        total += (ez.conj() * h[:, None]).T @ plane
    return total.reshape(band.values.shape)


def value_and_gradient(band: BandTransform, values: Tensor, positions: Floats) -> tuple[Floats, Floats]:
    """``g(r) = sum_k values(k) exp(2 pi i k r)`` at each position, (n,), and its gradient, (n, 3)."""
    weighted = values * band.weight
    k = band.frequency()
    results, gradients = [], []
    for start in range(0, len(positions), _ATOMS_AT_ONCE):
        ex, ey, ez = _waves(band, positions[start : start + _ATOMS_AT_ONCE])
        both = torch.cat((ez, ez * (_TWO_PI * 1j * k)))
        planes = (both @ weighted.reshape(weighted.shape[0], -1)).reshape(2, len(ez), *weighted.shape[1:])
        rows = torch.einsum("qnyx,ny->qnx", planes, ey)
        rows_y = torch.einsum("nyx,ny->nx", planes[0], ey * (_TWO_PI * 1j * k))
        results.append((rows[0] * ex).sum(1).real)
        kx = _TWO_PI * 1j * k[band.reach :]
        gradients.append(
            torch.stack(((rows[0] * ex * kx).sum(1).real, (rows_y * ex).sum(1).real, (rows[1] * ex).sum(1).real), dim=1)
        )
    if not results:
        return np.empty(0), np.empty((0, 3))
    return torch.cat(results).cpu().numpy(), torch.cat(gradients).cpu().numpy()


def synthesize(band: BandTransform, values: Tensor, spacing: float) -> tuple[Floats, float]:
    """The map of band coefficients on a grid of at most ``spacing`` angstrom: values (d, d, d) and the spacing used."""
    m = band.reach
    d = max(2 * m + 2, math.ceil(band.box / spacing))
    d = next(s for s in range(d + d % 2, 4 * d + 64, 2) if _is_smooth(s))
    padded = values.new_zeros((d, d, d // 2 + 1))
    padded[d // 2 - m : d // 2 + m + 1, d // 2 - m : d // 2 + m + 1, : m + 1] = values * (band.weight > 0)
    fine = torch.fft.irfftn(torch.fft.ifftshift(padded, dim=(0, 1)), s=(d, d, d), norm="forward")
    return torch.fft.fftshift(fine).cpu().numpy(), band.box / d


def measure_transfer(band: BandTransform, positions: Floats, heights: Floats) -> tuple[Tensor, Tensor]:
    """Transfer of the average atom and noise by shell, by least squares over each shell.

    The transfer is shrunk by what is known of it, T^2 / (T^2 + variance), so that shells of noise say nothing.
    """
    s = structure_factor(band, positions, heights)
    count = band.shell_sum(torch.ones_like(band.weight)).clamp(min=1)
    power = band.shell_sum(s.abs() ** 2).clamp(min=1e-12)
    transfer = band.shell_sum((band.values * s.conj()).real) / power
    noise = band.shell_sum((band.values - transfer[band.shell] * s).abs() ** 2) / count
    explained = transfer**2 * power / count
    noise = noise.clamp(min=1e-4 * float(explained.max()) + 1e-300)
    variance = noise / power
    return transfer * (transfer**2 / (transfer**2 + variance)), noise


def refine(band: BandTransform, model: MapModel, steps: int) -> MapModel:
    """Gauss-Newton steps on all positions and heights together, the transfer measured anew before each."""
    for _ in range(steps):
        transfer, noise = measure_transfer(band, model.positions, model.heights)
        model = _scaled(replace(_gauss_newton(band, replace(model, transfer=transfer, noise=noise))))
    transfer, noise = measure_transfer(band, model.positions, model.heights)
    return replace(model, transfer=transfer, noise=noise)


def matched_residual(band: BandTransform, model: MapModel) -> tuple[Tensor, float]:
    """Coefficients whose map is, at each place, the height of the atom still missing there, and that height's noise.

    The filter T / noise is the most telling one for a known profile in coloured noise; heights are relative to the
    median atom, as are those of the model.
    """
    gain = model.transfer / model.noise
    information = float(band.shell_sum((gain * model.transfer)[band.shell]).sum())
    missing = band.values - model.transfer[band.shell] * structure_factor(band, model.positions, model.heights)
    return gain[band.shell] * missing / max(information, 1e-300), 1 / math.sqrt(max(information, 1e-300))


def noise_at_atoms(band: BandTransform, coefficients: Tensor, model: MapModel) -> float:
    """By what factor (>= 1) the noise among the atoms exceeds that of the whole box; above 1 in a masked map.

    The rms of the matched residual (`matched_residual`) on points between and beside the atoms against that of the box.
    """
    nearest = cKDTree(model.positions).query(model.positions, k=2)[0][:, 1] if len(model.positions) > 1 else None
    if nearest is None:
        return 1.0
    bond = float(np.median(nearest))
    corners = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) / math.sqrt(3)
    points = (model.positions[:, None] + 0.6 * bond * corners).reshape(-1, 3)
    among = float(np.mean(value_and_gradient(band, coefficients, points)[0] ** 2))
    box = float((band.shell_sum(coefficients.abs() ** 2)).sum())
    return max(1.0, math.sqrt(among / max(box, 1e-300)))


def _gauss_newton(band: BandTransform, model: MapModel) -> MapModel:
    n, heights, positions = len(model.heights), model.heights, model.positions
    weight = model.transfer / model.noise
    missing = band.values - model.transfer[band.shell] * structure_factor(band, positions, heights)
    value, gradient = value_and_gradient(band, weight[band.shell] * missing, positions)
    right = np.concatenate([value, (heights[:, None] * gradient).T.reshape(-1)])

    radii, k0, k1, k2 = _overlap(band, model)
    reach = radii[-1]
    pairs = cKDTree(positions).query_pairs(reach, output_type="ndarray")
    i, j = np.concatenate([pairs, pairs[:, ::-1]]).T
    delta = positions[i] - positions[j]
    r = np.maximum(np.linalg.norm(delta, axis=1), 1e-6)
    u = delta / r[:, None]
    overlap, slope, bend = (np.interp(r, radii, k) for k in (k0, k1, k2))

    def block(off: Floats, diagonal: Floats) -> csr_matrix:
        return (coo_matrix((off, (i, j)), shape=(n, n)) + diags(diagonal)).tocsr()

    zero = np.zeros(n)
    rows: list[list[csr_matrix]] = [[block(overlap, np.full(n, k0[0]))]]
    for a in range(3):
        rows[0].append(block(-heights[j] * slope * u[:, a], zero))
    for a in range(3):
        row = [rows[0][a + 1].T]
        for b in range(3):
            hessian = bend * u[:, a] * u[:, b] + slope / r * ((a == b) - u[:, a] * u[:, b])
            row.append(block(-heights[i] * heights[j] * hessian, -(heights**2) * k2[0] if a == b else zero))
        rows.append(row)
    normal = bmat(rows, format="csr")
    scale = 1 / np.sqrt(np.maximum(normal.diagonal(), 1e-12 * k0[0]))
    scaled = diags(scale) @ normal @ diags(scale) + diags(np.full(4 * n, 1e-3))
    step = scale * cg(scaled, scale * right, rtol=1e-4, maxiter=100)[0]
    move = step[n:].reshape(3, n).T
    length = np.linalg.norm(move, axis=1, keepdims=True)
    move = move * np.minimum(1, 0.15 * band.finest / np.maximum(length, 1e-12))
    rise = np.clip(step[:n], -0.5, 0.5)
    return replace(model, positions=positions + move, heights=np.maximum(heights + rise, 1e-3))


def _overlap(band: BandTransform, model: MapModel) -> tuple[Floats, Floats, Floats, Floats]:
    """Inner product of two atoms of height 1 at a distance, ``K(r) = sum_k T^2 / N cos(2 pi k r)``, K' and K''."""
    total = band.shell_sum((model.transfer**2 / model.noise)[band.shell]).cpu().numpy()
    radii = np.arange(0.0, min(10.0, band.box / 2), 0.02)
    x = _TWO_PI * np.arange(len(total)) / band.box
    y = np.maximum(radii[:, None] * x, 1e-3)
    sine, cosine = np.sin(y), np.cos(y)
    k0 = (sine / y) @ total
    k1 = ((y * cosine - sine) / y**2 * x) @ total
    k2 = ((2 * sine - 2 * y * cosine - y**2 * sine) / y**3 * x**2) @ total
    return radii, k0, k1, k2


def _scaled(model: MapModel) -> MapModel:
    middle = float(np.median(model.heights))
    return replace(model, heights=model.heights / middle, transfer=model.transfer * middle)


def _waves(band: BandTransform, positions: Floats) -> tuple[Tensor, Tensor, Tensor]:
    """``exp(2 pi i k x)`` along x (half), y and z, each (n, ...)."""
    k = band.frequency()
    phase = _TWO_PI * torch.as_tensor(positions, device=k.device, dtype=k.dtype)[:, :, None] * k
    waves = torch.polar(torch.ones_like(phase), phase)
    return waves[:, 0, band.reach :], waves[:, 1], waves[:, 2]


def _is_smooth(n: int) -> bool:
    for p in (2, 3, 5):
        while n % p == 0:
            n //= p
    return n == 1
