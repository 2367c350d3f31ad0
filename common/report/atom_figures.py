"""The report's charts of atoms."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.report.counting import Array, count_pairs, numbers
from common.report.data import AtomSites
from common.report.figures import BLUE, INK, VERMILION, bins_of, chart, draw_histogram


@chart
def plot_sigmas(figure: Figure, atoms: AtomSites) -> None:
    """Number of atoms by sigma, with the Cramér-Rao bound as an outline."""
    axes = figure.subplots()
    sigmas, bounds = 100 * numbers(atoms.sigmas), 100 * numbers(atoms.bounds)
    bins = bins_of(sigmas, bounds)
    draw_histogram(axes, sigmas, bins, BLUE, label="reported sigma")
    if bounds.size:
        bounds = bounds[np.isfinite(bounds)]
        axes.hist(bounds, bins, histtype="step", color=VERMILION, linewidth=1.6, label="Cramér-Rao bound")
        axes.set_ylim(0, axes.get_ylim()[1] * 1.22)
        axes.legend(loc="upper right", ncols=2)
    axes.set(xlabel="sigma (pm)", ylabel="atoms")


@chart
def plot_sigma_against_bound(figure: Figure, atoms: AtomSites) -> None:
    """Reported sigma of each atom against its Cramér-Rao bound, with the line where they are equal."""
    axes = figure.subplots()
    x, y = 100 * numbers(atoms.bounds), 100 * numbers(atoms.sigmas)
    axes.scatter(x, y, s=16, color=BLUE, alpha=0.7, linewidth=0, rasterized=len(x) > 3000)
    finite = np.concatenate((x, y))[np.isfinite(np.concatenate((x, y)))]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    pad = 0.08 * (high - low) or 0.1
    axes.axline((low, low), slope=1, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    limits = (low - pad, high + pad)
    axes.set(xlabel="Cramér-Rao bound (pm)", ylabel="reported sigma (pm)", xlim=limits, ylim=limits)
    axes.text(0.97, 0.05, "dashed: sigma = bound", ha="right", transform=axes.transAxes, fontsize=8.5, color=INK)


@chart
def plot_sigma_by_radius(figure: Figure, atoms: AtomSites) -> None:
    """Sigma against the distance from the centre of the particle: the surface is usually known less well."""
    axes = figure.subplots()
    positions, sigmas = numbers(atoms.positions), 100 * numbers(atoms.sigmas)
    radius = np.linalg.norm(positions - positions.mean(0), axis=1)
    axes.scatter(radius, sigmas, s=16, color=BLUE, alpha=0.7, linewidth=0, rasterized=len(radius) > 3000)
    axes.set(xlabel="distance from the centre of the atoms (Å)", ylabel="sigma (pm)")


@chart
def plot_b_factors(figure: Figure, atoms: AtomSites) -> None:
    """Number of atoms by B factor."""
    axes = figure.subplots()
    b_factors = numbers(atoms.b_factors)
    draw_histogram(axes, b_factors, bins_of(b_factors), BLUE)
    axes.set(xlabel="B factor (Å²)", ylabel="atoms")


@chart
def plot_neighbour_distances(figure: Figure, distances: Array) -> None:
    """Number of atoms by the distance to the nearest other atom (angstrom)."""
    axes = figure.subplots()
    draw_histogram(axes, distances, bins_of(distances, most=40), BLUE)
    axes.set(xlabel="distance to the nearest neighbour (Å)", ylabel="atoms")


@chart
def plot_pair_distances(figure: Figure, positions: Array, limit: float) -> None:
    """Number of atom pairs by distance, up to ``limit`` (angstrom)."""
    edges, counts = count_pairs(positions, limit)
    axes = figure.subplots()
    axes.stairs(counts, edges, fill=True, color=BLUE)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="distance between two atoms (Å)", ylabel="pairs", xlim=(0, limit))
