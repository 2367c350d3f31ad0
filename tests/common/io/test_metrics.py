"""The table of metrics after any number of kills is that of an undisturbed run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.data import InputError
from common.io.metrics import MetricsObserver, scalars
from common.iteration import State, run


@dataclass(frozen=True)
class Search(State):
    score: Tensor
    temperature: float
    n_poses: int
    images: Tensor
    note: str


def state(iteration: int, done: bool = False) -> Search:
    score = torch.tensor(0.1 * iteration, dtype=torch.float64)
    return Search(iteration, done, score, 1 / (1 + iteration), 3, torch.zeros(4), "a, b")


def observe(path: Path, loops: list[tuple[str, range, bool]]) -> None:
    """A run from its start or from a checkpoint: the states each loop passes, and whether it ends."""
    observer = MetricsObserver(path)
    for name, iterations, ends in loops:
        for i in iterations:
            observer.observe(name, state(i, done=ends and i == iterations[-1]))


UNDISTURBED = [("search/start-0", range(0, 6), True), ("search/start-1", range(0, 4), True)]


def test_numbers_of_a_state_are_its_scalars_at_full_precision(tmp_path: Path) -> None:
    assert scalars(state(3)) == {"score": 0.1 * 3, "temperature": 0.25, "n_poses": 3}
    observe(tmp_path / "metrics.csv", [("search", range(3, 4), False)])
    assert (tmp_path / "metrics.csv").read_text() == (
        "loop,iteration,metric,value\n"
        "search,3,score,0.30000000000000004\nsearch,3,temperature,0.25\nsearch,3,n_poses,3\n"
    )


def test_table_after_kills_and_resumes_is_that_of_an_undisturbed_run(tmp_path: Path) -> None:
    observe(tmp_path / "a.csv", UNDISTURBED)
    killed = tmp_path / "b.csv"
    observe(killed, [("search/start-0", range(0, 5), False)])
    observe(killed, [("search/start-0", range(2, 6), True), ("search/start-1", range(0, 3), False)])
    observe(killed, [("search/start-0", range(5, 6), True), ("search/start-1", range(0, 4), True)])
    observe(killed, [("search/start-0", range(5, 6), True), ("search/start-1", range(3, 4), True)])
    assert killed.read_bytes() == (tmp_path / "a.csv").read_bytes()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_mended(tmp_path: Path, cut: int) -> None:
    observe(tmp_path / "a.csv", UNDISTURBED)
    torn = tmp_path / "b.csv"
    observe(torn, [("search/start-0", range(0, 4), False)])
    torn.write_bytes(torn.read_bytes()[:-cut])
    observe(torn, [("search/start-0", range(3, 6), True), ("search/start-1", range(0, 4), True)])
    assert torn.read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_lines_past_the_end_of_a_loop_are_dropped(tmp_path: Path) -> None:
    observe(tmp_path / "a.csv", [("search", range(0, 4), True)])
    longer = tmp_path / "b.csv"
    observe(longer, [("search", range(0, 9), False)])
    observe(longer, [("search", range(0, 4), True)])
    assert longer.read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_loops_inside_loops_keep_their_place(tmp_path: Path) -> None:
    whole = [("outer", range(0, 1), False), ("inner/0", range(0, 3), True), ("outer", range(1, 2), True)]
    observe(tmp_path / "a.csv", whole)
    observe(tmp_path / "b.csv", whole)
    resumed = [("outer", range(0, 1), False), ("inner/0", range(2, 3), True), ("outer", range(1, 2), True)]
    observe(tmp_path / "b.csv", resumed)
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_a_foreign_table_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match=r"line 1 is 'x,y', expected loop,iteration,metric,value"):
        MetricsObserver(tmp_path / "metrics.csv")


def test_a_loop_writes_one_group_for_each_state(tmp_path: Path) -> None:
    observers = [MetricsObserver(tmp_path / "m" / "metrics.csv")]
    run("search", state(0), lambda s: state(s.iteration + 1, s.iteration == 4), observers)
    lines = (tmp_path / "m" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines[1::3]] == ["0", "1", "2", "3", "4", "5"]
