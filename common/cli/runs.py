"""What commands that write files share: what they refuse to replace, how long they took, what they say at the end."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from common.data import InputError
from common.io.checkpoint import is_first_process
from common.io.run_folder import OUTPUTS, RunFolder


def refuse_to_replace(out: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Refuse to write ``names`` to a folder that holds one of them, unless the user wants it so.

    Raises
    ------
    InputError : one of the files is there and ``overwrite`` was not given.
    """
    there = [name for name in names if (out / name).exists()]
    if there and not overwrite:
        raise InputError(f"{out}: {there[0]} is there already; choose another --out or give --overwrite")


def keep_inputs(out: Path, files: Iterable[Path]) -> None:
    """Refuse a run folder in which the run would write over its own input.

    Raises
    ------
    InputError : one of the files stands where the run writes.
    """
    targets = {os.path.realpath(out / name) for name in OUTPUTS}
    for file in files:
        if os.path.realpath(file) in targets:
            raise InputError(f"{out}: the run would write over its input {file.name}; choose another folder with --out")


def how_to_resume(program: str, given: Sequence[str], resuming: Sequence[str]) -> str:
    """What to tell who stopped ``program`` with the arguments ``given``; nothing for a command that does not resume."""
    if not given or given[0] not in resuming:
        return ""
    if _processes_started() > 1:
        return "The same torchrun command goes on from here."
    return f"To go on from here: {program} {shlex.join(word for word in given if word != '--overwrite')}"


def _processes_started() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def require_one_process(command: str) -> None:
    """Refuse a start under torchrun.

    Raises
    ------
    InputError : there is more than one process.
    """
    if _processes_started() > 1:
        raise InputError(f"{command} runs in one process, expected a start without torchrun")


def tell(line: str) -> None:
    """Print a line; only the first process does."""
    if is_first_process():
        print(line)


class Clock:
    """CPU time (of processes that have ended below this one, too) and wall time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.time(), _cpu_seconds()

    def seconds(self, stages: Mapping[str, float] | None = None) -> dict[str, float]:
        """CPU seconds by stage as given, with "cpu_seconds" and "wall_seconds" of the whole."""
        whole = {"cpu_seconds": _cpu_seconds() - self._cpu, "wall_seconds": time.time() - self._wall}
        return {**(stages or {}), **whole}


def _cpu_seconds() -> float:
    spent = os.times()
    return time.process_time() + spent.children_user + spent.children_system


def summarise(folder: RunFolder, *, notes: Iterable[str] = ()) -> None:
    """Print what a run came to; only the first process does."""
    if not is_first_process():
        return
    for warning in folder.record["warnings"]:
        print(f"warning: {warning}")
    for note in notes:
        print(f"note: {note}")
    for name, value in folder.record["metrics"].items():
        if not isinstance(value, list | dict):
            print(f"{name}: {f'{value:.4g}' if isinstance(value, float) else value}")
    print(f"{folder.status}: {folder.path}")
    if folder.file("report.html").exists():
        print(f"report: {folder.file('report.html')}")
