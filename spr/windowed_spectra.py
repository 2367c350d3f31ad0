"""Kernels of `spr.motion` and `spr.tracking`: band-limited spectra, the likelihood of a shift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_ALONE = 9.0  # power over noise that chance gives to one coefficient of 8,000


@dataclass(frozen=True)
class Band:
    """The part of ``rfft2`` of a frame up to a frequency.

    frame_shape : (y, x) of the frame, pixels.
    pixel_sizes : (y, x) of the images that the part makes, angstrom.
    half : (rows, columns) kept: frequencies -rows..rows - 1 along y and 0..columns along x.
    k_x, k_y : (2 rows, columns + 1), 1/angstrom. weight : how often a coefficient counts, 0 beyond the frequency.
    """

    frame_shape: tuple[int, int]
    pixel_sizes: tuple[float, float]
    half: tuple[int, int]
    k_x: Tensor
    k_y: Tensor
    weight: Tensor

    @classmethod
    def of(cls, frame_shape: tuple[int, int], pixel_size: float | tuple[float, float], max_frequency: float) -> Band:
        """For frames (y, x) of pixels of ``pixel_size`` angstrom (or (y, x)); frequencies up to 1/angstrom."""
        height, width = frame_shape
        size_y, size_x = pixel_size if isinstance(pixel_size, tuple) else (pixel_size, pixel_size)
        rows = max(1, min(height // 2, math.ceil(max_frequency * height * size_y) + 1))
        columns = max(1, min(width // 2, math.ceil(max_frequency * width * size_x) + 1))
        y = torch.fft.fftfreq(2 * rows, 1 / (2 * rows)) / (height * size_y)
        x = torch.arange(columns + 1) / (width * size_x)
        k_y, k_x = torch.meshgrid(y, x, indexing="ij")
        k = torch.sqrt(k_x**2 + k_y**2)
        weight = 2.0 * ((k <= max_frequency) & (k > 0)).float()
        weight[:, 0] /= 2
        weight[rows] = 0
        weight[:, columns] = 0
        coarse = (height * size_y / (2 * rows), width * size_x / (2 * columns))
        return cls(frame_shape, coarse, (rows, columns), k_x, k_y, weight)

    @property
    def shape(self) -> tuple[int, int]:
        return 2 * self.half[0], self.half[1] + 1

    def cut(self, spectra: Tensor) -> Tensor:
        """The band (..., rows, columns) of ``rfft2`` of frames (..., y, x // 2 + 1)."""
        rows, columns = self.half
        return torch.cat((spectra[..., :rows, : columns + 1], spectra[..., -rows:, : columns + 1]), -2)

    def images(self, spectra: Tensor) -> Tensor:
        """Coarse images (..., 2 rows, 2 columns) of band spectra, values as in the frame."""
        rows, columns = self.half
        scale = 4 * rows * columns / (self.frame_shape[0] * self.frame_shape[1])
        kept = spectra * (self.weight > 0)
        return torch.fft.irfft2(kept, s=(2 * rows, 2 * columns)) * scale

    def shells(self) -> Tensor:
        """Shell of every coefficient, one wide as the coarser of the two frequency steps."""
        step = max(float(self.k_x[0, 1]), float(self.k_y[1, 0]))
        return (torch.sqrt(self.k_x**2 + self.k_y**2) / step).round().long()


class Fit(NamedTuple):
    """shifts : (n, 2) of (x, y), angstrom. information : (n, 2, 2), 1/angstrom^2. gain : (n,) nats over chance."""

    shifts: Tensor
    information: Tensor
    gain: Tensor


def taper(shape: tuple[int, int], edge: float = 0.08) -> Tensor:
    """1 inside, falling to 0 over a fraction ``edge`` of each side as a cosine: (y, x)."""

    def side(n: int) -> Tensor:
        near = torch.minimum(torch.arange(n) + 0.5, n - torch.arange(n) - 0.5) / (edge * n)
        return 0.5 - 0.5 * torch.cos(math.pi * near.clamp(max=1))

    return side(shape[0])[:, None] * side(shape[1])


def shifted(spectra: Tensor, shifts: Tensor, band: Band) -> Tensor:
    """Band spectra (..., rows, columns) of content moved by shifts (..., 2) of (x, y), angstrom."""
    angle = -2 * math.pi * (shifts[..., 0, None, None] * band.k_x + shifts[..., 1, None, None] * band.k_y)
    return spectra * torch.polar(torch.ones_like(angle), angle)


def shell_medians(power: Tensor, band: Band) -> Tensor:
    """Every coefficient's shell median of the power (rows, columns), times 1/ln 2 where one frame's is exponential.

    Taken of a mean over many frames, as here, the median is nearly the mean of what is not a lattice peak.
    """
    shells = band.shells()
    used = band.weight > 0
    typical = torch.zeros(int(shells.max()) + 1)
    for shell in range(len(typical)):
        values = power[(shells == shell) & used]
        typical[shell] = values.median() if len(values) else 0.0
    # the first shells are few and hold slow variations of the illumination
    typical = torch.where(typical > 0, typical, typical[typical > 0].median())
    return typical[shells]


def register(
    moving: Tensor, reference: Tensor, noise: Tensor, frames: Tensor | float, band: Band, start: Tensor, reach: float
) -> Fit:
    """The shift of each frame against its reference, from the log likelihood under the noise.

    Parameters
    ----------
    moving : (n, rows, columns) band spectra, single frames.
    reference : (n, rows, columns), means of ``frames`` ((n,) or a number) others.
    noise : (rows, columns) power of a single frame's noise.
    start : (n, 2), angstrom, expected shifts; reach : how far around them is searched. A lattice repeats itself:
        keep it below half of its spacing where the start is good.

    Returns
    -------
    Fit: the highest likelihood, by a grid of half a coarse pixel and Newton steps; its information; gain: how far above
    what unrelated frames would give, nats.
    """
    count = torch.as_tensor(frames, dtype=torch.float32).reshape(-1, 1, 1)
    trust = _trust(reference.abs().square() * count / noise.clamp(min=1e-30), band)
    cross = shifted(moving, -start, band) * (reference.conj() * trust / noise.clamp(min=1e-30))
    moved, information, value = best_shift(cross, band, reach)
    chance = (band.weight * (trust * reference.abs()) ** 2 / noise.clamp(min=1e-30)).sum((1, 2))
    gain = value.clamp(min=0) ** 2 / (2 * chance.clamp(min=1e-12))
    return Fit(start + moved, information, torch.where(information[:, 0, 0] > 0, gain, 0.0))


def best_shift(cross: Tensor, band: Band, reach: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where ``sum Re(cross exp(2 pi i k s))`` is highest within ``reach`` (angstrom) of no shift.

    Parameters
    ----------
    cross : (n, rows, columns), weighted so that the sum is a log likelihood.

    Returns
    -------
    Shifts (n, 2), their information (n, 2, 2), 0 where there is no maximum, and the value (n,): a grid of half a
    coarse pixel, then Newton steps.
    """
    step = min(band.pixel_sizes) / 2
    grid = torch.arange(-math.ceil(reach / step), math.ceil(reach / step) + 1) * step
    weighted = cross * band.weight
    wave_y = torch.polar(torch.ones(1), 2 * math.pi * grid[:, None] * band.k_y[:, 0])
    wave_x = torch.polar(torch.ones(1), 2 * math.pi * grid[:, None] * band.k_x[0])
    score = (wave_y @ weighted @ wave_x.T).real  # both sums are separable: no transform of the whole frame is needed
    outside = grid[:, None] ** 2 + grid**2 > (reach + step / 2) ** 2
    best = score.masked_fill(outside, -torch.inf).flatten(1).argmax(1)
    moved = torch.stack((grid[best % len(grid)], grid[best // len(grid)]), 1)
    k = 2 * math.pi * torch.stack((band.k_x, band.k_y), -1)
    one = torch.ones_like(k[..., 0])
    moments = torch.stack((one, k[..., 0] ** 2, k[..., 0] * k[..., 1], k[..., 1] ** 2)).flatten(1)
    for newton in range(4):
        angle = moved[:, 0, None, None] * k[..., 0] + moved[:, 1, None, None] * k[..., 1]
        term = (weighted * torch.polar(torch.ones_like(angle), angle)).flatten(1)
        value, xx, xy, yy = (term.real @ moments.T).T
        information = torch.stack((torch.stack((xx, xy), 1), torch.stack((xy, yy), 1)), 1)
        convex = (torch.linalg.det(information) > 0) & (xx > 0)
        if newton < 3:
            gradient = -term.imag @ k.flatten(0, 1)
            safe = torch.where(convex[:, None, None], information, torch.eye(2))
            change = torch.linalg.solve(safe, gradient[..., None])[..., 0].clamp(-step, step)
            moved = moved + torch.where(convex[:, None], change, 0.0)
    inside = convex & (moved.norm(dim=1) < reach + step)
    return moved, torch.where(inside[:, None, None], information, 0.0), torch.where(inside, value, 0.0)


def _trust(over: Tensor, band: Band) -> Tensor:
    """What share of each reference coefficient is not its own noise; ``over`` (n, rows, columns) is power over noise.

    A coefficient that stands far out (a lattice peak) speaks for itself; the others share what their shell has in
    excess, so that chance does not select its own best.
    """
    used, shells = band.weight > 0, band.shells()
    alone = (over > _ALONE) & used
    rest = torch.where(alone | ~used, 0.0, over).flatten(1)
    index, size = shells.flatten(), int(shells.max()) + 1
    count = torch.zeros(len(over), size).index_add(1, index, (~alone & used).flatten(1).float()).clamp(min=1)
    mean = torch.zeros(len(over), size).index_add(1, index, rest) / count
    excess = (mean - 1 - 3 / count.sqrt()).clamp(min=0)
    shared = (excess / (1 + excess))[:, shells]
    return torch.where(alone, 1 - 1 / over.clamp(min=1), shared) * used
