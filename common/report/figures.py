"""The report's charts: numbers to inline SVG. Colours are Okabe and Ito's, and nothing is told by colour alone."""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from common.report.counting import Array, count_directions, numbers
from common.report.data import FourierShellCorrelation, ImageScores, Metric, Starts

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
INK = "#3b4652"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
LINES = [(COLOURS[i % 6], ("-", "--", "-.", ":")[i % 4]) for i in range(12)]
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names come from the user: a "$" is a dollar sign
    "axes.formatter.useoffset": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ecf0",
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
WIDTH, HEIGHT = 4.7, 2.9  # inches; small enough that the lettering can still be read on a phone
P = ParamSpec("P")


def _svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element that scales with the page; the same figure gives the same text."""
    FigureCanvasSVG(figure)
    out = io.StringIO()
    with rc_context({"svg.hashsalt": "report"}):
        layout = figure.get_layout_engine()
        if layout is not None:  # once, instead of at every draw
            layout.execute(figure)
            figure.set_layout_engine("none")
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, dpi=200, metadata=unsaid)
    svg = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", svg[svg.index("<svg") :], count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    mark = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]  # an id must be unique on the page
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{mark}{m[1]}"' if m[1] in used else "", svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{mark}", svg)


def chart(draw: Callable[Concatenate[Figure, P], None]) -> Callable[P, str]:
    """Turn a function that draws on a figure into one that returns SVG."""

    @wraps(draw)
    def to_svg(*args: P.args, **kwargs: P.kwargs) -> str:
        with rc_context(STYLE):
            figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
            draw(figure, *args, **kwargs)
            return _svg(figure)

    return to_svg


def clip(name: str, longest: int) -> str:
    """The name, its end left out when it is longer than ``longest`` characters."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def axis_label(name: str, unit: str = "", longest: int = 30) -> str:
    """An axis label with its unit, on up to three lines."""
    return textwrap.fill(clip(f"{name} ({unit})" if unit else name, 3 * longest - 10), longest)


def short_name(name: str) -> str:
    """A legend entry. Matplotlib hides those that begin with an underscore, so a space of no width goes before it."""
    return clip(f"\u200b{name}" if name.startswith("_") else name, 40)


def draw_histogram(axes: Axes, values: Array, bins: Any, colour: str, **style: Any) -> None:
    axes.hist(values[np.isfinite(values)], bins=bins, color=colour, edgecolor="white", linewidth=0.5, **style)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def bins_of(*samples: Array, most: int = 30) -> list[float]:
    values = np.concatenate([s[np.isfinite(s)] for s in samples])
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        half = 0.05 * abs(high) or 0.5
        low, high = low - half, high + half
    edges: list[float] = np.linspace(low, high, int(np.clip(2 * np.sqrt(values.size), 8, most)) + 1).tolist()
    return edges


@chart
def plot_fsc(figure: Figure, fsc: FourierShellCorrelation) -> None:
    """Fourier shell correlation against spatial frequency, with the threshold and the resolution."""
    axes = figure.subplots()
    frequencies = numbers(fsc.frequencies)
    for (name, values), (colour, line) in zip(fsc.curves.items(), LINES * (1 + len(fsc.curves)), strict=False):
        axes.plot(frequencies, numbers(values), color=colour, linestyle=line, label=short_name(name))
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.axhline(fsc.threshold, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    right = axes.get_yaxis_transform()
    axes.text(1.0, fsc.threshold + 0.015, f"{fsc.threshold:g}", ha="right", transform=right, fontsize=8.5)
    if fsc.resolution is not None and fsc.resolution > 0:
        axes.axvline(1 / fsc.resolution, color=VERMILION, linewidth=1)
        left = frequencies.size > 0 and 1 / fsc.resolution > 0.85 * np.nanmax(frequencies)
        axes.annotate(
            f"{fsc.resolution:.2f} Å", (1 / fsc.resolution, 0.75), xytext=(-5 if left else 5, 0), color="#a84700",
            textcoords="offset points", ha="right" if left else "left",
        )  # fmt: skip
    lowest = min([float(np.nanmin(v)) for v in map(numbers, fsc.curves.values()) if np.isfinite(v).any()] or [0.0])
    axes.set(xlabel="spatial frequency (1/Å)", ylabel="Fourier shell correlation")
    axes.set(xlim=(0, None), ylim=(min(-0.05, lowest - 0.03), 1.05))
    if len(fsc.curves) > 1:
        axes.legend(loc="lower left")


@chart
def plot_view_directions(figure: Figure, rotations: Tensor) -> None:
    """Number of images by viewing direction in the specimen's frame, in cells of equal solid angle (Mollweide map)."""
    counts, longitude, latitude = count_directions(rotations)
    axes = figure.add_subplot(projection="mollweide")
    axes.grid(False)
    axes.set_axisbelow(False)
    fine = 8  # the map bends the borders of cells, and the mesh is drawn with straight lines
    across = np.linspace(longitude[0], longitude[-1], fine * (len(longitude) - 1) + 1)
    up = np.interp(np.arange(fine * (len(latitude) - 1) + 1) / fine, np.arange(len(latitude)), latitude)
    shown = counts.repeat(fine, 0).repeat(fine, 1)
    mesh = axes.pcolormesh(across, up, shown, cmap="viridis", vmin=0, rasterized=True)
    meridians = ["−120°", "−60°", "0°", "60°", "120°"]
    axes.set_xticks(np.radians([-120, -60, 0, 60, 120]), meridians, color="white", fontsize=7.5)
    axes.set_yticks(np.radians([-60, -30, 0, 30, 60]), ["−60°", "−30°", "0°", "30°", "60°"])
    bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", shrink=0.6, aspect=30, pad=0.06)
    bar.set_label("images per cell of equal solid angle")
    bar.outline.set_visible(False)


@chart
def plot_start_scores(figure: Figure, starts: Starts, names: Sequence[str]) -> None:
    """Score of every start; filled marks belong to the consensus."""
    axes = figure.subplots()
    scores = numbers(starts.scores)
    agrees = np.ones(len(scores), bool) if starts.agrees is None else starts.agrees.cpu().numpy().astype(bool)
    place = np.arange(len(scores))
    axes.scatter(place[agrees], scores[agrees], s=70, color=BLUE, label="in the consensus", zorder=3)
    axes.scatter(place[~agrees], scores[~agrees], s=70, facecolor="white", edgecolor=VERMILION, linewidth=1.8,
                 marker="D", label="disagrees", zorder=3)  # fmt: skip
    axes.set_xticks(place, [clip(name, 12) for name in names])
    axes.set(xlabel="start", ylabel=axis_label(starts.score_name, starts.score_unit), xlim=(-0.6, len(scores) - 0.4))
    axes.margins(y=0.15)
    if starts.agrees is not None and not agrees.all():
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2)


