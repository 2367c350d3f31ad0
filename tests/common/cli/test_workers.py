"""Work done side by side in other processes."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.cli.workers import free_cores, side_by_side


def test_results_come_in_the_order_of_the_tasks() -> None:
    tasks = [(3, 4), (5, 12), (8, 15)]
    assert list(side_by_side(math.hypot, tasks, 2)) == list(side_by_side(math.hypot, tasks, 1)) == [5, 13, 17]


def test_several_jobs_run_in_processes_of_their_own() -> None:
    assert os.getpid() not in list(side_by_side(os.getpid, [(), ()], 2))
    assert list(side_by_side(os.getpid, [()], 2)) == list(side_by_side(os.getpid, [()], 1)) == [os.getpid()]
    assert free_cores() >= 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_reaches_the_caller(jobs: int) -> None:
    results = side_by_side(math.sqrt, [(4.0,), (-1.0,), (9.0,)], jobs)
    assert next(results) == 2
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        next(results)


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from common.cli.workers import side_by_side

def work(name):
    (Path(sys.argv[1]) / name).write_text(str(os.getpid()))
    try:
        time.sleep(100)
    except KeyboardInterrupt:
        (Path(sys.argv[1]) / f"{name}.saved").touch()
        raise

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    list(side_by_side(work, [("a",), ("b",)], 2))
"""


def test_a_stopped_run_stops_its_processes_once_they_have_saved(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    run = subprocess.Popen([sys.executable, program, tmp_path], env=environment, stderr=subprocess.DEVNULL)
    while not ((tmp_path / "a").exists() and (tmp_path / "b").exists()):
        assert run.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) != 0
    for name in ("a", "b"):
        assert (tmp_path / f"{name}.saved").exists()
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / name).read_text()), 0)
