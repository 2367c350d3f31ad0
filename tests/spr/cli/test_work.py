"""What surrounds a pipeline: run folder, outputs, resuming, refusals; shown on one that does next to nothing."""

from __future__ import annotations

import json
import os
import shutil
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import torch
from torch import Tensor

from common.data import ImageStack, InputError, Poses, Volume
from common.io import read_cif, read_particles, read_volume, read_xyz
from common.iteration import Observer, State, run
from common.report import ReportData
from common.resolution import FSC
from spr.cli import main

N, BOX = 24, 48


@dataclass(frozen=True)
class Settings:
    """Toy settings.

    seed : of all randomness.
    """

    seed: int = 1


@dataclass(frozen=True)
class Search(State):
    score: Tensor


@dataclass(frozen=True)
class Found:
    determined: bool
    warnings: tuple[str, ...]
    volume: Volume
    poses: Poses
    verdict: str = "2 atoms found"
    metrics: dict[str, float] = field(default_factory=lambda: {"n_atoms": 2, "fsc_0143_a": 0.9})
    image_columns: dict[str, Tensor] = field(default_factory=lambda: {"nanosprWeight": torch.ones(N)})
    fsc: FSC = field(
        default_factory=lambda: FSC(torch.arange(4) / 2.0, torch.tensor([1.0, 0.9, 0.5, 0.1]), torch.ones(4))
    )
    mask: Volume | None = None
    starts: None = None
    examples: None = None
    scores: None = None
    multislice: None = None
    findings: None = None

    @property
    def half1(self) -> Volume:
        return self.volume

    half2 = half1

    @property
    def atoms(self) -> ase.Atoms:
        atoms = ase.Atoms("Au2", positions=[[0, 0, 0], [2.8, 0, 0]])
        for name, value in (("peak_height", 1.0), ("b_factor", 0.8), ("position_sigma", 0.01)):
            atoms.set_array(name, np.full(2, value))
        return atoms


class Pipeline(types.SimpleNamespace):
    """Counts its steps; ``stop_at`` raises before that one."""

    Settings = Settings
    stop_at: int | None = None
    error: type[BaseException] | BaseException = KeyboardInterrupt
    determined = True

    def __init__(self) -> None:
        super().__init__(steps=[])

    def reconstruct(self, stack: ImageStack, settings: Settings, *, observers: Sequence[Observer]) -> Found:
        def step(state: Search) -> Search:
            if state.iteration == self.stop_at:
                raise self.error
            self.steps.append(state.iteration)
            return Search(state.iteration + 1, state.iteration == 5, state.score + stack.images.mean() * settings.seed)

        score = run("search", Search(0, False, torch.zeros(())), step, observers).score
        poses = Poses(torch.eye(3).expand(N, 3, 3), torch.zeros(N, 2))
        warnings = () if self.determined else ("the starts disagree",)
        return Found(self.determined, warnings, Volume(score.expand(8, 8, 8).clone(), 0.35), poses)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    size = ["--n-images", str(N), "--box-size", str(BOX), "--n-atoms", "13"]
    assert main(["simulate", "--out", str(folder), *size]) == 0
    return folder


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    made = Pipeline()
    monkeypatch.setattr("spr.cli.reconstruct.pipeline", made)
    return made


