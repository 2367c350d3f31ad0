"""One self-contained HTML page about a run: it loads nothing, and its own policy forbids the browser to try."""

from __future__ import annotations

import os
from importlib import resources

from common.io.files import atomic_write
from common.report.atom_section import show_atoms
from common.report.class_section import show_classes
from common.report.data import ReportData
from common.report.movie_section import show_movie
from common.report.multislice_section import show_multislice
from common.report.sections import (
    mean,
    median,
    number,
    show_examples,
    show_inputs,
    show_metrics,
    show_resolution,
    show_run,
    show_scores,
    show_starts,
    show_volume,
    text,
)
from common.report.structure_section import show_structure
from common.report.structures_section import show_structures

POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def _vendored(name: str) -> str:
    return resources.files("common.report").joinpath(name).read_text(encoding="utf-8")


def _facts(data: ReportData) -> str:
    """The numbers a reader asks for first."""
    facts: list[tuple[str, str]] = []
    if data.atoms is not None:
        facts.append(("atoms", f"{len(data.atoms.symbols):,}"))
        if data.atoms.sigmas is not None:
            facts.append(("median sigma", number(median(100 * data.atoms.sigmas), 2, "pm")))
    if data.classes is not None:
        facts.append(("classes", f"{len(data.classes.images):,}"))
    if data.fsc is not None:
        facts.append((f"resolution, FSC {data.fsc.threshold:g}", number(data.fsc.resolution, 2, "Å")))
    if data.starts is not None and data.starts.agrees is not None:
        facts.append(("starts that agree", f"{int(data.starts.agrees.sum())} of {len(data.starts.scores)}"))
    if data.scores is not None and data.scores.held_out is not None:
        held = data.scores.held_out.cpu().bool()
        values = data.scores.values.detach().cpu()
        facts.append(("score of fitted images", number(mean(values[~held]), 3)))
        facts.append(("score of held-out images", number(mean(values[held]), 3)))
    if data.scores is not None and data.scores.unexplained is not None:
        bad = int(data.scores.unexplained.sum())
        facts.append(("images no pose explains", f"{bad:,} of {len(data.scores.values):,}"))
    elif data.inputs is not None:
        facts.append(("images", f"{data.inputs.n_images:,}"))
    cells = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{cells}</dl>' if facts else ""


def _head(data: ReportData) -> str:
    messages = [("warning", "Warning", words) for words in data.warnings]
    messages += [("note", "Note", words) for words in data.notes]
    listed = "".join(f'<li class="{kind}"><strong>{name}</strong>{text(words)}</li>' for kind, name, words in messages)
    return (
        f'<h1>{text(data.title)}</h1><div class="verdict {data.outcome.replace(" ", "-")}">'
        f'<span class="badge">{data.outcome.capitalize()}</span><p class="text">{text(data.verdict)}</p>'
        f"{f'<ul class=messages>{listed}</ul>' if listed else ''}{_facts(data)}</div>"
    )


def _body(data: ReportData) -> list[tuple[str, str, str]]:
    """The sections that this run has, in order: id, name in the list of contents, HTML."""
    parts = [
        ("movie", "Movie", show_movie(data.movie) if data.movie else ""),
        ("structures", "Structures", show_structures(data.structures) if data.structures else ""),
        ("inputs", "What went in", show_inputs(data.inputs) if data.inputs else ""),
        ("atoms", "Atoms", show_atoms(data.atoms) if data.atoms else ""),
        ("structure", "Structure", _structure(data)),
        ("starts", "Starts", show_starts(data.starts) if data.starts else ""),
        ("resolution", "Resolution and directions", show_resolution(data.fsc, data.rotations)),
        ("volume", "Volume", show_volume(data.volume) if data.volume else ""),
        ("classes", "Classes", show_classes(data.classes) if data.classes else ""),
        ("images", "Images", show_examples(data.examples) if data.examples else ""),
        ("scores", "Held-out images", show_scores(data.scores) if data.scores else ""),
        ("multislice", "Multislice check", show_multislice(data.multislice) if data.multislice else ""),
        ("convergence", "Convergence", show_metrics(data.metrics)),
        ("run", "Settings", show_run(data)),
    ]
    return [part for part in parts if part[2]]


def _structure(data: ReportData) -> str:
    if data.atoms is None or data.findings is None:
        return ""
    return show_structure(data.atoms.positions.detach().cpu().numpy(), data.findings)


def render_report(data: ReportData) -> str:
    """Make the page.

    Parameters
    ----------
    data : what the run knows; sections that are None are left out.

    Returns
    -------
    HTML in one piece (write it as UTF-8): charts are inline SVG, pictures and scripts are embedded, nothing is loaded.
    Every string of ``data`` is shown as text, never read as HTML.
    """
    parts = _body(data)
    contents = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in parts)
    scripts = ""
    if data.atoms is not None and data.atoms.symbols:
        licence = f"/*\n{_vendored('3Dmol-LICENSE.txt')}*/\n"
        scripts = f"<script>{licence}{_vendored('3Dmol-min.js')}</script><script>{_vendored('page.js')}</script>"
    made = f"Made {text(data.date)}. " if data.date else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{text(data.title)}</title>
<style>{_vendored("page.css")}</style></head>
<body><main>{_head(data)}
<nav aria-label="Contents">{contents}</nav>
{"".join(html for _, _, html in parts)}
<footer>{made}This page needs no network.</footer>
</main>{scripts}</body></html>
"""


def write_report(path: str | os.PathLike[str], data: ReportData) -> None:
    """Write the page to ``path``, whole or not at all.

    Raises
    ------
    InputError : the folder is missing or not writable, or the disk is full; a page from before is left as it was.
    """
    page = render_report(data)
    with atomic_write(path, "w") as file:
        file.write(page)
