"""STAR files as RELION writes them: named tables whose every row is one line.

gemmi does the parsing (quotes, comments, duplicate tags); before it, rows are held against the number of columns, line
by line, because CIF counts values only per table: a short row beside a long one would pass and shift all between.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from gemmi import cif
from torch import Tensor

from common.data import InputError
from common.io.files import atomic_write, require_file

_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_TOKEN = re.compile(r"""'[^\n]*?'(?=\s|$)|"[^\n]*?"(?=\s|$)|[^\s]+""")


@dataclass(frozen=True)
class StarTable:
    """One table of a STAR file; values stay the strings of the file.

    name : without ``data_``; "" where the file gives none.
    columns : tag names without the leading underscore, in the order of the file.
    rows : one tuple of strings per row.
    lines : the line of the file (1-based) each row stands on; empty for a table that was not read.
    looped : False for a list of tag-value pairs.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...] = ()
    looped: bool = True

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} values for the {len(self.columns)} columns of {self.name!r}")

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def strings(self, column: str) -> tuple[str, ...]:
        """The values of a column as they stand in the file, without quotes."""
        k = self.columns.index(column)
        return tuple(row[k] for row in self.rows)

    def where(self, row: int) -> str:
        """How a message calls a row (0-based here, 1-based there)."""
        return f"row {row + 1} (line {self.lines[row]})" if row < len(self.lines) else f"row {row + 1}"

    def with_column(self, column: str, values: Sequence[str]) -> StarTable:
        """The table with a column replaced where it stands, or appended."""
        if len(values) != len(self.rows):
            raise ValueError(f"{len(values)} values of {column} for {len(self.rows)} rows")
        if column in self.columns:
            k = self.columns.index(column)
            rows = tuple((*row[:k], str(v), *row[k + 1 :]) for row, v in zip(self.rows, values, strict=True))
            return StarTable(self.name, self.columns, rows, self.lines, self.looped)
        rows = tuple((*row, str(v)) for row, v in zip(self.rows, values, strict=True))
        return StarTable(self.name, (*self.columns, column), rows, self.lines, self.looped)


@dataclass(frozen=True)
class StarFile:
    """The tables of a STAR file in their order, and what was odd about it, in words."""

    path: Path
    tables: tuple[StarTable, ...]
    notes: tuple[str, ...] = ()

    def table(self, name: str) -> StarTable | None:
        """The table of that name, or None."""
        return next((table for table in self.tables if table.name == name), None)


def read_star(path: str | os.PathLike[str]) -> StarFile:
    """Read every table of a STAR file, strictly.

    Returns
    -------
    StarFile; quotes removed, values otherwise as written.

    Raises
    ------
    InputError : not text, no table, rows shorter or longer than the columns (with the line), a column named twice,
        two tables of one name, an open quote.
    """
    file = require_file(path)
    text, notes = _decode(file)
    row_lines = _check_rows(file, text)
    try:
        document = cif.read_string(text)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{file}: {_gemmi_message(error)}; expected a RELION STAR file") from None
    tables: list[StarTable] = []
    for block in document:
        name = block.name.strip()
        pairs: list[tuple[str, str]] = []
        for item in block:
            if item.loop is not None:
                tables.append(_table(file, name, item, row_lines))
            elif item.pair is not None:
                tag, value = item.pair
                pairs.append((tag, value))
            else:
                raise InputError(f"{file}: data_{name} holds a save frame, expected a RELION STAR file")
        if pairs:
            tables.append(_pairs_table(file, name, pairs))
    if not tables:
        raise InputError(f"{file}: holds no table, expected a RELION STAR file with data_particles")
    names = [table.name for table in tables]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{file}: the block data_{name} holds {names.count(name)} tables, expected one in a block")
    return StarFile(file, tuple(tables), notes)


def _decode(file: Path) -> tuple[str, tuple[str, ...]]:
    raw = file.read_bytes()
    control = _CONTROL.search(raw)
    if control:
        at = control.start()
        raise InputError(f"{file}: byte {at + 1} is {raw[at]:#04x}, expected text: this is not a STAR file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start + 1} is not UTF-8, expected text: not a STAR file") from None
    if "\r" not in text:
        return text, ()
    note = f"{file.name}: has Windows line ends (CRLF), which RELION refuses; read all the same, written with LF"
    return text.replace("\r\n", "\n").replace("\r", "\n"), (note,)


