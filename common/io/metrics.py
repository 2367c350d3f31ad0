"""The numbers of every iteration as a table that survives being killed: ``metrics.csv``."""

from __future__ import annotations

import csv
import io
import os
import time
from dataclasses import fields
from pathlib import Path

from torch import Tensor

from common.data import InputError
from common.io.checkpoint import is_first_process, make_folder
from common.io.files import atomic_write
from common.iteration import State

COLUMNS = ("loop", "iteration", "metric", "value")
Key = tuple[str, int]


def scalars(state: State) -> dict[str, float]:
    """The numbers of a state: int, float and bool fields and tensors of one element, but for iteration and done."""
    numbers: dict[str, float] = {}
    for field in fields(state):
        value = getattr(state, field.name)
        if field.name in ("iteration", "done"):
            continue
        if isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex():
            value = value.item()
        if isinstance(value, bool | int | float):
            numbers[field.name] = value
    return numbers


class MetricsObserver:
    """Appends the numbers of every state to a table: one line for each loop, iteration and metric.

    Parameters
    ----------
    path : the CSV file; goes on with the one that is there.

    Notes
    -----
    A resumed loop starts at its last checkpoint and passes again the iterations after it: their lines are put in the
    place of the old ones, and lines past the loop's end are dropped. So the table of a killed and resumed run is that
    of an undisturbed one. A line torn by a kill is dropped.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._rows, self._whole = _read(self.path)
        self._synced = time.monotonic()

    def resume(self, name: str, first: State) -> State | None:
        return None

    def observe(self, name: str, state: State) -> None:
        if not is_first_process():
            return
        key = (name, state.iteration)
        rows = {metric: repr(value) for metric, value in scalars(state).items()}
        known = self._rows.get(key)
        self._rows[key] = rows
        past = [other for other in self._rows if state.done and other[0] == name and other[1] > state.iteration]
        for other in past:
            del self._rows[other]
        if past or not self._whole or (known is not None and known != rows):
            self._rewrite()
        elif known is None:
            self._append(key, rows, sync=state.done or time.monotonic() - self._synced > 5)

    def _rewrite(self) -> None:
        make_folder(self.path.parent)
        with atomic_write(self.path, "w") as file:
            file.write(_text(self._rows, header=True))
        self._whole = True

    def _append(self, key: Key, rows: dict[str, str], *, sync: bool) -> None:
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(_text({key: rows}).encode())
                if sync:
                    os.fsync(file.fileno())
                    self._synced = time.monotonic()
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            raise InputError(f"{self.path}: {reason}; free some space and run again") from None


def read_metrics(path: str | os.PathLike[str]) -> dict[Key, dict[str, float]]:
    """(loop, iteration) -> metric -> number, in the order of the table; empty where there is no file.

    Raises
    ------
    InputError : the file is not a table of metrics.
    """
    rows, _ = _read(Path(path))
    return {key: {name: _number(text) for name, text in values.items()} for key, values in rows.items()}


def _number(text: str) -> float:
    return float({"True": "1", "False": "0"}.get(text, text))


def _text(rows: dict[Key, dict[str, str]], *, header: bool = False) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    for (name, iteration), values in rows.items():
        writer.writerows((name, iteration, metric, value) for metric, value in values.items())
    return text.getvalue()


def _read(path: Path) -> tuple[dict[Key, dict[str, str]], bool]:
    """The whole lines of a table, and whether that is all there is; none where there is no file yet."""
    try:
        content = path.read_bytes().decode()
    except FileNotFoundError:
        return {}, False
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the table of metrics cannot be read ({error}); remove it and run again") from None
    whole = content[: content.rfind("\n") + 1]
    rows: dict[Key, dict[str, str]] = {}
    for number, cells in enumerate(csv.reader(io.StringIO(whole)), start=1):
        if number == 1 and tuple(cells) == COLUMNS:
            continue
        if len(cells) != len(COLUMNS) or not cells[1].isdecimal():
            found, wanted = ",".join(cells), ",".join(COLUMNS)
            raise InputError(f"{path}: line {number} is {found!r}, expected {wanted}; remove the file and run again")
        rows.setdefault((cells[0], int(cells[1])), {})[cells[2]] = cells[3]
    return rows, whole == content
