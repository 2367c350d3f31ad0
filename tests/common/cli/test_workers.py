"""Work done side by side in other processes."""

from __future__ import annotations

import math
import os

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
