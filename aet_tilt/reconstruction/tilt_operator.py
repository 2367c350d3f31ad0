"""The projector of tilts about the y axis, and its exact adjoint.

Such tilts never mix the rows of the images: every row is the projection of one (z, x) slice of the volume, and all of
them share one small sparse matrix between the oversampled transform of a slice and the transforms of its
projections [1]_.

References
----------
.. [1] Fessler, Sutton, "Nonuniform fast Fourier transforms using min-max interpolation",
   IEEE Trans. Signal Process. 51, 560 (2003). doi:10.1109/TSP.2002.807005
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from common.data import Poses
from common.fourier import fast_size, rfft_multiplicity
from common.parallel import map_over

_TAPS = 6  # of the window along each axis: relative error 1e-6 against the exact transform
_ROWS = 20  # slices transformed at once: what fits the processor's cache, and what processes share


class SparseRows(NamedTuple):
    """A sparse matrix by rows. entries, weights : (e,) columns and values. offsets : (rows,) where each row begins."""

    entries: Tensor
    offsets: Tensor
    weights: Tensor

    def apply(self, columns: Tensor, weights: Tensor) -> Tensor:
        """(rows, c) from (columns, c), with these weights instead of the matrix's own."""
        bag = torch.nn.functional.embedding_bag
        return bag(self.entries, columns, self.offsets, mode="sum", per_sample_weights=weights)


