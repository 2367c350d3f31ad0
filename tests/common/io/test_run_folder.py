"""A run folder belongs to one input and one set of settings, to one process at a time, and is whole at every moment."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from common.data import InputError
from common.io.run_folder import RunFolder
from common.io.run_record import jsonable
from common.iteration import State, run


@dataclass(frozen=True)
class SearchSettings:
    n_directions: int = 400
    batch_size: int = 64


@dataclass(frozen=True)
class Settings:
    seed: int = 1
    search: SearchSettings = field(default_factory=SearchSettings)


INPUTS = {"particles.star": "a1", "particles.mrcs": "b2"}


def opened(path: Path, **changes: Any) -> RunFolder:
    arguments: dict[str, Any] = {"inputs": INPUTS, "settings": Settings(), "command": "reconstruct"}
    return RunFolder.open(path, **(arguments | changes))


def record(path: Path) -> dict[str, Any]:
    return json.loads((path / "run.json").read_text())


def test_a_new_run_describes_itself_before_anything_else_is_written(tmp_path: Path) -> None:
    with opened(tmp_path / "deep" / "run"):
        found = record(tmp_path / "deep" / "run")
    assert found["status"] == "running"
    assert found["settings"] == {"seed": 1, "search": {"n_directions": 400, "batch_size": 64}}
    assert found["inputs"] == INPUTS
    assert found["versions"]["torch"].startswith(torch.__version__.partition("+")[0])


def test_finish_keeps_every_number_and_warning_and_removes_the_checkpoints(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        run("search", State(0, False), lambda s: State(s.iteration + 1, True), folder.observers(interval=0))
        assert (tmp_path / "checkpoints" / "search.safetensors").exists()
        numbers = {"n_atoms": 68, "rms": torch.tensor(0.5), "worst": float("nan")}
        folder.finish(metrics=numbers, warnings=["hand unknown"])
        assert folder.is_complete
    found = record(tmp_path)
    assert (found["status"], found["warnings"]) == ("finished", ["hand unknown"])
    assert found["metrics"] == {"n_atoms": 68, "rms": 0.5, "worst": "nan"}
    assert not (tmp_path / "checkpoints").exists()
    assert found["outputs"] == ["metrics.csv", "run.json"]


def test_an_undetermined_structure_is_its_own_status(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.finish(metrics={}, warnings=["starts disagree"], determined=False)
    assert record(tmp_path)["status"] == "not determined"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": Settings(seed=2)}, "seed = 1, not 2"),
        ({"settings": Settings(search=SearchSettings(300))}, r"search\.n_directions = 400, not 300"),
        ({"inputs": INPUTS | {"particles.mrcs": "c3"}}, r"other input \(not of particles\.mrcs\)"),
        ({"inputs": {"particles.star": "a1"}}, "other input"),
        ({"command": "refine"}, "command reconstruct, not refine"),
        ({"device": "cuda"}, "device cpu, not cuda"),
    ],
)
def test_a_folder_of_another_run_is_refused_and_left_alone(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    opened(tmp_path).close()
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(InputError, match=message + ".*--out.*--overwrite") as error:
        opened(tmp_path, **changes)
    assert "\n" not in str(error.value)
    assert (tmp_path / "run.json").read_bytes() == before


def test_batch_size_and_moved_input_do_not_make_another_run(tmp_path: Path) -> None:
    opened(tmp_path).close()
    moved = {f"elsewhere/{name}": digest for name, digest in INPUTS.items()}
    opened(tmp_path, settings=Settings(search=SearchSettings(batch_size=8)), inputs=moved).close()


def test_overwrite_removes_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        run("search", State(0, False), lambda s: State(s.iteration + 1, True), folder.observers(interval=0))
    (tmp_path / "atoms.xyz").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    with opened(tmp_path, settings=Settings(seed=2), overwrite=True):
        assert sorted(os.listdir(tmp_path)) == [".lock", "notes.txt", "run.json"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "volume.mrc").write_text("somebody's")
    with pytest.raises(InputError, match=r"holds other files \(volume\.mrc\)"):
        opened(tmp_path, overwrite=overwrite)
    (tmp_path / "run.json").write_text('{"program": "another"}')
    with pytest.raises(InputError, match="not written by this program"):
        opened(tmp_path, overwrite=overwrite)
    assert (tmp_path / "volume.mrc").read_text() == "somebody's"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"program": "nanospr", "settings": 3}', "\x00\x01"])
def test_a_damaged_record_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json") as error:
        opened(tmp_path)
    assert "\n" not in str(error.value)


def test_two_runs_cannot_share_a_folder_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom common.io.run_folder import RunFolder\n"
        f"folder = RunFolder.open({str(tmp_path)!r}, inputs={INPUTS!r}, "
        "settings={'seed': 1, 'search': {'n_directions': 400, 'batch_size': 64}}, command='reconstruct')\n"
        "print('open', flush=True)\ntime.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(InputError, match="another run is going on"):
            opened(tmp_path)
        other.kill()
    opened(tmp_path).close()


def test_torn_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    with opened(tmp_path):
        (tmp_path / "checkpoints" / "search").mkdir(parents=True)
        for torn in (".volume.mrc.ab.tmp", "checkpoints/search/.start-1.safetensors.cd.tmp"):
            (tmp_path / torn).write_bytes(b"half")
    with opened(tmp_path):
        assert list(tmp_path.glob("**/.*.tmp")) == []


def test_a_full_disk_is_one_line_and_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="disk is full"):
        opened(tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_a_path_that_cannot_be_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="choose another path"):
            opened(path)


def test_a_folder_that_is_not_writable_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == ".lock":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opening(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)  # permissions do not bind the superuser
    with pytest.raises(InputError, match="not writable"):
        opened(tmp_path)


def test_a_record_of_older_versions_is_resumed_with_a_warning(tmp_path: Path) -> None:
    opened(tmp_path).close()
    changed = record(tmp_path)
    changed["versions"]["torch"] = "2.10.0"
    (tmp_path / "run.json").write_text(json.dumps(changed))
    with opened(tmp_path) as folder:
        folder.finish(metrics={}, warnings=["x"])
    warnings = record(tmp_path)["warnings"]
    assert len(warnings) == 2
    assert warnings[0].startswith("resumed with other versions: torch 2.10.0 -> ")


def test_only_plain_values_go_into_the_record() -> None:
    assert jsonable({"a": (1, 2.0, None, True, "x"), "b": float("inf")}) == {"a": [1, 2.0, None, True, "x"], "b": "inf"}
    with pytest.raises(TypeError):
        jsonable({"a": object()})


def test_a_run_that_can_go_on_outlives_refused_input(tmp_path: Path) -> None:
    def refuse(inside: RunFolder) -> None:
        with pytest.raises(InputError, match=r"^a\.star: too dark$"), inside.computing("a.star"):
            raise InputError("too dark")

    given = {"inputs": {"a.star": "ab"}, "settings": {"seed": 1}, "command": "reconstruct"}
    with RunFolder.open(tmp_path / "run", **given) as begun:
        saved = begun.path / "checkpoints" / "search.safetensors"
        saved.parent.mkdir()
        saved.write_bytes(b"1")
        refuse(begun)
    assert saved.exists()
    saved.unlink()
    with RunFolder.open(tmp_path / "run", **given) as resumed:
        refuse(resumed)  # not begun by this opening: it stays
    assert (tmp_path / "run" / "run.json").exists()
