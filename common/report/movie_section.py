"""A movie: its mean with the particles' ways on it, its background, and where each particle's own page is."""

from __future__ import annotations

from common.report import figures
from common.report.data import Filmed
from common.report.sections import figure, grid, number, section, text


def show_movie(movie: Filmed) -> str:
    """Two charts, and a table with a row for each particle."""
    names = ("particle", "frames that show it", "radius", "atoms", "result", "page")
    head = "".join(f"<th>{name}</th>" for name in names)
    lines = []
    for k, particle in enumerate(movie.particles, start=1):
        cells = (
            str(k),
            f"{int(particle.seen.sum()):,} of {len(particle.seen):,}",
            number(particle.radius, 1, "Å"),
            "" if particle.atoms is None else str(particle.atoms),
            particle.outcome,
            particle.report,
        )
        lines.append(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    tracks = figure(
        figures.plot_tracks(movie),
        "mean of the frames with the particles' ways",
        "Mean of all frames, and where each particle went; its number stands where it was first seen.",
    )
    peaks = figure(
        figures.plot_ring_peaks(movie),
        "strongest over typical power on each ring",
        "Beside the particles: the strongest power on each ring of the mean spectrum over the typical one. The peaks "
        "are graphene's reflections; what is left of them is what the particles' images still hold.",
    )
    return section("movie", "Movie", grid(tracks, peaks), table)
