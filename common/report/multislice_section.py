"""Multislice images of the final atoms beside the measured images, image by image."""

from __future__ import annotations

from common.report.data import MultisliceScores
from common.report.sections import mean, number, section, text


def show_multislice(scores: MultisliceScores) -> str:
    """A table with one row for each image."""
    names = ("image", "measured, model", "measured, multislice", "multislice, model")
    head = "".join(f"<th>{text(name)}</th>" for name in names)
    columns = (scores.numbers, scores.model, scores.multislice, scores.between)
    rows = "".join(
        f"<tr><td>{int(row[0])}</td>{''.join(f'<td>{number(value, 3)}</td>' for value in row[1:])}</tr>"
        for row in zip(*(column.tolist() for column in columns), strict=True)
    )
    words = (
        "The final atoms were put through multislice, which shares no code with the refinement, and compared with the "
        f"measured images: mean correlation <b>{number(mean(scores.multislice), 3)}</b>, that of the refined model "
        f"{number(mean(scores.model), 3)}; of multislice and model with each other {number(mean(scores.between), 4)}. "
        f"B factor of the atoms: {number(scores.b_factor, 1, 'Å²')}."
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return section("multislice", "Multislice check", f"<p>{words}</p>", table)