@pytest.fixture
def quick(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The pipeline with a report of bare words, since its charts take longer than all the rest."""

    def write(path: Path, data: ReportData) -> None:
        path.write_text(" ".join((data.verdict, *data.warnings)))

    monkeypatch.setattr("spr.cli.outputs.write_report", write)
    return pipeline


def reconstruct(data: Path, out: Path, *more: str) -> int:
    return main(["reconstruct", str(data / "particles.star"), "--out", str(out), *more])


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())


def test_a_run_writes_everything_it_promises(data: Path, tmp_path: Path, pipeline: Pipeline) -> None:
    assert reconstruct(data, tmp_path / "run", "--seed", "3") == 0
    names = "atoms.cif atoms.xyz fsc.csv half1.mrc half2.mrc metrics.csv particles.star report.html run.json volume.mrc"
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", *names.split()]
    assert read_volume(tmp_path / "run" / "volume.mrc").voxel_size == pytest.approx(0.35)
    atoms = read_xyz(tmp_path / "run" / "atoms.xyz")
    np.testing.assert_allclose(atoms.arrays["position_sigma"], 0.01)
    assert len(read_cif(tmp_path / "run" / "atoms.cif")) == 2
    shutil.copy(data / "particles.mrcs", tmp_path / "run")
    written = read_particles(tmp_path / "run" / "particles.star")
    assert written.poses is not None
    assert written.image_names == read_particles(data / "particles.star").image_names
    found = record(tmp_path / "run")
    assert found["status"] == "finished"
    assert found["metrics"] == {"n_atoms": 2, "fsc_0143_a": 0.9}
    assert found["settings"]["seed"] == 3
    assert {Path(name).name for name in found["inputs"]} == {"particles.star", "particles.mrcs"}
    assert (tmp_path / "run" / "fsc.csv").read_text().startswith("frequency_per_angstrom,correlation,coefficients\n0.0")
    assert "2 atoms found" in (tmp_path / "run" / "report.html").read_text()


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(
    data: Path, tmp_path: Path, quick: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    quick.stop_at = 3
    assert reconstruct(data, tmp_path / "a") == 130
    assert f"To go on from here: spr reconstruct {data / 'particles.star'} --out" in capsys.readouterr().err
    assert record(tmp_path / "a")["status"] == "running"
    assert not (tmp_path / "a" / "volume.mrc").exists()
    quick.stop_at = None
    assert reconstruct(data, tmp_path / "a") == 0
    assert quick.steps == [0, 1, 2, 3, 4, 5]
    assert reconstruct(data, tmp_path / "b") == 0
    for name in ("volume.mrc", "metrics.csv", "atoms.xyz", "particles.star"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_run_that_has_ended_is_not_computed_again(
    data: Path, tmp_path: Path, quick: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reconstruct(data, tmp_path / "a") == 0
    capsys.readouterr()
    assert reconstruct(data, tmp_path / "a") == 0
    assert "has ended (finished)" in capsys.readouterr().out
    assert len(quick.steps) == 6
    (tmp_path / "a" / "atoms.xyz").unlink()
    assert reconstruct(data, tmp_path / "a") == 0
    assert len(quick.steps) == 12
    assert reconstruct(data, tmp_path / "a", "--overwrite") == 0
    assert len(quick.steps) == 18


def test_an_undetermined_structure_says_so_everywhere(
    data: Path, tmp_path: Path, quick: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    quick.determined = False
    assert reconstruct(data, tmp_path / "a") == 0
    found = record(tmp_path / "a")
    assert found["status"] == "not determined"
    assert "the starts disagree" in found["warnings"]
    assert "warning: the starts disagree" in capsys.readouterr().out
    assert "the starts disagree" in (tmp_path / "a" / "report.html").read_text()


def test_a_folder_of_another_run_is_refused(
    data: Path, tmp_path: Path, quick: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reconstruct(data, tmp_path / "a", "--seed", "1") == 0
    capsys.readouterr()
    assert reconstruct(data, tmp_path / "a", "--seed", "2") == 2
    assert "seed = 1, not 2" in capsys.readouterr().err
    assert reconstruct(data, tmp_path / "a", "--seed", "1", "--pixel-size", "0.4") == 2
    assert "input.pixel_size = None, not 0.4" in capsys.readouterr().err


def test_a_run_cannot_write_over_its_input(
    data: Path, tmp_path: Path, quick: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (data / "particles.star").read_bytes()
    assert reconstruct(data, data) == 2
    assert "would write over its input particles.star" in capsys.readouterr().err
    assert (data / "particles.star").read_bytes() == before


def test_the_run_of_an_earlier_run_json_is_repeated(data: Path, tmp_path: Path, quick: Pipeline) -> None:
    assert reconstruct(data, tmp_path / "a", "--seed", "5", "--pixel-size", "0.36") == 0
    assert reconstruct(data, tmp_path / "b", "--config", str(tmp_path / "a" / "run.json")) == 0
    assert record(tmp_path / "a")["settings"] == record(tmp_path / "b")["settings"]


def test_input_that_fails_inside_the_pipeline_is_one_line(
    data: Path, tmp_path: Path, quick: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    quick.stop_at, quick.error = 0, InputError("too dark")
    assert reconstruct(data, tmp_path / "a") == 2
    assert capsys.readouterr().err.startswith(f"spr: {data / 'particles.star'}: too dark")
    assert not (tmp_path / "a").exists()  # a run that has only begun leaves nothing
    (tmp_path / "b").mkdir()
    assert reconstruct(data, tmp_path / "b") == 2
    assert not list((tmp_path / "b").iterdir())


def test_two_images_are_too_few_and_nothing_is_written(
    tmp_path: Path, quick: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--n-images", "2", "--box-size", str(BOX), "--n-atoms", "13"]
    assert main(["simulate", "--out", str(tmp_path / "few"), *size]) == 0
    capsys.readouterr()
    assert reconstruct(tmp_path / "few", tmp_path / "run") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()
