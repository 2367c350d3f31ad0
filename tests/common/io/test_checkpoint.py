"""Saved states come back bit for bit, whole or not at all, and only to the run they belong to."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from safetensors.torch import save
from torch import Tensor

from common.data import InputError, Poses
from common.io.checkpoint import CheckpointObserver
from common.io.state_file import load_state, save_state
from common.iteration import State, run, run_stage


@dataclass(frozen=True)
class Inner:
    poses: Poses
    label: str | None


@dataclass(frozen=True)
class Everything(State):
    tensors: tuple[Tensor, ...]
    inner: Inner
    table: dict[Any, Any]
    numbers: tuple[float, ...]
    atoms: Atoms
    array: np.ndarray
    listed: list[Any]


def everything() -> Everything:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    atoms = Atoms("Au2X", positions=np.random.default_rng(0).normal(size=(3, 3)), info={"rms": 0.1})
    atoms.set_array("position_sigma", np.array([0.01, 0.02, 0.03], dtype=np.float32))
    return Everything(
        iteration=7,
        done=False,
        tensors=(
            matrix,
            matrix.T,
            matrix[::2, 1:4],
            matrix[0].expand(6, 5),
            torch.randn(2, 3, generator=generator, dtype=torch.complex128),
            torch.randn(2, 3, generator=generator, dtype=torch.complex64).conj(),
            torch.tensor([math.nan, math.inf, -0.0, 1e-45], dtype=torch.float32),
            torch.randn(3, generator=generator).to(torch.bfloat16),
            torch.tensor([True, False]),
            torch.tensor(2**62),
            torch.empty(0, 3),
            matrix.unfold(1, 3, 1),
        ),
        inner=Inner(Poses(torch.eye(3).expand(2, 3, 3), torch.zeros(2, 2)), None),
        table={"a": 1, 2: (1.5, "x"), (0, 1): torch.arange(3)},
        numbers=(0.1, -0.0, 1e308, math.inf, 5e-324),
        atoms=atoms,
        array=np.arange(6, dtype=np.int16).reshape(2, 3),
        listed=[1, 1.0, True, "é\n", np.float32(0.1)],
    )


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        real_a, real_b = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (a, b))
        assert (
            real_a.contiguous().numpy(force=True).tobytes() == real_b.contiguous().numpy(force=True).tobytes()
            if (a.dtype != torch.bfloat16)
            else torch.equal(a, b)
        )
    elif isinstance(a, np.ndarray | np.generic):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()
    elif isinstance(a, Atoms):
        assert a.arrays.keys() == b.arrays.keys()
        for name in a.arrays:
            assert_same(a.arrays[name], b.arrays[name])
        assert_same(a.info, b.info)
    elif isinstance(a, tuple | list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert_same(list(a.items()), list(b.items()))
    elif isinstance(a, float):
        assert a.hex() == b.hex()
    elif hasattr(a, "__dataclass_fields__"):
        for field in fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    else:
        assert a == b


def test_every_kind_of_value_returns_bit_for_bit(tmp_path: Path) -> None:
    state = everything()
    save_state(tmp_path / "state.safetensors", state)
    assert_same(load_state(tmp_path / "state.safetensors", Everything), state)


def test_the_memory_layout_returns_too_since_sums_depend_on_it(tmp_path: Path) -> None:
    state = everything()
    save_state(tmp_path / "s", state)
    loaded = load_state(tmp_path / "s", Everything)
    for before, after in zip(state.tensors[:-1], loaded.tensors[:-1], strict=True):
        assert before.stride() == after.stride()
    for tensor in loaded.tensors:
        assert tensor.numel() == 0 or tensor.data_ptr() % 64 == 0


def test_what_cannot_be_saved_is_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"value\.table\.0\.1 is a set"):
        save_state(tmp_path / "s", replace(everything(), table={"x": {1, 2}}))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_a_cut_file_is_refused_in_one_line(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "s"
    save_state(path, everything())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 or keep == 0 else keep * len(content))])
    with pytest.raises(InputError, match="cannot be read") as error:
        load_state(path, Everything)
    assert "\n" not in str(error.value)


def test_a_file_of_another_type_or_program_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "s", everything().inner)
    with pytest.raises(InputError, match="holds a Inner, expected a Everything"):
        load_state(tmp_path / "s", Everything)
    (tmp_path / "t").write_bytes(save({"a": torch.zeros(2)}))
    with pytest.raises(InputError, match="not a saved state"):
        load_state(tmp_path / "t", Everything)


def test_only_dataclasses_of_the_suite_are_made_from_a_file(tmp_path: Path) -> None:
    save_state(tmp_path / "s", Poses(torch.eye(3)[None], torch.zeros(1, 2)))
    content = (tmp_path / "s").read_bytes()
    for module, name in ((b"common.data", b"subprocess."), (b"common.data", b"common.dat.")):
        (tmp_path / "t").write_bytes(content.replace(module, name))
        with pytest.raises(InputError, match="cannot be read"):
            load_state(tmp_path / "t", Poses)


@dataclass(frozen=True)
class Walk(State):
    position: Tensor
    length: int


def step(state: Walk) -> Walk:
    generator = torch.Generator().manual_seed(state.iteration)
    position = state.position * 0.9 + torch.randn(3, generator=generator, dtype=torch.float64)
    return Walk(state.iteration + 1, state.iteration + 1 >= state.length, position, state.length)


def start(length: int = 10) -> Walk:
    return Walk(0, False, torch.zeros(3, dtype=torch.float64), length)


class Stopped(Exception):
    pass


def stop_at(iteration: int) -> Any:
    def stopping(state: Walk) -> Walk:
        if state.iteration == iteration:
            raise Stopped
        return step(state)

    return stopping


@pytest.mark.parametrize("iteration", [1, 5, 9])
def test_a_stopped_loop_goes_on_from_its_last_state_and_ends_the_same(tmp_path: Path, iteration: int) -> None:
    with pytest.raises(Stopped):
        run("walk", start(), stop_at(iteration), [CheckpointObserver(tmp_path, interval=0)])
    seen: list[int] = []

    def counted(state: Walk) -> Walk:
        seen.append(state.iteration)
        return step(state)

    result = run("walk", start(), counted, [CheckpointObserver(tmp_path, interval=0)])
    assert seen == list(range(iteration, 10))
    assert_same(result, run("walk", start(), step))


def test_the_last_state_is_written_even_when_the_interval_has_not_passed(tmp_path: Path) -> None:
    run("search/start-3", start(), step, [CheckpointObserver(tmp_path, interval=1e9)])
    saved = load_state(tmp_path / "search" / "start-3.safetensors", Walk)
    assert (saved.iteration, saved.done) == (10, True)


def test_leaving_a_run_saves_the_last_state_whatever_the_interval(tmp_path: Path) -> None:
    observer = CheckpointObserver(tmp_path, interval=1e9)
    with pytest.raises(Stopped):
        run("walk", start(), stop_at(5), [observer])
    assert not (tmp_path / "walk.safetensors").exists()
    observer.save_all()
    assert load_state(tmp_path / "walk.safetensors", Walk).iteration == 5


def test_a_failed_write_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "walk.safetensors"
    save_state(path, start())
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="disk is full"):
        save_state(path, step(start()))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["walk.safetensors"]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run("walk", start(), step, [CheckpointObserver(tmp_path, labels={"seed": "1", "input": "abc"})])
    with pytest.raises(InputError, match=r"other seed \(1, expected 2\)"):
        run("walk", start(), step, [CheckpointObserver(tmp_path, labels={"seed": "2", "input": "abc"})])


@pytest.mark.parametrize("name", ["../walk", "/walk", "a//b", "", "a/../../b", ".hidden"])
def test_the_name_of_a_loop_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="the name of a loop"):
        run(name, start(), step, [CheckpointObserver(tmp_path)])


def test_a_finished_stage_is_loaded_and_not_computed_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> Poses:
        calls.append(1)
        return everything().inner.poses

    first = run_stage("classify", compute, [CheckpointObserver(tmp_path)])
    second = run_stage("classify", compute, [CheckpointObserver(tmp_path)])
    assert_same(second, first)
    assert calls == [1]
