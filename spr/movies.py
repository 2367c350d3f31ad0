"""From a movie's raw frames to one stack of background-free images for each particle.

motion -> background -> detection -> linking -> background beside the particles -> centres -> weights -> boxes
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from common.data import ImageStack, InputError
from common.io.movie import Movie
from spr.background import Background, block_means, free_of_particles, learn_background, without_graphene
from spr.detection import DetectionSettings, Disc, band_filter, band_power, binned, find_discs, shell_power
from spr.frame_weights import FrameWeights, WeightSettings, weigh_frames
from spr.graphene import GrapheneSettings
from spr.linking import LinkingSettings, link
from spr.motion import Motion, MotionSettings, estimate_motion
from spr.tracking import CentredBoxes, TrackingSettings, refine_path

_BIN = 1.4  # angstrom, of the maps that particles are looked for in


@dataclass(frozen=True)
class MovieSettings:
    """How particles are taken from a movie.

    box_size : pixels of the extracted images; 0: twice the particle's diameter and a margin.
    """

    box_size: int = 0
    motion: MotionSettings = field(default_factory=MotionSettings)
    graphene: GrapheneSettings = field(default_factory=GrapheneSettings)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    linking: LinkingSettings = field(default_factory=LinkingSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    weights: WeightSettings = field(default_factory=WeightSettings)


@dataclass(frozen=True)
class Track:
    """One particle through the movie.

    positions : (n, 2) of (x, y), angstrom from the first pixel's centre, in the raw frames.
    errors : (n, 2) standard errors, angstrom.
    seen : (n,) bool; False where the particle was lost or left the field: there the position is a guess.
    gain : (n,) nats by which each frame shows it.
    radius : angstrom.
    weights : what each frame is worth, and why not.
    """

    positions: Tensor
    errors: Tensor
    seen: Tensor
    gain: Tensor
    radius: float
    weights: FrameWeights


@dataclass(frozen=True)
class TrackedMovie:
    """A movie whose motion, background and particles are known. fringes : (n, groups) graphene contrast per frame."""

    motion: Motion
    background: Background
    tracks: tuple[Track, ...]
    intensity: Tensor
    fringes: Tensor
    notes: tuple[str, ...]


def track_movie(
    movie: Movie, settings: MovieSettings | None = None, *, positions: Tensor | None = None
) -> TrackedMovie:
    """Find and follow every particle.

    Parameters
    ----------
    movie : at least 2 frames.
    positions : (m, 2) of (x, y), angstrom, of particles in the first frames; found when None.

    Returns
    -------
    TrackedMovie, the particles seen longest first.

    Raises
    ------
    InputError : no particle is found, or a given position lies outside the frame.
    """
    settings = settings or MovieSettings()
    motion = estimate_motion(movie, settings.motion)
    means = block_means(movie, motion)
    everywhere = torch.ones(movie.frame_shape)
    rough = learn_background(movie, motion, everywhere, settings.graphene, means=means)
    windows = _detect(movie, motion, rough, settings.detection)
    linked = link(windows, settings.linking)
    if positions is not None:
        linked = _given(linked, positions, movie)
    if not linked:
        raise InputError(
            f"{movie.files[0]}: no particle stands out of the background; give positions or a lower "
            "detection.significance"
        )
    ways = [_way(*each, len(movie), settings.detection.frames) for each in linked]
    radii = [_radius(discs) for _, discs in linked]
    free = free_of_particles(movie.frame_shape, movie.pixel_size, list(zip((w for w, _ in ways), radii, strict=True)))
    background = learn_background(movie, motion, free, settings.graphene, means=means)
    boxes = [_box_pixels(radius, movie) for radius in radii]
    cut, intensity, fringes = _cut(movie, motion, background, [w for w, _ in ways], boxes)
    found = []
    for images, (way, seen), radius in zip(cut, ways, radii, strict=True):
        fit = refine_path(images, way, radius, movie.pixel_size, background.noise, settings.tracking)
        found.append((fit.path.positions.float(), fit.path.covariance.diagonal(dim1=1, dim2=2).sqrt(), fit.gain, seen))
    tracks = []
    for k, (centres, errors, gain, seen) in enumerate(found):
        overlapped = torch.zeros(len(movie), dtype=torch.bool)
        for j, other in enumerate(found):
            if j != k:
                overlapped |= ((centres - other[0]).norm(dim=1) < radii[k] + radii[j]) & other[3]
        inside = _inside(centres, movie, 0.5 * radii[k])
        weights = weigh_frames(gain, seen & inside, overlapped, intensity, fringes, settings.weights)
        tracks.append(Track(centres, errors.float(), seen & inside, gain, radii[k], weights))
    return TrackedMovie(motion, background, tuple(tracks), intensity, fringes, (*movie.notes, *motion.notes))


def extract(
    movie: Movie, tracked: TrackedMovie, settings: MovieSettings | None = None
) -> list[tuple[ImageStack, Tensor]]:
    """Background-free images of every particle.

    Returns
    -------
    For each track: the stack (n, d, d) of raw counts less graphene, cut at whole pixels so that the noise stays as it
    was, its mean that of the frame; and (n, 2) of (x, y), angstrom, where the particle's centre lies from pixel
    ``d // 2``: the shifts of `Poses`. Beyond the frame's border the mean is put.
    """
    settings = settings or MovieSettings()
    sizes = [settings.box_size or _box_pixels(track.radius, movie) for track in tracked.tracks]
    ways = [track.positions for track in tracked.tracks]
    cut, intensity, _ = _cut(movie, tracked.motion, tracked.background, ways, sizes)
    result = []
    for boxes, way, size in zip(cut, ways, sizes, strict=True):
        centre = boxes.corners + (size // 2) * movie.pixel_size
        stack = ImageStack(boxes.images + intensity[:, None, None], movie.pixel_size)
        result.append((stack, way - centre))
    return result


def _detect(movie: Movie, motion: Motion, background: Background, settings: DetectionSettings) -> list[list[Disc]]:
    """Discs of excess power in every window of frames; the band is learned in a first look at a part of the movie."""
    n, pixel = len(movie), movie.pixel_size
    noise = background.noise
    white = noise[len(noise) // 3 :].median()
    signal = (noise - 1.02 * torch.minimum(noise, white)).clamp(min=0)
    signal = torch.where(signal.max() > 0, signal, torch.ones_like(signal))
    factor = max(1, round(_BIN / pixel))
    for look in range(2):
        filter_ = band_filter(signal, noise if look else torch.full_like(noise, float(white)), pixel, movie.frame_shape)
        freedom = float(filter_.square().mean() ** 2 / filter_.pow(4).mean()) / pixel**2
        found: list[list[Disc]] = []
        starts = range(0, n, settings.frames)
        for w, first in enumerate(starts):
            if look == 0 and w % max(1, len(starts) // 12):
                continue
            frames = movie.frames(first, min(first + settings.frames, n))
            power, count = torch.zeros(()), len(frames)
            rest, _ = without_graphene(frames, first, background, motion)
            power = binned(band_power(rest, filter_), factor).mean(0)
            discs = find_discs(power, factor * pixel, freedom * count, settings)
            offset = (factor * 0.5 - 0.5) * pixel - factor * pixel * 0.5  # bins' centres count from their edge
            found.append([disc._replace(x=disc.x + offset, y=disc.y + offset) for disc in discs])
            if look == 0 and discs:
                signal, noise = _inside_outside(rest, discs, pixel, signal, noise)
    return found


def _inside_outside(
    rest: Tensor, discs: list[Disc], pixel: float, signal: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Spectra of the particles and of the background by shells, a running mean with those known so far."""
    free = free_of_particles(
        (rest.shape[1], rest.shape[2]), pixel, [(torch.tensor([[disc.x, disc.y]]), disc.radius) for disc in discs]
    )
    held = 1 - free
    if float(held.mean()) in (0.0, 1.0):
        return signal, noise
    outside = shell_power(rest * free, pixel)[0] / free.sum()
    inside = shell_power(rest * held, pixel)[0] / held.sum()
    return 0.7 * signal + 0.3 * (inside - outside).clamp(min=0), 0.7 * noise + 0.3 * outside