@chart
def plot_start_agreement(figure: Figure, agreement: Tensor, label: str, names: Sequence[str]) -> None:
    """Agreement of every pair of starts, 0 to 1."""
    values = numbers(agreement)
    axes = figure.subplots()
    axes.grid(False)
    mesh = axes.pcolormesh(values, cmap="cividis", vmin=0, vmax=1, edgecolor="white", linewidth=1)
    centres = np.arange(len(values)) + 0.5
    axes.set_xticks(centres, [clip(name, 12) for name in names])
    axes.set_yticks(centres, [clip(name, 12) for name in names])
    if len(values) <= 10:
        for (row, column), value in np.ndenumerate(values):
            if np.isnan(value):
                continue
            axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=8.5,
                      color="black" if value > 0.6 else "white")  # fmt: skip
    axes.set(xlabel="start", ylabel="start", aspect="equal")
    axes.invert_yaxis()
    figure.colorbar(mesh, ax=axes, label=axis_label(label), shrink=0.9).outline.set_visible(False)


@chart
def plot_metric(figure: Figure, lines: Sequence[Metric]) -> None:
    """One quantity by iteration, a line per run; logarithmic when it spans more than two decades."""
    axes = figure.subplots()
    for metric, (colour, line) in zip(lines, LINES * (1 + len(lines)), strict=False):
        keep = np.unique(np.linspace(0, max(len(metric.values) - 1, 0), 400).astype(int))[: len(metric.values)]
        axes.plot(numbers(metric.iterations)[keep], numbers(metric.values)[keep], color=colour, linestyle=line,
                  label=short_name(metric.run), marker="o" if len(keep) < 4 else None, markersize=4)  # fmt: skip
    values = np.concatenate([numbers(metric.values) for metric in lines])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 100 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # the usual one is written in TeX
    axes.set(xlabel="iteration", ylabel=axis_label(lines[0].name, lines[0].unit))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(lines) <= 8 and any(metric.run for metric in lines):
        axes.legend(ncols=2)


@chart
def plot_image_scores(figure: Figure, scores: ImageScores) -> None:
    """Scores of the images used in the refinement and of those held out, as densities: the two can be compared."""
    axes = figure.subplots()
    values, held = numbers(scores.values), numbers(scores.held_out) > 0
    held = held if held.size else np.zeros(values.size, bool)
    bins = bins_of(values)
    known = np.isfinite(values)
    kinds = ((~held & known, BLUE, "-", "fitted"), (held & known, VERMILION, "--", "held out"))
    for chosen, colour, line, name in kinds:
        sample = values[chosen]
        if sample.size:
            coarse = bins if sample.size >= 100 else np.linspace(bins[0], bins[-1], 13).tolist()
            axes.hist(sample, coarse, density=True, histtype="stepfilled", color=colour, alpha=0.22)
            axes.hist(sample, coarse, density=True, histtype="step", color=colour, linestyle=line, linewidth=1.5,
                      label=f"{name}: {sample.size} images")  # fmt: skip
            axes.axvline(float(np.mean(sample)), color=colour, linestyle=line, linewidth=1)
    axes.set(xlabel=axis_label(scores.name, scores.unit, 48), ylabel="density of images")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
    if known.any():
        axes.legend(loc="upper left")
