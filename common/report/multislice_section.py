"""Multislice images of the final atoms beside the measured images, image by image."""

from __future__ import annotations

from common.report.sections import mean, number, section, table
from common.report.structure_data import MultisliceScores


def show_multislice(scores: MultisliceScores) -> str:
    """A table with one row for each image."""
    names = ("image", "measured, model", "measured, multislice", "multislice, model")
    columns = (scores.numbers, scores.model, scores.multislice, scores.between)
    rows = [
        (int(row[0]), *(number(value, 3) for value in row[1:]))
        for row in zip(*(column.tolist() for column in columns), strict=True)
    ]
    words = (
        "The final atoms were put through multislice, which shares no code with the refinement, and compared with the "
        f"measured images: mean correlation <b>{number(mean(scores.multislice), 3)}</b>, that of the refined model "
        f"{number(mean(scores.model), 3)}; of multislice and model with each other {number(mean(scores.between), 4)}. "
        f"B factor of the atoms: {number(scores.b_factor, 1, 'Å²')}."
    )
    return section("multislice", "Multislice check", f"<p>{words}</p>", table(names, rows))