def _given(
    linked: list[tuple[list[int], list[Disc]]], positions: Tensor, movie: Movie
) -> list[tuple[list[int], list[Disc]]]:
    """The tracks that start nearest to the given positions; where there is none, the position itself."""
    height, width = (s * movie.pixel_size for s in movie.frame_shape)
    chosen = []
    for k, (x, y) in enumerate(positions.tolist()):
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(
                f"position {k + 1} is ({x:g}, {y:g}) angstrom, expected within the frame of {width:g} x {height:g}"
            )
        near = [each for each in linked if math.hypot(each[1][0].x - x, each[1][0].y - y) < each[1][0].radius + 5.0]
        typical = float(np.median([d.radius for _, discs in linked for d in discs])) if linked else 10.0
        chosen.append(near[0] if near else ([0], [Disc(x, y, typical, 0.0, 0.0)]))
    return chosen


def _way(windows: list[int], discs: list[Disc], n: int, frames: int) -> tuple[Tensor, Tensor]:
    """Rough centres (n, 2) and where the particle was seen (n,): gaps of more than 3 windows count as lost."""
    middle = np.array([min(w * frames + (frames - 1) / 2, n - 1) for w in windows])
    t = np.arange(n)
    centres = np.stack([np.interp(t, middle, [getattr(disc, axis) for disc in discs]) for axis in "xy"], 1)
    seen = np.zeros(n, dtype=bool)
    for k, window in enumerate(windows):
        later = windows[k + 1] if k + 1 < len(windows) else window
        last = later if later - window <= 4 else window
        seen[window * frames : (last + 1) * frames] = True
    if windows[0] <= 3:
        seen[: windows[0] * frames] = True
    if math.ceil(n / frames) - 1 - windows[-1] <= 3:
        seen[windows[-1] * frames :] = True
    return torch.from_numpy(centres).float(), torch.from_numpy(seen)


