"""Drift and local motion of a movie, estimated in moving windows.

Every frame is registered to the aligned mean of the frames around it, never to itself: a frame that takes part in its
own reference correlates with its own noise and pulls the shift to zero. What counts is the log likelihood of the shift:
reference coefficients that do not stand out of their own noise have no weight, so a lattice of graphene, contamination
and whatever else stands still decide, at the sharpness that they have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from common.data import InputError
from common.io.movie import Movie
from spr.paths import solve_path
from spr.windowed_spectra import Band, register, shell_medians, shifted, taper

_BLOCK = 8  # frames that are taken to stand still at first
_MEMORY = 12  # blocks that are averaged to the first reference


@dataclass(frozen=True)
class MotionSettings:
    """How motion is corrected.

    window : frames that are averaged to one reference window; at most 64 windows are kept in memory.
    reach : windows on each side that a frame is registered to.
    largest_step : angstrom, of the drift from one frame to the next; below half a graphene spacing.
    max_frequency : 1/angstrom, finest detail compared.
    rounds : of registration to the windows, 0 for no motion correction.
    patches : along each axis of a frame for local motion, 1 for none.
    significance : nats that a peak must stand out, and standard errors that local motion must.
    """

    window: int = 25
    reach: int = 3
    largest_step: float = 1.0
    max_frequency: float = 0.6
    rounds: int = 2
    patches: int = 3
    significance: float = 8.0


@dataclass(frozen=True)
class Motion:
    """How the scene moves: content that lies at x on average lies at x + displacement in a frame.

    shifts : (n, 2) of (x, y), angstrom, the whole frame's.
    errors : (n, 2) standard errors, angstrom.
    local : (windows, 6, 2) coefficients, angstrom, of 1, u, v, u^2, u v, v^2 with u, v in [-1, 1] across the frame;
        0 where there is no local motion.
    window_centres : (windows,) frames.
    extent : (x, y) of a frame, angstrom.
    notes : in words.
    """

    shifts: Tensor
    errors: Tensor
    local: Tensor
    window_centres: Tensor
    extent: tuple[float, float]
    notes: tuple[str, ...] = ()

    def displacement(self, frame: int, positions: Tensor) -> Tensor:
        """At positions (m, 2) of (x, y), angstrom from the first pixel's centre, in a frame: (m, 2), angstrom."""
        if not bool(self.local.any()):
            return self.shifts[frame].to(positions).expand_as(positions)
        u, v = (2 * positions[:, k] / self.extent[k] - 1 for k in range(2))
        basis = torch.stack((torch.ones_like(u), u, v, u * u, u * v, v * v), 1)
        place = torch.searchsorted(self.window_centres, torch.tensor(float(frame)))
        right = min(int(place), len(self.window_centres) - 1)
        left = max(right - 1, 0)
        span = float(self.window_centres[right] - self.window_centres[left])
        part = min(1.0, max(0.0, (frame - float(self.window_centres[left])) / span)) if span > 0 else 0.0
        return self.shifts[frame].to(positions) + basis @ torch.lerp(self.local[left], self.local[right], part).to(
            basis
        )


def still(movie: Movie) -> Motion:
    """No motion at all."""
    n, (height, width) = len(movie), movie.frame_shape
    zero = torch.zeros(n, 2)
    extent = (width * movie.pixel_size, height * movie.pixel_size)
    return Motion(zero, zero.clone(), torch.zeros(1, 6, 2), torch.tensor([n / 2]), extent)


def estimate_motion(movie: Movie, settings: MotionSettings | None = None) -> Motion:
    """Drift of the frames and slow local motion.

    Parameters
    ----------
    movie : at least 2 frames.

    Returns
    -------
    Motion; where nothing stands still that could be followed, or only by chance, it is zero and a note says so.

    Raises
    ------
    InputError : fewer than 2 frames.

    Notes
    -----
    First pass: blocks of 8 frames against the running mean of those before. Then ``rounds`` passes: each frame against
    the mean of its own and the neighbouring windows, without itself. The path is smoothed as a random walk whose
    step is estimated with the errors taken off. Local motion: windows against the other windows in
    overlapping patches, a quadratic of position per window. Memory: one coarse spectrum for each window.
    """
    settings = settings or MotionSettings()
    n = len(movie)
    if n < 2:
        raise InputError(f"{movie.files[0]}: {n} frame, expected a movie of at least 2")
    if settings.rounds < 1:
        return still(movie)
    band = Band.of(movie.frame_shape, movie.pixel_size, settings.max_frequency)
    noise = _noise(movie, band)
    shifts = _running(movie, band, noise, settings)
    window = max(settings.window, math.ceil(n / 64))
    errors, found = torch.zeros(n, 2), 0.0
    for _ in range(settings.rounds):
        means = _window_means(movie, band, shifts, window)
        raw, information, found = _against_windows(movie, band, noise, means, shifts, window, settings)
        shifts, errors = _smoothed(raw, information)
    extent = (movie.frame_shape[1] * movie.pixel_size, movie.frame_shape[0] * movie.pixel_size)
    shifts = shifts - shifts.mean(0)
    centres = torch.tensor([min(k + window, n) + k - 1.0 for k in range(0, n, window)]) / 2
    motion = Motion(shifts, errors, torch.zeros(len(centres), 6, 2), centres, extent)
    if found < 0.5:
        notes = (f"drift: only {100 * found:.0f} % of the frames could be registered; no motion is corrected",)
        return replace(still(movie), notes=notes)
    if settings.patches > 1 and len(centres) > 2:
        means = _window_means(movie, band, shifts, window)
        local, note = _local(means, band, noise, window, settings)
        motion = replace(motion, local=local, notes=(note,) if note else ())
    return motion


