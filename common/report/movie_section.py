"""A movie: its mean with the particles' ways on it, its background, and where each particle's own page is."""

from __future__ import annotations

from common.report import movie_figures
from common.report.movie_data import Filmed
from common.report.sections import figure, grid, number, section, table


def show_movie(movie: Filmed) -> str:
    """Two charts, and a table with a row for each particle."""
    names = ("particle", "frames that show it", "radius", "atoms", "result", "page")
    rows = [
        (
            k,
            f"{int(particle.seen.sum()):,} of {len(particle.seen):,}",
            number(particle.radius, 1, "Å"),
            "" if particle.atoms is None else particle.atoms,
            particle.outcome,
            particle.report,
        )
        for k, particle in enumerate(movie.particles, start=1)
    ]
    tracks = figure(
        movie_figures.plot_tracks(movie),
        "mean of the frames with the particles' ways",
        "Mean of all frames, and where each particle went; its number stands where it was first seen.",
    )
    peaks = figure(
        movie_figures.plot_ring_peaks(movie),
        "strongest over typical power on each ring",
        "Beside the particles: the strongest power on each ring of the mean spectrum over the typical one. The peaks "
        "are graphene's reflections; what is left of them is what the particles' images still hold.",
    )
    return section("movie", "Movie", grid(tracks, peaks), table(names, rows))
