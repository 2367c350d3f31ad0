"""The section of the structure: what the atoms are arranged in, grains and boundaries, defects, strain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from common.atoms.analysis import Findings
from common.atoms.geometry import Floats
from common.atoms.strain import COMPONENTS
from common.report.figures import BLUE, GREEN, INK, LINES, ORANGE, PURPLE, SKY, VERMILION, chart
from common.report.sections import UNKNOWN, figure, grid, number, pairs, section, table

_KINDS = {"fcc": BLUE, "hcp": VERMILION, "bcc": GREEN, "ico": PURPLE, "other": ORANGE, "surface": SKY}
_MOST_ROWS = 40


@chart
def plot_pair_distribution(figure: Figure, distances: Floats, values: Floats, cutoff: float) -> None:
    """g(r) with the end of the first shell."""
    axes = figure.subplots()
    axes.plot(distances, values, color=BLUE)
    axes.axhline(1, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.axvline(cutoff, color=VERMILION, linewidth=1)
    axes.set(xlabel="distance (Å)", ylabel="g(r)", xlim=(0, None), ylim=(0, None))


@chart
def plot_counts(figure: Figure, counts: dict[str, int]) -> None:
    """Atoms by local structure."""
    axes = figure.subplots()
    bars = axes.bar(list(counts), list(counts.values()), color=[_KINDS[name] for name in counts])
    axes.bar_label(bars, fontsize=8.5)
    axes.set(ylabel="atoms")


@chart
def plot_strain(figure: Figure, components: Floats) -> None:
    """Histograms of the six strain components (n, 6), as lines on common bins."""
    axes = figure.subplots()
    percent = 100 * components[np.isfinite(components).all(1)]
    span = float(np.quantile(np.abs(percent), 0.999)) or 0.1
    edges = np.linspace(-span, span, 41)
    for values, name, (colour, line) in zip(percent.T, COMPONENTS, LINES, strict=False):
        axes.stairs(np.histogram(values, edges)[0], edges, color=colour, linestyle=line, label=name, linewidth=1.3)
    axes.legend(loc="upper right", ncols=2)
    axes.set(xlabel="strain (%)", ylabel="atoms")


@chart
def plot_strain_maps(figure: Figure, positions: Floats, tensors: Floats) -> None:
    """xx, yy and xy of the atoms within 3 angstrom of the middle plane, seen along z."""
    height = positions[:, 2] - np.median(positions[:, 2])
    shown = (np.abs(height) < 3) & np.isfinite(tensors).all((1, 2))
    percent = 100 * tensors[shown]
    span = max(float(np.abs(percent).max()) if shown.any() else 0.0, 0.1)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (a, b) in zip(panels, ((0, 0), (1, 1), (0, 1)), strict=True):
        x, y = positions[shown, 0], positions[shown, 1]
        mapped = axes.scatter(x, y, c=percent[:, a, b], s=7, cmap="PuOr", vmin=-span, vmax=span, rasterized=True)
        axes.set(aspect="equal", title="xyz"[a] + "xyz"[b], xlabel="x (Å)")
        axes.grid(False)
    panels[0].set_ylabel("y (Å)")
    figure.colorbar(mapped, ax=panels, label="strain (%)", shrink=0.8)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    more = f"<p>The {_MOST_ROWS} largest of {len(rows)}.</p>" if len(rows) > _MOST_ROWS else ""
    return f'<div class="scroll">{table(head, rows[:_MOST_ROWS])}</div>{more}'


def _vector(values: Floats, digits: int = 2) -> str:
    return UNKNOWN if not np.isfinite(values).all() else "(" + ", ".join(number(v, digits) for v in values) + ")"


def show_structure(positions: Floats, findings: Findings) -> str:
    """Local structure, grains, boundaries, planes, vacancies and strain as HTML; positions (n, 3) in angstrom."""
    counts = findings.counts()
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    reach = f"Neighbours are nearer than {number(findings.cutoff, 2, 'Å')} (line), the first minimum."
    shape = "Divided by the pairs of an even body of the particle's own shape."
    pair_chart = plot_pair_distribution(findings.pairs.distances, findings.pairs.values, findings.cutoff)
    charts = grid(
        figure(plot_counts(counts), "Atoms by local structure", f"Inside the particle, and its surface: {said}."),
        figure(pair_chart, "Pair distribution function", f"{reach} {shape}"),
    )
    first = section("structure", "Structure", charts)
    return first + show_grains(findings) + show_strain(positions, findings)


def show_grains(findings: Findings) -> str:
    """Grains with their lattices, the boundaries between them, planar defects and vacancies."""
    grains = findings.grains
    if not grains.lattices:
        return section("grains", "Grains", "<p>No crystal was found, so there is no lattice and no strain.</p>")
    rows = []
    for k, lattice in enumerate(grains.lattices):
        both = zip(lattice.constants, lattice.constant_sigmas, strict=True)
        constants = ", ".join(f"{number(value, 4)} ± {number(sigma, 4, 'Å')}" for value, sigma in both)
        kind = (str(k + 1), lattice.structure, f"{len(grains.members(k)):,}", constants)
        rows.append((*kind, number(100 * lattice.rms, 1, "pm")))
    parts = [_table(("grain", "structure", "atoms", "lattice constant a (and c)", "rms from lattice"), rows)]
    if findings.boundaries:
        largest = sorted(findings.boundaries, key=lambda b: -b.bonds)
        lines = [
            (f"{b.grains[0] + 1} | {b.grains[1] + 1}", b.kind, number(b.angle, 2, "°"), _vector(b.axis), str(b.bonds))
            for b in largest
        ]
        head = ("grains", "kind", "misorientation", "axis, crystal", "bonds across")
        parts += ["<h3>Boundaries</h3>", _table(head, lines)]
    if findings.planes:
        flat = [(p.kind, str(len(p.atoms)), _vector(p.normal), _vector(p.centre, 1)) for p in findings.planes]
        names = ("kind", "hcp atoms", "normal", "centre (Å)")
        parts += ["<h3>Twin planes and stacking faults</h3>", _table(names, flat)]
    vacancies = findings.vacancies
    words = f"{len(vacancies.positions)} sites inside the particle have no atom."
    parts.append(f"<h3>Vacancies</h3><p>{words}</p>")
    if len(vacancies.positions):
        around = zip(vacancies.positions, vacancies.grains + 1, vacancies.neighbours, strict=True)
        places = [(_vector(place), str(grain), str(count)) for place, grain, count in around]
        parts.append(_table(("place (Å)", "grain", "atoms around it"), places))
    return section("grains", "Grains and defects", *parts)


def show_strain(positions: Floats, findings: Findings) -> str:
    """Strain components, their precision and maps; nothing where no strain is known."""
    strain = findings.strain
    components, sigmas = strain.components(), strain.component_sigmas()
    known = np.isfinite(components).all(1)
    if not known.any():
        return ""
    precision = np.sqrt((sigmas[known] ** 2).mean(0))
    each = zip(COMPONENTS, findings.strain_rms(), precision, strict=True)
    precisions = pairs(
        (name, f"rms {number(100 * rms, 3, '%')}, precision {number(100 * s, 3, '%')}") for name, rms, s in each
    )
    words = (
        f"Strain of {int(known.sum()):,} atoms against the lattice fitted to their own grain, under a Gaussian of "
        f"{number(strain.kernel, 1, 'Å')} that ends at twins and grain boundaries. Tensor components along x, y, z."
    )
    maps = plot_strain_maps(positions, strain.tensors)
    drawings = grid(
        figure(plot_strain(components), "Histograms of the strain components", "All atoms of grains."),
        figure(maps, "Strain maps", "Atoms within 3 Å of the middle plane, seen along z."),
        f"<div><h3>Precision</h3>{precisions}</div>",
    )
    return section("strain", "Strain", f"<p>{words}</p>", drawings)
