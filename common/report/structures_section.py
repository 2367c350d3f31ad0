"""Structures found in one stack, and what differs between them, atom by atom."""

from __future__ import annotations

from common.report.sections import number, section, table, text
from common.report.structure_data import StructureDifference, Structures

_SHOWN = 60  # rows of each table; all are in differences.csv


def show_structures(structures: Structures) -> str:
    """A table of the classes, then one for each pair of them."""
    names = ("class", "images", "mean posterior", "above 0.99", "atoms", "median sigma", "resolution")
    rows = [
        (f"{k}", f"{n:,}", number(mean, 4), f"{100 * sure:.1f} %", f"{atoms:.0f}", number(sigma, 2, "pm"),
         number(resolution, 2, "Å"))
        for k, (n, mean, sure, atoms, sigma, resolution) in enumerate(structures.classes, start=1)
    ]  # fmt: skip
    words = (
        "The images show more than one structure. Each image belongs to the class under whose atoms it is likeliest; "
        "the posterior says how sure that is. Each class has maps, atoms and a report of its own in its folder."
    )
    parts = [f"<p>{words}</p>", table(names, rows)]
    for (first, second, atoms), mirrored, shared in zip(
        structures.differences, structures.mirrored, structures.shared, strict=True
    ):
        parts.append(_pair(first, second, atoms, mirrored, shared))
    return section("structures", "Structures", *parts)


def _pair(first: int, second: int, atoms: tuple[StructureDifference, ...], mirrored: bool, shared: int) -> str:
    hand = f" Class {second} is shown as its mirror image, which fits better; images do not tell." if mirrored else ""
    moved = sum(row.what == "moved" for row in atoms)
    words = (
        f"Class {second} laid on class {first}: {shared} atoms within 0.5 Å of each other, {moved} of them moved by "
        f"more than five sigmas; {sum(row.atom_second is None for row in atoms)} only in class {first}, "
        f"{sum(row.atom_first is None for row in atoms)} only in class {second}.{hand}"
    )
    names = ("", f"atom, class {first}", f"atom, class {second}", "distance", "sigmas", f"class {first}, Å",
             f"class {second}, Å")  # fmt: skip
    rows = [
        (row.what, _or_blank(row.atom_first), _or_blank(row.atom_second),
         "" if row.distance is None else number(100 * row.distance, 1, "pm"),
         "" if row.sigmas is None else number(row.sigmas, 1), _place(row.place_first), _place(row.place_second))
        for row in atoms[:_SHOWN]
    ]  # fmt: skip
    more = f"<p>{len(atoms) - _SHOWN} more in differences.csv.</p>" if len(atoms) > _SHOWN else ""
    return f"<p>{text(words)}</p>{table(names, rows) if rows else ''}{more}"


def _or_blank(value: int | None) -> str:
    return "" if value is None else str(value)


def _place(place: tuple[float, float, float] | None) -> str:
    return "" if place is None else ", ".join(f"{x:.2f}" for x in place)
