"""Exit status and messages: one line for what the user can mend, a traceback for a bug."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from common.cli.doctor import examine
from common.cli.program import choose_device, run_program, set_threads
from common.cli.progress import ProgressObserver
from common.data import InputError
from common.iteration import State, run


def ends(error: BaseException) -> Any:
    def command() -> int:
        raise error

    return command


def test_bad_input_is_status_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("spr", ends(InputError("a.star: row 3\nis short"))) == 2
    assert capsys.readouterr().err == "spr: a.star: row 3 is short\n"


def test_ctrl_c_is_status_130_and_says_how_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("spr", ends(KeyboardInterrupt()), to_resume=lambda: "To go on: spr x") == 130
    assert capsys.readouterr().err == "spr: interrupted. To go on: spr x\n"


def test_a_bug_is_status_1_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("spr", ends(RuntimeError("shapes differ"))) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "RuntimeError: shapes differ" in said


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.\nTried to ...")])
def test_out_of_memory_says_what_to_do(capsys: pytest.CaptureFixture[str], error: BaseException) -> None:
    assert run_program("spr", ends(error)) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "smaller batch size" in said


def test_success_is_status_0_with_or_without_saying_so() -> None:
    assert (run_program("spr", lambda: None), run_program("spr", lambda: 0)) == (0, 0)


def test_a_gpu_is_taken_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(InputError, match="sees no GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
    with pytest.raises(InputError, match="expected auto, cpu or cuda"):
        choose_device("gpu")


def test_threads_are_as_many_as_asked_for_or_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--threads is -1"):
        set_threads(-1)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    try:
        assert set_threads(0) == 3
        assert set_threads(2) == 2
    finally:
        set_threads(1)


@dataclass(frozen=True)
class Fit(State):
    rms: float


def test_progress_without_a_terminal_is_one_line_at_the_end_of_each_loop() -> None:
    stream = io.StringIO()
    observer = ProgressObserver(stream=stream)
    for name in ("fit/1", "fit/2"):
        run(name, Fit(0, False, 1.0), lambda s: Fit(s.iteration + 1, s.iteration == 4, s.rms / 2), [observer])
    lines = stream.getvalue().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["fit/1: 5 steps", "fit/2: 5 steps"]
    assert list(observer.seconds) == ["fit"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_shows_steps_and_numbers() -> None:
    stream = Terminal()
    observers = [ProgressObserver(stream=stream)]
    run("fit", Fit(0, False, 1.0), lambda s: Fit(s.iteration + 1, s.iteration == 4, s.rms / 2), observers)
    last = stream.getvalue().split("\r")[-1]
    assert "fit: 5it" in last
    assert "rms=0.0312" in last


def test_the_doctor_looks_at_versions_device_memory_and_disk(tmp_path: Path) -> None:
    findings = {finding.name: finding for finding in examine(tmp_path)}
    assert {"python", "torch", "device", "memory", "disk", "abTEM", "rosettasciio"} <= findings.keys()
    assert findings["torch"].fine
    assert findings["torch"].text == torch.__version__
    assert "GiB free" in findings["disk"].text
