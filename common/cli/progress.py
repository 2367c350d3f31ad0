"""Progress bars: an observer of the loops that prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm

from common.io.metrics import scalars
from common.iteration import State
from common.parallel import process_rank


class ProgressObserver:
    """One line for each loop: how many steps, how fast, its numbers. Without a terminal, a plain line at its end.

    Parameters
    ----------
    shown : at most so many of a state's numbers.
    stream : where to print.
    title : what the loops belong to, said before their names.
    bars : None: where there is a terminal.
    """

    def __init__(
        self, *, shown: int = 3, stream: TextIO | None = None, title: str = "", bars: bool | None = None
    ) -> None:
        self.stream = stream or sys.stderr
        self.shown = shown
        self.title = title
        self.bars = self.stream.isatty() if bars is None else bars
        self._bars: dict[str, tqdm] = {}
        self._began: dict[str, tuple[float, float, int]] = {}
        self._cpu: dict[str, float] = {}

    @property
    def seconds(self) -> Mapping[str, float]:
        """CPU seconds of this process by stage: the part of a loop's name before the first ``/``."""
        return dict(self._cpu)

    def resume(self, name: str, first: State) -> State | None:
        return None

    def observe(self, name: str, state: State) -> None:
        if name not in self._began:
            self._began[name] = (time.monotonic(), time.process_time(), state.iteration)
            if process_rank() == 0 and self.bars:
                total = getattr(state, "n_iterations", None)
                self._bars[name] = tqdm(
                    desc=self.title + name, total=total, initial=state.iteration, file=self.stream, leave=True
                )
        bar = self._bars.get(name)
        if bar is not None:
            numbers = list(scalars(state).items())[: self.shown]
            bar.set_postfix({key: f"{value:.4g}" for key, value in numbers}, refresh=False)
            bar.update(state.iteration - bar.n)
        if state.done:
            self._end(name, state)

    def _end(self, name: str, state: State) -> None:
        wall, cpu, first = self._began.pop(name)
        stage = name.partition("/")[0]
        self._cpu[stage] = self._cpu.get(stage, 0.0) + time.process_time() - cpu
        bar = self._bars.pop(name, None)
        if bar is not None:
            bar.close()
        elif process_rank() == 0:
            steps = state.iteration - first
            word = "loaded" if steps == 0 else f"{steps} step{'s' if steps > 1 else ''}"
            print(f"{self.title}{name}: {word}, {time.monotonic() - wall:.1f} s", file=self.stream, flush=True)
