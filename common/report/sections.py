"""The sections of the page as HTML. Every string of the user passes through `text`."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import SupportsFloat

import numpy as np
import torch
from torch import Tensor

from common.data import Optics
from common.report import counting, figures, pictures
from common.report.data import (
    FourierShellCorrelation,
    ImageExamples,
    ImageScores,
    Inputs,
    Map,
    Metric,
    ReportData,
    Starts,
)

UNKNOWN = "not known"


def text(value: object) -> str:
    """A string that is safe between tags and in quoted attributes."""
    return html.escape(str(value), quote=True)


def number(value: SupportsFloat | None, digits: int = 2, unit: str = "") -> str:
    """A number for reading, "not known" where there is none."""
    if value is None or not math.isfinite(float(value)):
        return UNKNOWN
    shown = f"{round(float(value), digits) + 0.0:.{digits}f}".replace("-", "−")  # + 0.0: no "−0"
    return f"{shown} {unit}".rstrip()


def mean(values: Tensor | None) -> float | None:
    """Mean of the finite values; None where there are none."""
    known = counting.numbers(values)
    known = known[np.isfinite(known)]
    return float(known.mean()) if known.size else None


def median(values: Tensor | None) -> float | None:
    """Median of the finite values; None where there are none."""
    known = counting.numbers(values)
    known = known[np.isfinite(known)]
    return float(np.median(known)) if known.size else None


def section(name: str, title: str, *parts: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{"".join(parts)}</section>'


def grid(*parts: str) -> str:
    return f'<div class="grid">{"".join(parts)}</div>'


def figure(drawing: str, label: str, caption: str) -> str:
    """A chart with what it says in words."""
    drawing = drawing.replace("<svg", f'<svg role="img" aria-label="{text(label)}"', 1)
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def pairs(rows: Iterable[tuple[object, object]]) -> str:
    """A table of names and values."""
    lines = "".join(f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in rows)
    return f'<table class="pairs"><tbody>{lines}</tbody></table>'


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a head; everything is shown as text."""
    head = "".join(f"<th>{text(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def flatten(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Nested mappings as one list of dotted names and values."""
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        rows += flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return rows


def ranges(numbers: Sequence[int]) -> str:
    """Image numbers as "3, 17–19, 40"."""
    runs: list[list[int]] = []
    for value in sorted(numbers):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def scale_bar(width: float) -> str:
    """A bar of a round length for a picture ``width`` angstrom wide."""
    if not (math.isfinite(width) and width > 0):
        return ""
    rough = width / 4
    power = 10.0 ** math.floor(math.log10(rough))
    length = max(m * power for m in (1, 2, 5) if m * power <= rough)
    return f'<span class="bar" style="width:{100 * length / width:.2f}%">{length:g} Å</span>'


def picture(values: Tensor, window: tuple[float, float], pixel_size: float, label: str, caption: str = "") -> str:
    """A grey-scale image with a scale bar."""
    address = pictures.data_address(pictures.grey_png(values, *window))
    bar = scale_bar(values.shape[-1] * pixel_size)
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><div class="frame"><img src="{address}" alt="{text(label)}">{bar}</div>{below}</figure>'


def _span(values: Tensor, digits: int, unit: str) -> str:
    low, high = float(values.min()), float(values.max())
    a, b = number(low, digits), number(high, digits)
    return (f"{a} {unit}" if a == b else f"{a} to {b} {unit}").rstrip()


def _optics_rows(optics: Optics) -> list[tuple[str, str]]:
    if not optics.defocus.shape[0]:
        return []
    defocus = optics.defocus[:, :2].mean(1)
    name = "defocus (positive = underfocus)"
    return [
        ("voltage", _span(optics.voltage_kv, 0, "kV")),
        ("spherical aberration", _span(1000 * optics.spherical_aberration_mm, 1, "µm")),
        (name, _span(defocus, 0, "Å")),
        ("astigmatism, u − v", _span(optics.defocus[:, 0] - optics.defocus[:, 1], 0, "Å")),
        ("amplitude contrast", _span(optics.amplitude_contrast, 2, "")),
        ("focal spread, rms", _span(optics.focal_spread, 0, "Å")),
        ("convergence, rms half angle", _span(optics.convergence_mrad, 2, "mrad")),
    ]


def show_inputs(inputs: Inputs) -> str:
    files = "".join(
        f'<tr><td class="mono">{text(f.name)}</td><td class="mono">{text(f.sha256) or UNKNOWN}</td>'
        f'<td class="number">{UNKNOWN if f.size is None else f"{f.size:,}"}</td></tr>'
        for f in inputs.files
    )
    rows: list[tuple[object, object]] = [
        ("images", f"{inputs.n_images:,}"),
        ("box", f"{inputs.box_size} × {inputs.box_size} px = {number(inputs.box_size * inputs.pixel_size, 1, 'Å')}"),
        ("pixel size", number(inputs.pixel_size, 4, "Å")),
    ]
    if inputs.optics is None:
        optics = "<p>No optics were given: the images are taken as plain projections.</p>"
    else:
        optics = pairs(_optics_rows(inputs.optics))
    head = '<tr><th>file</th><th>SHA-256</th><th class="number">bytes</th></tr>'
    table = f"<h3>Files</h3><table><thead>{head}</thead><tbody>{files}</tbody></table>"
    return section("inputs", "What went in", grid(pairs(rows), optics), table if inputs.files else "")


def show_fsc(fsc: FourierShellCorrelation) -> str:
    first = next(iter(fsc.curves), "half maps")
    if fsc.resolution is None:
        words = f"The curve ({text(first)}) does not cross {fsc.threshold:g}, so no resolution can be stated."
    else:
        words = f"The curve ({text(first)}) crosses {fsc.threshold:g} at <b>{number(fsc.resolution, 2, 'Å')}</b>."
    words += " Maps from independent halves of the images: 1 where they agree, 0 where they are noise."
    label = f"Fourier shell correlation, resolution {number(fsc.resolution, 2, 'Å')}"
    return figure(figures.plot_fsc(fsc), label, words)


def show_directions(rotations: Tensor) -> str:
    counts, _, _ = counting.count_directions(rotations)
    total, cells = int(counts.sum()), counts.size
    empty = int((counts == 0).sum())
    words = (
        f"Directions along which {total:,} images look at the particle, in {cells} cells of equal solid angle: "
        f"{counts.mean():.1f} images a cell on average, {int(counts.max())} in the fullest, {empty} cells without any. "
        "Longitude and latitude in the frame of the volume."
    )
    return figure(figures.plot_view_directions(rotations), "Map of viewing directions", words)


def show_resolution(fsc: FourierShellCorrelation | None, rotations: Tensor | None) -> str:
    shown = [show_fsc(fsc)] if fsc is not None and fsc.curves else []
    if rotations is not None and len(rotations):
        shown.append(show_directions(rotations))
    return section("resolution", "Resolution and viewing directions", grid(*shown)) if shown else ""


def show_starts(starts: Starts) -> str:
    names = starts.names or tuple(str(i + 1) for i in range(len(starts.scores)))
    n = len(names)
    if n == 0:
        return ""
    words = f"Each of the {n} starts began from different random numbers."
    if n == 1:
        words = "There was one start, so there is nothing to compare it with."
    if starts.agrees is not None:
        words += f" <b>{int(starts.agrees.sum())} of {n}</b> belong to the consensus."
    parts = [figure(figures.plot_start_scores(starts, names), "Score of each start", f"Higher is better. {words}")]
    if starts.agreement is not None and n > 1:
        off = starts.agreement[~torch.eye(n, dtype=torch.bool, device=starts.agreement.device)]
        known = off[torch.isfinite(off)]
        caption = f"Pairwise {text(starts.agreement_name)}."
        if known.numel():
            caption += f" Between different starts: {number(known.min())} to {number(known.max())}."
        drawing = figures.plot_start_agreement(starts.agreement, starts.agreement_name, names)
        parts.append(figure(drawing, "Agreement of every pair of starts", caption))
    return section("starts", "Agreement of the starts", grid(*parts))


def show_volume(volume: Map) -> str:
    def tiles(planes: Mapping[str, Tensor], what: str) -> str:
        window = pictures.grey_window(torch.cat([p.flatten() for p in planes.values()]))
        captions = {name: f"{what}, {name[1]} to the right, {name[0]} down" for name in planes}
        shown = (picture(planes[n], window, volume.voxel_size, f"{what} {n}", captions[n]) for n in planes)
        return "".join(shown)

    slices = tiles(pictures.central_slices(volume.values), "slice")
    sums = tiles(pictures.projections(volume.values), "projection")
    d = volume.values.shape[-1]
    words = f"{d} × {d} × {d} voxels of {number(volume.voxel_size, 3, 'Å')}."
    words += " Above: one voxel thick, through the centre. Below: sums over the whole volume."
    return section("volume", "Volume", f"<p>{words}</p>", f'<div class="tiles">{slices}{sums}</div>')


def show_examples(examples: ImageExamples) -> str:
    if len(examples.numbers) == 0:
        return ""
    blur = 0.5 / examples.pixel_size if math.isfinite(examples.pixel_size) and examples.pixel_size > 0 else 2.0
    cells = [f'<div class="head">{h}</div>' for h in ("measured", "measured, smoothed", "model", "measured − model")]
    for i, group in enumerate(examples.groups):
        label = f"image {int(examples.numbers[i])}"
        score = f"{text(examples.score_name)} {number(examples.scores[i], 3)}"
        cells.append(f'<div class="row"><b>{text(group)}</b> · {label} · {score}</div>')
        measured, model = (t[i].detach().to("cpu", torch.float64) for t in (examples.measured, examples.model))
        smoothed, window = pictures.smooth(measured, blur), pictures.grey_window(measured)
        middle = sum(window) / 2 - float((measured - model).nanmean())
        residual_window = (window[0] - middle, window[1] - middle)
        for values, levels, name in (
            (measured, window, "measured"), (smoothed, pictures.grey_window(smoothed), "measured, smoothed"),
            (model, pictures.grey_window(model), "model"), (measured - model, residual_window, "residual"),
        ):  # fmt: skip
            cells.append(picture(values, levels, examples.pixel_size, f"{label}, {name}"))
    words = (
        "Measured − model has the grey scale of the measured image; where the model is right it is noise without a "
        f"trace of the particle. The smoothed copy (Gaussian, {number(blur * examples.pixel_size, 1, 'Å')}) and the "
        "model have grey scales of their own."
    )
    shown = f'<div class="compare pixels">{"".join(cells)}</div>'
    return section("images", "Images beside the model", f"<p>{words}</p>", shown)


def show_scores(scores: ImageScores) -> str:
    n = len(scores.values)
    if n == 0:
        return ""
    held = torch.zeros(n, dtype=torch.bool) if scores.held_out is None else scores.held_out.cpu().bool()
    values = scores.values.detach().cpu()
    fitted, left_out = mean(values[~held]), mean(values[held])
    unit = f" {scores.unit}".rstrip()
    words = f"Mean over {int((~held).sum()):,} fitted images: <b>{number(fitted, 3)}</b>{text(unit)}. "
    if held.any():
        words += (
            f"Mean over {int(held.sum()):,} images that the refinement never saw: "
            f"<b>{number(left_out, 3)}</b>{text(unit)}. "
            "When the second is much lower than the first, the model describes noise."
        )
    else:
        words += "No image was held out, so over-fitting cannot be judged here."
    parts = [figure(figures.plot_image_scores(scores), "Fitted and held-out scores", words)]
    if scores.unexplained is not None:
        bad = [i + 1 for i in scores.unexplained.cpu().nonzero().flatten().tolist()]
        share = f"{len(bad):,} of {n:,} images ({100 * len(bad) / n:.1f} %)"
        listed = f'<p class="mono">{ranges(bad)}</p>' if bad else ""
        if len(bad) > 200:
            listed = f"<details><summary>their numbers</summary>{listed}</details>"
        told = f"{share} are explained by no pose and count for little in the result. Rows of the input, from 1:"
        if not bad:
            told = f"Every one of the {n:,} images is explained by some pose."
        parts.append(f"<div><h3>Images that no pose explains</h3><p>{told}</p>{listed}</div>")
    return section("scores", "Fitted and held-out images", grid(*parts))


def show_metrics(metrics: Sequence[Metric]) -> str:
    panels: dict[str, list[Metric]] = {}
    for metric in metrics:
        if len(metric.values):
            panels.setdefault(metric.name, []).append(metric)
    shown = [figure(figures.plot_metric(lines), f"{name} by iteration", "") for name, lines in panels.items()]
    return section("convergence", "Convergence", grid(*shown)) if shown else ""


def show_run(data: ReportData) -> str:
    parts = []
    if data.command:
        parts.append(f'<h3>Command</h3><p class="mono">{text(data.command)}</p>')
    if data.seconds:
        parts.append("<h3>CPU time</h3>" + pairs((name, number(value, 1, "s")) for name, value in data.seconds.items()))
    for title, values in (("Settings", data.settings), ("Versions", data.versions)):
        if values:
            parts.append(f"<details><summary>{title}</summary>{pairs(flatten(values))}</details>")
    return section("run", "How it was run", *parts) if parts else ""