def _spectra(movie: Movie, band: Band) -> Iterator[tuple[int, Tensor]]:
    window = taper(movie.frame_shape)
    for first, frames in movie.chunks():
        flat = (frames - frames.mean((1, 2), keepdim=True)) * window
        for k in range(0, len(flat), 16):
            yield first + k, band.cut(torch.fft.rfft2(flat[k : k + 16]))


def _noise(movie: Movie, band: Band) -> Tensor:
    """Noise power of one frame's coefficients: the median over each shell, which lattice peaks do not lift."""
    n = len(movie)
    window = taper(movie.frame_shape)
    power = torch.zeros(band.shape)
    picked = sorted({round(k * (n - 1) / 40) for k in range(41)})
    for k in picked:
        frame = movie.frames(k, k + 1)
        power += band.cut(torch.fft.rfft2((frame - frame.mean()) * window))[0].abs() ** 2 / len(picked)
    return shell_medians(power, band)


def _running(movie: Movie, band: Band, noise: Tensor, settings: MotionSettings) -> Tensor:
    """Shifts of short blocks of frames against the running mean of the blocks before, interpolated between them.

    Single frames would follow the particles, which are nearly coherent over a few frames; blocks see what stands still.
    """
    n, keep = len(movie), 1 - 1 / _MEMORY
    mean, weight = torch.zeros(band.shape, dtype=torch.complex64), 0.0
    block, held, at = torch.zeros_like(mean), 0, torch.zeros(2)
    centres: list[float] = []
    found: list[Tensor] = []
    for first, spectra in _spectra(movie, band):
        for k, spectrum in enumerate(spectra):
            block, held = block + spectrum, held + 1
            if held < _BLOCK and first + k < n - 1:
                continue
            block = block / held
            if weight:
                before = len(found)
                blocks_in_mean = (1 + keep) / (1 - keep) * (1 - keep**before) / (1 + keep**before)
                reach = settings.largest_step
                fit = register(block[None], (mean / weight)[None], noise / held, blocks_in_mean, band, at[None], reach)
                at = fit.shifts[0] if fit.gain[0] > settings.significance else at
            centres.append(first + k - (held - 1) / 2)
            found.append(at)
            mean, weight = keep * mean + shifted(block, -at, band), keep * weight + 1
            block, held = torch.zeros_like(mean), 0
    path = torch.stack(found).numpy()
    columns = [np.interp(np.arange(n), centres, path[:, k]) for k in range(2)]
    return torch.from_numpy(np.stack(columns, 1)).float()


def _window_means(movie: Movie, band: Band, shifts: Tensor, window: int) -> Tensor:
    """Mean of the aligned spectra of each window: (windows, *band.shape)."""
    n = len(movie)
    means = torch.zeros(math.ceil(n / window), *band.shape, dtype=torch.complex64)
    for first, spectra in _spectra(movie, band):
        aligned = shifted(spectra, -shifts[first : first + len(spectra)], band)
        for k, spectrum in enumerate(aligned):
            w = (first + k) // window
            means[w] += spectrum / (min((w + 1) * window, n) - w * window)
    return means


