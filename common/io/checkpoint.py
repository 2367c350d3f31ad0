"""Resuming loops: the checkpoint observer."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from common.data import InputError
from common.io.state_file import load_state, save_state
from common.iteration import State

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


class CheckpointObserver:
    """Saves the state of every loop, and hands it back to a loop of the same name that starts again.

    Parameters
    ----------
    folder : where the checkpoints go, one file for each loop; made when missing.
    labels : settings, inputs, seed, ... of the run; a checkpoint with other labels is refused.
    interval : seconds between two writes of one loop; the last state is always written. 0 writes every state.
    device : where tensors go that were on an accelerator; None: onto the same kind of accelerator.

    Notes
    -----
    Under torch.distributed the first process writes and all read; the folder must be seen by all.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        labels: Mapping[str, str] | None = None,
        interval: float = 10.0,
        device: torch.device | str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.labels = dict(labels or {})
        self.interval = interval
        self.device = device
        self._written: dict[str, tuple[int, float]] = {}
        self._unsaved: dict[str, State] = {}

    def path(self, name: str) -> Path:
        """The file of the loop ``name`` (letters, digits, ``_ . -``, with ``/`` between parts)."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"the name of a loop is {name!r}, expected letters, digits, _ . - and / between parts")
        return self.folder / f"{name}.safetensors"

    def resume(self, name: str, first: State) -> State | None:
        path = self.path(name)
        saved = load_state(path, type(first), labels=self.labels, device=self.device) if path.exists() else None
        wait_for_all()  # nobody writes before all have read
        self._written[name] = (-1 if saved is None else saved.iteration, time.monotonic())
        return saved

    def observe(self, name: str, state: State) -> None:
        iteration, when = self._written.get(name, (-1, -math.inf))
        nothing_new = state.iteration == iteration or (state.iteration == 0 and not state.done)
        if nothing_new or not is_first_process():
            return
        self._unsaved[name] = state
        if state.done or time.monotonic() - when >= self.interval:
            self._save(name)

    def save_all(self) -> None:
        """Save the last state of every loop that was not saved yet, whatever the interval: before the run is left."""
        for name in tuple(self._unsaved):
            self._save(name)

    def _save(self, name: str) -> None:
        state, path = self._unsaved[name], self.path(name)
        make_folder(path.parent)
        save_state(path, state, labels=self.labels)
        self._written[name] = (state.iteration, time.monotonic())
        del self._unsaved[name]


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises
    ------
    InputError : it cannot be made; one line that says why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{path}: there is a file of that name, expected a folder; choose another path") from None
    except OSError as error:
        raise InputError(f"{path}: the folder cannot be made ({error.strerror}); choose another path") from None


def is_first_process() -> bool:
    """Whether this is the process that writes: the only one, or rank 0."""
    return not _many_processes() or torch.distributed.get_rank() == 0


def _many_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def wait_for_all() -> None:
    """Go on only when every process has come here; at once when there is only one."""
    if _many_processes():
        torch.distributed.barrier()
