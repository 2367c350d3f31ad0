"""The section of the atoms: the ones that turn, the table, and the histograms."""

from __future__ import annotations

import json
import math
from typing import Any, TypedDict

import numpy as np
from torch import Tensor

from common.report import atom_figures, counting
from common.report.data import AtomSites
from common.report.sections import figure, grid, median, number, section, text


class Field(TypedDict):
    """A column of the table; ``digits`` after the point."""

    key: str
    name: str
    unit: str
    digits: int


class AtomTable(TypedDict):
    """All that the page's script shows."""

    fields: list[Field]
    columns: dict[str, list[Any]]
    spacing: float


PAIR_REACH = 12.0  # angstrom; farther pairs say little, and 20,000 atoms have 200 million of them


def _column(values: Tensor, scale: float, digits: int) -> list[float | None]:
    return [round(v, digits) if math.isfinite(v) else None for v in (scale * counting.numbers(values)).tolist()]


def atom_table(atoms: AtomSites) -> AtomTable:
    """What the page's script shows: the fields of the table and its columns, ready for JSON (NaN becomes null).

    Sigmas and bounds are in picometres, positions in angstrom; ``spacing`` is the median nearest-neighbour distance.
    """
    given: list[tuple[str, str, str, int, Tensor | None, float]] = [
        ("height", "height", "", 3, atoms.heights, 1.0),
        ("b_factor", "B", "Å²", 2, atoms.b_factors, 1.0),
        ("sigma", "sigma", "pm", 2, atoms.sigmas, 100.0),
        ("bound", "bound", "pm", 2, atoms.bounds, 100.0),
    ]
    given = [(axis, axis, "Å", 3, atoms.positions[:, i], 1.0) for i, axis in enumerate("xyz")] + given
    fields: list[Field] = [
        {"key": "number", "name": "atom", "unit": "", "digits": 0},
        {"key": "symbol", "name": "species", "unit": "", "digits": 0},
    ]
    columns: dict[str, list[Any]] = {"number": list(range(1, len(atoms.symbols) + 1)), "symbol": list(atoms.symbols)}
    for key, name, unit, digits, values, scale in given:
        if values is not None:
            fields.append({"key": key, "name": name, "unit": unit, "digits": digits})
            columns[key] = _column(values, scale, digits)
    distances = counting.nearest_distances(_finite_positions(atoms))
    spacing = float(np.median(distances)) if distances.size else 2.5
    return {"fields": fields, "columns": columns, "spacing": spacing}


def _finite_positions(atoms: AtomSites) -> counting.Array:
    positions = counting.numbers(atoms.positions)
    return positions[np.isfinite(positions).all(1)]


def _json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    dense = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return dense.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _viewer(table: AtomTable) -> str:
    fields = table["fields"]
    fields = table["fields"]
    named = {"sigma": "sigma", "b_factor": "B factor", "height": "height", "symbol": "species"}
    keys = [f["key"] for f in fields]
    options = "".join(f'<option value="{key}">{name}</option>' for key, name in named.items() if key in keys)
    heads = "".join(
        f'<th aria-sort="none"{"" if f["key"] == "symbol" else " class=number"}>'
        f"<button>{f['name']}{' (' + f['unit'] + ')' if f['unit'] else ''}</button></th>"
        for f in fields
    )
    return f"""
<noscript><p>The atoms in 3D and their table need JavaScript. The same numbers are in atoms.xyz.</p></noscript>
<p id="viewer-missing" hidden>This browser offers no WebGL, so the atoms cannot be shown in 3D; see the table.</p>
<div class="controls" id="viewer-controls">
<label>Colour by <select id="colour">{options}</select></label>
<span id="legend"><span></span><i></i><span></span></span>
<label>Size <input id="size" type="range" min="0.1" max="0.6" step="0.02" value="0.34"></label>
<label><input id="neighbours" type="checkbox"> nearest neighbours</label>
<button id="reset" type="button">Whole particle</button>
</div>
<div id="viewer" role="img" aria-label="The atoms in 3D"></div>
<p id="picked" class="soft">Drag to turn; pinch, or click and scroll, to zoom. Click an atom, or a row of the table.</p>
<h3>Atom by atom</h3>
<div class="scroll"><table id="atom-table"><thead><tr>{heads}</tr></thead><tbody></tbody></table></div>
<script id="atom-data" type="application/json">{_json(table)}</script>"""


def show_atoms(atoms: AtomSites) -> str:
    """The atoms in 3D, their table, and what their distances and sigmas look like."""
    n = len(atoms.symbols)
    if n == 0:
        return section("atoms", "Atoms", "<p>No atoms were found.</p>")
    kinds = sorted(set(atoms.symbols), key=lambda s: (-atoms.symbols.count(s), s))
    species = ", ".join(f"{atoms.symbols.count(s)} {text(s)}" for s in kinds)
    words = f"{n:,} atoms ({species})."
    if n > 1000:
        words += " The table shows the first 1,000 in its order; all are in atoms.xyz."
    shown = section("atoms", "Atoms", f"<p>{words}</p>", _viewer(atom_table(atoms)))
    return shown + show_distances(atoms) + show_sigmas(atoms)


def show_distances(atoms: AtomSites) -> str:
    """Histograms of nearest-neighbour and of pair distances; nothing for fewer than two atoms."""
    positions = _finite_positions(atoms)
    if len(positions) < 2:
        return ""
    nearest = counting.nearest_distances(positions)
    extent = float(np.linalg.norm(np.ptp(positions, axis=0)))
    limit = min(PAIR_REACH, extent) if extent > 0 else 1.0
    low, middle, high = (number(f(nearest), 3, "Å") for f in (np.min, np.median, np.max))
    caption = f"Median {middle}, shortest {low}, longest {high}."
    reach = f"All pairs up to {number(limit, 1, 'Å')}."
    drawings = (
        figure(atom_figures.plot_neighbour_distances(nearest), "Nearest-neighbour distances", caption),
        figure(atom_figures.plot_pair_distances(positions, limit), "Pair distances", reach),
    )
    return section("distances", "Distances between atoms", grid(*drawings))


def show_sigmas(atoms: AtomSites) -> str:
    """How well the positions are known; nothing when there are no sigmas."""
    if atoms.sigmas is None:
        return ""
    unknown = int((~np.isfinite(counting.numbers(atoms.sigmas))).sum())
    middle = number(median(100 * atoms.sigmas), 2, "pm")
    words = f"Sigma is {text(atoms.sigma_definition)}; its median is <b>{middle}</b>."
    if unknown:
        words += f" {unknown} of {len(atoms.symbols)} atoms have no sigma: they are left out of the charts."
    drawings = [figure(atom_figures.plot_sigmas(atoms), "Histogram of sigma", "How many atoms are known how well.")]
    if atoms.bounds is not None:
        ratio = median(atoms.sigmas / atoms.bounds)
        caption = f"No unbiased estimate can be better than the bound. Median of sigma / bound: <b>{number(ratio)}</b>."
        drawings.append(
            figure(atom_figures.plot_sigma_against_bound(atoms), "Sigma against the Cramér-Rao bound", caption)
        )
    caption = "Atoms at the surface against atoms inside."
    drawings.append(figure(atom_figures.plot_sigma_by_radius(atoms), "Sigma by radius", caption))
    if atoms.b_factors is not None:
        caption = f"Median {number(median(atoms.b_factors), 2, 'Å²')}."
        drawings.append(figure(atom_figures.plot_b_factors(atoms), "Histogram of B factor", caption))
    return section("sigmas", "How well the atoms are known", f"<p>{words}</p>", grid(*drawings))