def _radius(discs: list[Disc]) -> float:
    return float(np.quantile([disc.radius for disc in discs], 0.75))


def _box_pixels(radius: float, movie: Movie) -> int:
    """A box of twice the particle's diameter and 8 angstrom, even, no larger than the frame."""
    wanted = math.ceil((4 * radius * 0.85 + 8.0) / movie.pixel_size / 2) * 2
    return min(wanted, min(movie.frame_shape) // 2 * 2)


def _inside(centres: Tensor, movie: Movie, margin: float) -> Tensor:
    height, width = (s * movie.pixel_size for s in movie.frame_shape)
    x, y = centres[:, 0], centres[:, 1]
    return (x > -margin) & (x < width + margin) & (y > -margin) & (y < height + margin)


def _cut(
    movie: Movie, motion: Motion, background: Background, ways: list[Tensor], sizes: list[int]
) -> tuple[list[CentredBoxes], Tensor, Tensor]:
    """Boxes about each way from graphene-free frames in one pass; the frames' means; the fringes' contrast."""
    n, pixel = len(movie), movie.pixel_size
    height, width = movie.frame_shape
    images = [torch.zeros(n, size, size) for size in sizes]
    corners = [(way / pixel).round().long() - size // 2 for way, size in zip(ways, sizes, strict=True)]
    intensity, fringes = torch.empty(n), torch.ones(n, background.groups)
    for first, frames in movie.chunks():
        rest, fringes[first : first + len(frames)] = without_graphene(frames, first, background, motion)
        intensity[first : first + len(frames)] = frames.mean((1, 2))
        for box, corner, size in zip(images, corners, sizes, strict=True):
            for k in range(len(frames)):
                x, y = (int(v) for v in corner[first + k])
                x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + size, width), min(y + size, height)
                if x1 > x0 and y1 > y0:
                    box[first + k, y0 - y : y1 - y, x0 - x : x1 - x] = rest[k, y0:y1, x0:x1]
    return [CentredBoxes(b, c.float() * pixel) for b, c in zip(images, corners, strict=True)], intensity, fringes
