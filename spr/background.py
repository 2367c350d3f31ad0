"""What lies around the particles: graphene as waves, everything else as a power spectrum.

Two passes over the movie learn it: the aligned mean of blocks of frames gives the sheets' lattices with amplitude and
phase; what is left beside the particles gives the spectrum by which images are whitened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.io.movie import Movie
from spr.detection import shell_power
from spr.graphene import (
    GrapheneSettings,
    Lattice,
    Waves,
    coordinates,
    find_lattices,
    fit_scales,
    model_waves,
)
from spr.motion import Motion
from spr.windowed_spectra import Band, shifted

_BLOCK_FRAMES, _MOST_BLOCKS = 150, 8
_SCALE_SPREAD = 0.2  # expected rms of the fringes' contrast from frame to frame


@dataclass(frozen=True)
class Background:
    """The background of a movie.

    lattices : of the graphene sheets.
    waves : one model for each block of frames; empty waves where there is no graphene.
    block_frames : frames in a block.
    free : (y, x), 1 where no particle comes, 0 where one does.
    noise : (shells,) background power per pixel by shells 0.01/angstrom wide; the variance of a pixel for white noise.
    variance : of a pixel of the background.
    pixel_size : angstrom.
    """

    lattices: tuple[Lattice, ...]
    waves: tuple[Waves, ...]
    block_frames: int
    free: Tensor
    noise: Tensor
    variance: float
    pixel_size: float

    @property
    def groups(self) -> int:
        return int(self.waves[0].group.max()) + 1 if len(self.waves[0].group) else 0

    def waves_of(self, frame: int) -> Waves:
        return self.waves[min(frame // self.block_frames, len(self.waves) - 1)]


def block_means(movie: Movie, motion: Motion) -> tuple[Tensor, int]:
    """Means of aligned frames by blocks (blocks, y, x), and the frames in a block; at most 8 blocks are held."""
    n = len(movie)
    size = max(_BLOCK_FRAMES, math.ceil(n / _MOST_BLOCKS))
    count = max(1, n // size)
    size = math.ceil(n / count)
    means = torch.zeros(count, *movie.frame_shape)
    moves = bool((motion.shifts.abs() > 0.02 * movie.pixel_size).any())
    band = Band.of(movie.frame_shape, movie.pixel_size, 1.0 / movie.pixel_size) if moves else None
    for first, frames in movie.chunks():
        for k, frame in enumerate(frames):
            t = first + k
            if band is not None:
                aligned = shifted(band.cut(torch.fft.rfft2(frame - frame.mean())), -motion.shifts[t], band)
                frame = torch.fft.irfft2(aligned, s=movie.frame_shape) + frame.mean()
            means[t // size] += frame / (min((t // size + 1) * size, n) - t // size * size)
    return means, size


def free_of_particles(
    shape: tuple[int, int], pixel_size: float, paths: list[tuple[Tensor, float]], margin: float = 5.0
) -> Tensor:
    """1 where no particle comes and 0 where one does: (y, x); paths are (centres (n, 2), radius), angstrom."""
    x, y = coordinates(shape, pixel_size)
    free = torch.ones(shape)
    for centres, radius in paths:
        knots = torch.unique((centres / 2.0).round(), dim=0) * 2.0
        for centre in knots:
            free *= ((x - centre[0]) ** 2 + (y[:, None] - centre[1]) ** 2 > (radius + margin) ** 2).float()
    return free if float(free.mean()) > 0.1 else torch.ones(shape)


def learn_background(
    movie: Movie,
    motion: Motion,
    free: Tensor,
    settings: GrapheneSettings | None = None,
    *,
    means: tuple[Tensor, int] | None = None,
) -> Background:
    """Lattices, waves and spectrum of the background.

    Parameters
    ----------
    free : (y, x), 0 where particles lie; ones when they are not known yet.
    means : `block_means`, where they are known already.
    """
    settings = settings or GrapheneSettings()
    blocks, size = means if means is not None else block_means(movie, motion)
    pixel = movie.pixel_size
    lattices = find_lattices(blocks.mean(0), pixel, settings)
    waves = tuple(model_waves(block, free, lattices, pixel, settings) for block in blocks)
    n = len(movie)
    picked = sorted({round(k * (n - 1) / min(n, 64)) for k in range(min(n, 64) + 1)})
    variance = float(sum(movie.frames(t, t + 1).var() for t in picked[::4]) / len(picked[::4]))
    background = Background(lattices, waves, size, free, torch.ones(1), variance, pixel)
    total, weight = torch.zeros(1, dtype=torch.float64), float(free.square().sum())
    for t in picked:
        rest, _ = without_graphene(movie.frames(t, t + 1), t, background, motion)
        power, _ = shell_power(rest[0] * free, pixel)
        total = total + power / weight / len(picked)
    total[:2] = total[2:5].mean()
    return Background(lattices, waves, size, free, total, float((total[4:]).median()), pixel)


def without_graphene(frames: Tensor, first: int, background: Background, motion: Motion) -> tuple[Tensor, Tensor]:
    """Frames less their mean and less graphene.

    Parameters
    ----------
    frames : (n, y, x), the first of them number ``first`` of the movie.

    Returns
    -------
    (n, y, x), and the contrast of each group of reflections (n, groups), 1 for the mean.
    """
    flat = frames - frames.mean((1, 2), keepdim=True)
    scales = torch.ones(len(frames), background.groups)
    if not background.groups:
        return flat, scales
    rest = torch.empty_like(flat)
    centre = torch.tensor([[s / 2 for s in motion.extent]])
    k = 0
    while k < len(frames):
        t = first + k
        last = background.block_frames * min((t // background.block_frames) + 1, len(background.waves))
        stop = len(frames) if last <= t else min(len(frames), k + last - t)
        waves = background.waves_of(t)
        moved = torch.cat([motion.displacement(first + j, centre) for j in range(k, stop)])
        scales[k:stop] = fit_scales(flat[k:stop], waves, moved, background.free, background.variance, _SCALE_SPREAD)
        rest[k:stop] = flat[k:stop] - waves.images(moved, scales[k:stop]).view_as(flat[k:stop])
        k = stop
    return rest, scales