def _against_windows(
    movie: Movie, band: Band, noise: Tensor, means: Tensor, shifts: Tensor, window: int, settings: MotionSettings
) -> tuple[Tensor, Tensor, float]:
    """Each frame against the windows around it, without itself: shifts, their information, fraction registered."""
    n = len(movie)
    raw, information = shifts.clone(), torch.zeros(n, 2, 2)
    sizes = torch.tensor([min((w + 1) * window, n) - w * window for w in range(len(means))], dtype=torch.float32)
    sure = 0
    for first, spectra in _spectra(movie, band):
        part = slice(first, first + len(spectra))
        own = shifted(spectra, -shifts[part], band)
        references, counts = [], []
        for k in range(len(spectra)):
            w = (first + k) // window
            near = slice(max(0, w - settings.reach), w + settings.reach + 1)
            count = float(sizes[near].sum()) - 1
            references.append(((means[near] * sizes[near, None, None]).sum(0) - own[k]) / max(count, 1.0))
            counts.append(max(count, 1.0))
        fit = register(
            spectra, torch.stack(references), noise, torch.tensor(counts), band, shifts[part], settings.largest_step
        )
        good = fit.gain > settings.significance
        raw[part] = torch.where(good[:, None], fit.shifts, shifts[part])
        information[part] = torch.where(good[:, None, None], fit.information, 0.0)
        sure += int(good.sum())
    return raw, information, sure / n


def _smoothed(raw: Tensor, information: Tensor) -> tuple[Tensor, Tensor]:
    """A random walk through the shifts; its step is what their differences have beyond their errors."""
    known = information[:, 0, 0] > 0
    pairs = known[1:] & known[:-1]
    if not bool(pairs.any()):
        return raw, torch.zeros_like(raw)
    variance = torch.linalg.inv(information[known]).diagonal(dim1=1, dim2=2).mean(1)
    each = torch.zeros(len(raw))
    each[known] = variance
    difference = ((raw[1:] - raw[:-1]) ** 2).mean(1)[pairs]
    step = float((difference - (each[1:] + each[:-1])[pairs]).mean())
    path = solve_path(raw, information, max(step, 1e-3 * float(variance.mean()), 1e-8))
    return path.positions.float(), path.covariance.diagonal(dim1=1, dim2=2).sqrt().float()


def _local(means: Tensor, band: Band, noise: Tensor, window: int, settings: MotionSettings) -> tuple[Tensor, str]:
    """Quadratics of position by window, (windows, 6, 2) angstrom, and what to say of them."""
    images = band.images(means)
    height, width = images.shape[1:]
    p = settings.patches
    size_y, size_x = (2 * height // (p + 1)) // 2 * 2, (2 * width // (p + 1)) // 2 * 2
    pixel_y, pixel_x = band.pixel_sizes
    if min(size_y * pixel_y, size_x * pixel_x) < 20.0:  # angstrom; too few to hold anything that can be followed
        return torch.zeros(len(means), 6, 2), ""
    patch_band = Band.of((size_y, size_x), (pixel_y, pixel_x), settings.max_frequency)
    window_2d = taper((size_y, size_x))
    n, everything = len(means), images.mean(0)
    basis, moved, known = [], [], []
    for row in range(p):
        for column in range(p):
            y, x = (height - size_y) * row // (p - 1), (width - size_x) * column // (p - 1)
            cut = (slice(y, y + size_y), slice(x, x + size_x))
            own = patch_band.cut(torch.fft.rfft2(images[:, cut[0], cut[1]] * window_2d))
            rest = patch_band.cut(torch.fft.rfft2(everything[cut] * window_2d)) * n / (n - 1) - own / (n - 1)
            power = shell_medians((own - rest).abs().square().mean(0), patch_band) * (n - 1) / n
            fit = register(own, rest, power, float(n - 1), patch_band, torch.zeros(n, 2), settings.largest_step)
            u, v = 2 * (x + size_x / 2) / width - 1, 2 * (y + size_y / 2) / height - 1
            basis.append((1.0, u, v, u * u, u * v, v * v))
            moved.append(fit.shifts)
            good = fit.gain > settings.significance
            known.append(torch.where(good, fit.information.diagonal(dim1=1, dim2=2).mean(1), 0.0))
    functions, shifts, weights = torch.tensor(basis), torch.stack(moved, 1), torch.stack(known, 1)
    if float((weights > 0).float().mean()) < 0.5:
        return torch.zeros(n, 6, 2), "local motion: too little stands still in the patches; none is corrected"
    normal = torch.einsum("np,pi,pj->nij", weights, functions, functions) + 1e-3 * weights.mean() * torch.eye(6)
    local = torch.linalg.solve(normal, torch.einsum("np,pi,npk->nik", weights, functions, shifts))
    fitted = torch.einsum("pi,nik->npk", functions, local)
    error = 1 / weights.mean().sqrt()
    size = float(fitted.square().mean().sqrt())
    if size < max(settings.significance / 2 * float(error), 0.02):
        return torch.zeros(n, 6, 2), ""
    return local, f"local motion of {size:.2f} angstrom rms is followed in windows of {window} frames"
