"""The report's charts of a movie."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from common.report.counting import numbers
from common.report.figures import BLUE, COLOURS, VERMILION, chart
from common.report.movie_data import Filmed


@chart
def plot_tracks(figure: Figure, movie: Filmed) -> None:
    """The mean of the frames with the way of every particle on it."""
    axes = figure.subplots()
    axes.grid(False)
    mean = numbers(movie.mean)
    height, width = (size * movie.pixel_size for size in mean.shape)
    half = movie.pixel_size / 2
    low, high = np.nanquantile(mean, (0.01, 0.99))
    place = (-half, width - half, height - half, -half)
    axes.imshow(mean, cmap="gray", vmin=low, vmax=high, extent=place, rasterized=True)
    for k, (particle, colour) in enumerate(zip(movie.particles, COLOURS * (1 + len(movie.particles)), strict=False)):
        path = np.where(numbers(particle.seen)[:, None] > 0, numbers(particle.path), np.nan)
        axes.plot(path[:, 0], path[:, 1], color=colour, linewidth=0.8, label=f"particle {k + 1}")
        known = path[np.isfinite(path[:, 0])]
        if len(known):
            axes.annotate(f"{k + 1}", known[0], color=colour, fontsize=11, fontweight="bold")
    axes.set(xlabel="x (Å)", ylabel="y (Å)", xlim=(-half, width - half), ylim=(height - half, -half), aspect="equal")


@chart
def plot_ring_peaks(figure: Figure, movie: Filmed) -> None:
    """Strongest over typical power on each ring, with the graphene and without."""
    axes = figure.subplots()
    frequencies = numbers(movie.frequencies)
    axes.plot(frequencies, numbers(movie.before), color=VERMILION, linestyle="--", label="with graphene")
    axes.plot(frequencies, numbers(movie.after), color=BLUE, label="without")
    axes.set(xlabel="spatial frequency (1/Å)", ylabel="strongest / typical power", yscale="log", xlim=(0, None))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.legend(loc="upper right")
