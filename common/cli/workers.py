"""Independent pieces of work side by side, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

R = TypeVar("R")


def side_by_side(work: Callable[..., R], tasks: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[R]:
    """The results of ``work(*task)`` in the order of the tasks, ``jobs`` of them at a time.

    With one job or one task, in this process. An error of any task ends the others. So does a stop of this process, as
    by Ctrl-C: each of the others sees a KeyboardInterrupt, to save what it has. A process whose parent was killed ends
    too, so that whoever resumes the run meets nobody.
    """
    if jobs == 1 or len(tasks) < 2:
        for task in tasks:
            yield work(*task)
        return
    context = multiprocessing.get_context("spawn")  # threads and CUDA do not survive a fork
    workers = min(jobs, len(tasks))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        futures = [pool.submit(_stoppable, work, *task) for task in tasks]
        try:
            for future in futures:
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _end_with(parent: int) -> None:
    """End this process when its parent is gone; between tasks Ctrl-C is left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _stoppable(work: Callable[..., R], *task: Any) -> R:
    """Do the work; Ctrl-C and a notice to end are a KeyboardInterrupt, once, so that nothing disturbs the saving."""

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        return work(*task)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def free_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