def _check_rows(file: Path, text: str) -> dict[int, list[int]]:
    """Hold each row of each loop against its columns; return the lines of the rows by the line of their ``loop_``."""
    rows: dict[int, list[int]] = {}
    loop, columns, in_header = 0, 0, False
    for number, line in enumerate(text.split("\n"), start=1):
        if line.startswith(";"):
            raise InputError(f"{file}: line {number} starts a text field (;), expected one row a line as RELION writes")
        tokens = _tokens(line)
        if not tokens:
            continue
        first = tokens[0].lower()
        if first.startswith("data_"):
            loop = 0
        elif first == "loop_":
            loop, columns, in_header = number, 0, True
            rows[loop] = []
            if len(tokens) > 1:
                raise InputError(f"{file}: line {number} has {tokens[1]!r} after loop_, expected a new line")
        elif not loop:
            continue
        elif first.startswith("_"):
            if not in_header:
                loop = 0  # a tag after the rows begins a list of pairs
                continue
            columns += 1
            if len(tokens) > 1:
                raise InputError(f"{file}: line {number} has {tokens[1]!r} after {tokens[0]}, expected a new line")
        else:
            in_header = False
            rows[loop].append(number)
            if len(tokens) != columns:
                kind = "short" if len(tokens) < columns else "long"
                raise InputError(
                    f"{file}: row {len(rows[loop])} (line {number}) is too {kind}: {len(tokens)} values for {columns} "
                    "columns; complete or remove the row"
                )
    return rows


def _tokens(line: str) -> list[str]:
    """The values on a line; # begins a comment only at the start of a value."""
    tokens: list[str] = []
    for match in _TOKEN.finditer(line):
        if match.group().startswith("#"):
            break
        tokens.append(match.group())
    return tokens


def _gemmi_message(error: Exception) -> str:
    """gemmi's ``string:5:0(33): what`` or ``string:5 in data_x: what`` as ``line 5: what``."""
    message = " ".join(str(error).split())
    match = re.match(r"string:?(\d+)?[^ ]*( in [^:]*)?:? ?(.*)", message)
    if not match:
        return message
    line, _, what = match.groups()
    return f"line {line}: {what}" if line else what


def _check_tags(file: Path, name: str, tags: Sequence[str]) -> tuple[str, ...]:
    lowered = [tag.lower() for tag in tags]
    for tag in tags:
        if lowered.count(tag.lower()) > 1:
            raise InputError(f"{file}: data_{name} names the column {tag} twice, expected once; remove one")
    return tuple(tag.removeprefix("_") for tag in tags)


def _table(file: Path, name: str, item: cif.Item, row_lines: dict[int, list[int]]) -> StarTable:
    loop = item.loop
    columns = _check_tags(file, name, loop.tags)
    width, values = len(columns), [cif.as_string(value) for value in loop.values]
    rows = tuple(tuple(values[k : k + width]) for k in range(0, len(values), width))
    lines = row_lines.get(item.line_number)
    if lines is None or len(lines) != len(rows):
        raise InputError(f"{file}: data_{name} does not hold one row a line, as RELION writes")
    return StarTable(name, columns, rows, tuple(lines))


def _pairs_table(file: Path, name: str, pairs: Sequence[tuple[str, str]]) -> StarTable:
    columns = _check_tags(file, name, [tag for tag, _ in pairs])
    return StarTable(name, columns, (tuple(cif.as_string(value) for _, value in pairs),), looped=False)


def numbers(star: StarFile, table: StarTable, column: str) -> Tensor:
    """A column as finite numbers, (n,) float64.

    Raises
    ------
    InputError : a value that is not a finite number, with its row.
    """
    values = []
    for row, text in enumerate(table.strings(column)):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
            if text.strip().lower() not in ("nan", "+nan", "-nan"):
                raise InputError(f"{star.path}: {table.where(row)}: {column} is {text!r}, expected a number") from None
        if "_" in text or not math.isfinite(value):
            raise InputError(f"{star.path}: {table.where(row)}: {column} is {text!r}, expected a finite number")
        values.append(value)
    return torch.tensor(values, dtype=torch.float64)


def write_star(path: str | os.PathLike[str], tables: Sequence[StarTable]) -> None:
    """Write tables as RELION 3.1 does (LF line ends), whole or not at all."""
    with atomic_write(path, "w") as file:
        for table in tables:
            file.write(f"\n# version 30001\n\ndata_{table.name}\n\n")
            if table.looped:
                file.write("loop_\n")
                file.writelines(f"_{column} #{k}\n" for k, column in enumerate(table.columns, start=1))
                file.writelines(" ".join(map(_quote, row)) + "\n" for row in table.rows)
            else:
                pairs = zip(table.columns, table.rows[0], strict=True)
                file.writelines(f"_{column} {_quote(value)}\n" for column, value in pairs)
            file.write("\n")


def _quote(value: str) -> str:
    plain = value and not re.search(r"\s", value) and value[0] not in "_#$'\"[];" and not _reserved(value)
    return value if plain else cif.quote(value)


def _reserved(value: str) -> bool:
    return value.lower().startswith(("data_", "save_")) or value.lower() in ("loop_", "stop_", "global_")