@dataclass(frozen=True)
class TiltOperator:
    """Tilts about y, slice by slice.

    poses : of the n images. padded_size, grid_size : of the projected rows and of a slice's transform, m.
    gather : from the grid of a slice (m, m // 2 + 1) to the samples (n, k), k = 0 .. below Nyquist in steps of
    1 / padded_size; its weights are those of the real parts.
    gather_imaginary : those of the imaginary parts, which change sign under the symmetry of a real slice.
    scatter, scatter_imaginary : the transpose.
    along_x, along_y : (n, k) and (n, d // 2 + 1) phases of the shifts. window : (d,) transform of the window.
    """

    poses: Poses
    box_size: int
    pixel_size: float
    padded_size: int
    grid_size: int
    gather: SparseRows
    gather_imaginary: Tensor
    scatter: SparseRows
    scatter_imaginary: Tensor
    along_x: Tensor
    along_y: Tensor
    window: Tensor

    def __len__(self) -> int:
        return len(self.poses)

    def project(self, values: Tensor) -> Tensor:
        """(n, d, d) from (d, d, d)."""
        blocks = row_blocks(values.shape[1])
        (images,) = map_over(lambda rows: (self._project_rows(block_of(values, rows)),), blocks, dim=1)
        return self.shift_y(images, self.along_y)

    def backproject(self, images: Tensor) -> Tensor:
        """(d, d, d) from (n, d, d)."""
        moved = self.shift_y(images, self.along_y.conj())
        blocks = row_blocks(moved.shape[1])
        (values,) = map_over(lambda rows: (self._backproject_rows(block_of(moved, rows)),), blocks, dim=1)
        return values

    def subset(self, index: Tensor) -> TiltOperator:
        """The same for some of the poses."""
        return tilt_operator(self.poses[index], self.box_size, self.pixel_size)

    def shift_y(self, images: Tensor, phases: Tensor) -> Tensor:
        """Images (n, d, d) times the phases (n, d // 2 + 1) along y."""
        if not bool((self.poses.shifts[:, 1] != 0).any()):
            return images
        return torch.fft.irfft(torch.fft.rfft(images, dim=1) * phases[:, :, None], n=self.box_size, dim=1)

    def _project_rows(self, slab: Tensor) -> Tensor:
        """(n, r, d) from r slices (d, r, d)."""
        return self.rows_of(self.sample(slab))

    def _backproject_rows(self, slab: Tensor) -> Tensor:
        """(d, r, d) from r rows (n, r, d)."""
        return self.spread(self.spectra_of(slab))

    def sample(self, slab: Tensor) -> Tensor:
        """The transforms (n, k, r) of r slices (d, r, d) at the samples of every image."""
        m = self.grid_size
        slices = slab.transpose(1, 2) / (self.window[:, None, None] * self.window[:, None])
        grid = torch.fft.rfft(_place(slices, m, 1), dim=1)
        grid = torch.fft.fft(_place(grid, m, 0), dim=0).flatten(0, 1)
        real = self.gather.apply(grid.real.contiguous(), self.gather.weights)
        imaginary = self.gather.apply(grid.imag.contiguous(), self.gather_imaginary)
        return torch.complex(real, imaginary).view(len(self), -1, slab.shape[1])

    def rows_of(self, samples: Tensor) -> Tensor:
        """Rows (n, r, d) of the images from their spectra (n, k, r)."""
        rows = torch.fft.irfft(samples * self.along_x[:, :, None], n=self.padded_size, dim=1)
        return self.pixel_size * _take(rows, self.box_size, 1).transpose(1, 2)

    def spectra_of(self, rows: Tensor) -> Tensor:
        """The adjoint of `rows_of`, but for the pixel size."""
        size = self.padded_size
        samples = torch.fft.rfft(_place(rows.transpose(1, 2), size, 1), dim=1)[:, : self.along_x.shape[1]]
        twice = rfft_multiplicity(size, dtype=rows.dtype, device=rows.device)[: samples.shape[1], None]
        return samples * self.along_x.conj()[:, :, None] * (twice / size)

    def spread(self, samples: Tensor) -> Tensor:
        """The adjoint of `sample`, times the pixel size."""
        d, m = self.box_size, self.grid_size
        samples = samples.flatten(0, 1)
        real = self.scatter.apply(samples.real.contiguous(), self.scatter.weights)
        imaginary = self.scatter.apply(samples.imag.contiguous(), self.scatter_imaginary)
        grid = torch.complex(real, imaginary).view(m, m // 2 + 1, -1)
        grid = _take(torch.fft.ifft(grid, dim=0, norm="forward"), d, 0)
        # irfft counts every column twice but those that are their own mates; the adjoint counts each once
        grid = grid / rfft_multiplicity(m, dtype=real.dtype, device=real.device)[:, None]
        slices = _take(torch.fft.irfft(grid, n=m, dim=1, norm="forward"), d, 1)
        slices = slices * (self.pixel_size / (self.window[:, None, None] * self.window[:, None]))
        return slices.transpose(1, 2)


def row_blocks(count: int) -> tuple[Tensor, ...]:
    """Row numbers in blocks, the same whatever the number of processes that share them."""
    return torch.arange(count).tensor_split(math.ceil(count / _ROWS))


def block_of(values: Tensor, rows: Tensor) -> Tensor:
    """Consecutive rows (d, r, d) of a volume."""
    return values.narrow(1, int(rows[0]), len(rows))


def _place(values: Tensor, size: int, dim: int) -> Tensor:
    """Zero-pad an axis to ``size`` with its origin, pixel ``d // 2``, at index 0."""
    d = values.shape[dim]
    before, after = values.narrow(dim, 0, d // 2), values.narrow(dim, d // 2, d - d // 2)
    shape = list(values.shape)
    shape[dim] = size - d
    return torch.cat((after, values.new_zeros(shape), before), dim)


def _take(values: Tensor, d: int, dim: int) -> Tensor:
    """The adjoint of :func:`_place`: cut ``d`` pixels about index 0 from an axis."""
    size = values.shape[dim]
    return torch.cat((values.narrow(dim, size - d // 2, d // 2), values.narrow(dim, 0, d - d // 2)), dim)


def kaiser_bessel(distance: Tensor) -> Tensor:
    """Kaiser-Bessel at a distance in grid steps (Fessler, Sutton 2003, section IV-C)."""
    beta = math.pi * math.sqrt(_TAPS**2 * 2.25 / 4 - 0.8)
    inside = (1 - (2 * distance / _TAPS) ** 2).clamp(min=0)
    return torch.where(distance.abs() <= _TAPS / 2, torch.special.i0(beta * inside.sqrt()), 0.0)


def kaiser_bessel_transform(box_size: int, grid_size: int) -> Tensor:
    """The transform of the window at the pixels of the box, (d,) float64."""
    beta = math.pi * math.sqrt(_TAPS**2 * 2.25 / 4 - 0.8)
    x = (torch.arange(box_size, dtype=torch.float64) - box_size // 2) / grid_size
    root = (beta**2 - (math.pi * _TAPS * x) ** 2).sqrt()  # real: |x| <= 1 / 4
    return _TAPS * root.sinh() / root


def tilt_operator(poses: Poses, box_size: int, pixel_size: float, depths: tuple[float, ...] = (0.0,)) -> TiltOperator:
    """The slice-wise operator for poses about the y axis; :func:`make_operator` checks that they are.

    depths : frequencies along the beam, cycles per pixel, at which an image is sampled in turn; 0 alone projects.
    """
    device, dtype = poses.rotations.device, poses.rotations.dtype
    # the projection of the box's diagonal must not wrap round
    size, m = fast_size(math.sqrt(2) * box_size + 4), fast_size(2 * box_size)
    k = torch.arange(size // 2, dtype=torch.float64, device=device)
    turn = poses.rotations.double()
    beam = m * torch.tensor(depths, dtype=torch.float64, device=device)[:, None]
    u, w = (turn[:, None, 0, i, None] * k * (m / size) + turn[:, None, 2, i, None] * beam for i in (0, 2))
    # a real slice has F(-k) = conj F(k), so each sample is taken where k_x >= 0
    conjugate = torch.where(u < 0, -1.0, 1.0).flatten(1)
    u, w = (conjugate * part.flatten(1) for part in (u, w))
    step = torch.arange(_TAPS, device=device)
    first_u, first_w = (torch.floor(part).long() - _TAPS // 2 + 1 for part in (u, w))
    at_u, at_w = first_u[..., None] + step, first_w[..., None] + step
    weights = kaiser_bessel(w[..., None] - at_w)[..., :, None] * kaiser_bessel(u[..., None] - at_u)[..., None, :]
    mate = torch.where(at_u < 0, -1, 1)[..., None, :]
    row, column = (mate * at_w[..., :, None]) % m, (mate * at_u[..., None, :]).expand(weights.shape)
    column = torch.where(column > m // 2, m - column, column)
    index = (row * (m // 2 + 1) + column).flatten()
    real = weights.flatten().to(dtype)
    imaginary = (weights * mate * conjugate[..., None, None]).flatten().to(dtype)
    points = torch.arange(u.numel(), device=device)
    gather = SparseRows(index, points * _TAPS**2, real)
    order = index.sort(stable=True).indices
    counts = torch.bincount(index, minlength=m * (m // 2 + 1))
    scatter = SparseRows(points.repeat_interleave(_TAPS**2)[order], counts.cumsum(0) - counts, real[order])
    shift = poses.shifts.double() / pixel_size
    rows = torch.arange(box_size // 2 + 1, device=device)
    along_y = -2 * math.pi / box_size * shift[:, 1:] * rows
    phase_y = torch.complex(along_y.cos(), torch.where(2 * rows == box_size, 0.0, along_y.sin()))
    along_x = -2 * math.pi / size * shift[:, :1] * k
    return TiltOperator(
        poses,
        box_size,
        pixel_size,
        size,
        m,
        gather,
        imaginary,
        scatter,
        imaginary[order],
        torch.complex(along_x.cos(), along_x.sin()).to(dtype.to_complex()),
        phase_y.to(dtype.to_complex()),
        kaiser_bessel_transform(box_size, m).to(device=device, dtype=dtype),
    )
