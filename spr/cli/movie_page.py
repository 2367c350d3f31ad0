"""What the page of a movie shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common.io.movie import Movie
from common.report import Filmed, FilmedParticle
from spr.background import without_graphene
from spr.movies import Track, TrackedMovie
from spr.tumbling import describe_wandering

_LOOKED_AT = 100  # frames, for the mean and the spectra of the report


def way_of(track: Track) -> list[tuple[str, float]]:
    """How a particle moves in the plane: metrics by name."""
    frames = track.seen.nonzero()[:, 0]
    if len(frames) < 2:
        return []
    found = describe_wandering(track.positions[frames], frames)
    return [("diffusion_angstrom2_per_frame", found.diffusion), ("centre_error_angstrom", found.error)]


def filmed(movie: Movie, tracked: TrackedMovie, results: Sequence[tuple[str, Mapping[str, float], bool]]) -> Filmed:
    """What the page shows of the movie, from some of its frames."""
    wanted = set(torch.linspace(0, len(movie) - 1, min(len(movie), _LOOKED_AT)).round().long().tolist())
    total, before, after = torch.zeros(movie.frame_shape), torch.zeros(()), torch.zeros(())
    free = tracked.background.free
    for t in sorted(wanted):
        frame = movie.frames(t, t + 1)
        rest, _ = without_graphene(frame, t, tracked.background, tracked.motion)
        total += frame[0]
        before = before + _power((frame - frame.mean())[0] * free)
        after = after + _power(rest[0] * free)
    frequencies, rings = _rings(movie)
    particles = tuple(
        FilmedParticle(
            track.positions,
            track.seen,
            track.radius,
            status,
            int(metrics["atoms"]) if "atoms" in metrics else None,
            f"particle_{k:03d}/report.html",
        )
        for k, (track, (status, metrics, _)) in enumerate(zip(tracked.tracks, results, strict=True), start=1)
    )
    peaks = [torch.stack([power[ring].max() / power[ring].median() for ring in rings]) for power in (before, after)]
    return Filmed(total / len(wanted), movie.pixel_size, frequencies, peaks[0], peaks[1], particles)


def _power(image: Tensor) -> Tensor:
    return torch.fft.rfft2(image).abs().square()


def _rings(movie: Movie) -> tuple[Tensor, list[Tensor]]:
    """Frequencies (k,), 1/angstrom, and the masks of the rings around them in the half spectrum of a frame."""
    height, width = movie.frame_shape
    y = torch.fft.fftfreq(height, movie.pixel_size)[:, None]
    x = torch.fft.rfftfreq(width, movie.pixel_size)
    step = 2 / (min(height, width) * movie.pixel_size)
    number = (torch.sqrt(x**2 + y**2) / step).round().long()
    last = int(0.5 / movie.pixel_size / step)
    return torch.arange(1, last) * step, [number == k for k in range(1, last)]
