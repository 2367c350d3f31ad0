"""A tilt series through the command: simulated, aligned, reconstructed, traced, refined, analysed, and scored."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.spatial import cKDTree

import aet_tilt.cli.work as work
from aet_tilt.cli import main
from common.cli.progress import ProgressObserver
from common.io import read_cif, read_volume, read_xyz, write_xyz
from common.io.tilt_series import read_tilt_series
from common.iteration import State

SIMULATED = ["--n-atoms", "110", "--n-images", "19", "--pixel-size", "0.45", "--shift-sigma", "0.3", "--seed", "5"]
SMALL = ["--n-atoms", "40", "--n-images", "11", "--pixel-size", "0.5", "--shift-sigma", "0.2"]


def result_of(run: Path) -> dict[str, bytes]:
    """Every file whose bytes the run's input and settings decide."""
    names = (
        "volume.mrc",
        "half1.mrc",
        "fsc.csv",
        "atoms.xyz",
        "atoms.cif",
        "aligned.tlt",
        "aligned.xf",
        "euler.txt",
        "structure.json",
    )
    return {name: (run / name).read_bytes() for name in names}


def errors(found: Atoms, truth: Atoms) -> np.ndarray:
    """(n, 3) errors of atoms within 0.5 angstrom of a true one, less the shift of all, which images leave open."""
    tree = cKDTree(truth.positions)
    near, index = tree.query(found.positions)
    moved = found.positions - (found.positions - truth.positions[index])[near < 1.2].mean(0)
    near, index = tree.query(moved)
    return (moved - truth.positions[index])[near < 0.5]


@pytest.fixture(scope="module")
def tilts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tilts")
    assert main(["simulate", "--out", str(folder), *SIMULATED]) == 0
    return folder / "tilts.mrc"


@pytest.fixture(scope="module")
def run(tilts: Path) -> Path:
    out = tilts.parent / "run"
    assert main(["reconstruct", str(tilts), "--element", "Au", "--out", str(out)]) == 0
    return out


def test_every_atom_is_found_at_the_bound_with_honest_sigmas(tilts: Path, run: Path) -> None:
    found, truth = read_xyz(run / "atoms.xyz"), read_xyz(tilts.parent / "truth.xyz")
    off = errors(found, truth)
    assert len(found) == len(truth) == len(off)
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["warnings"] == []
    rmsd_pm = 100 * np.sqrt((off**2).sum(1).mean())
    assert rmsd_pm < 1.3 * record["metrics"]["position_bound_pm"]
    assert 0.8 < np.sqrt((off**2).mean() / (found.arrays["position_sigma"] ** 2).mean()) < 1.25
    assert set(found.get_chemical_symbols()) == {"Au"}
    assert (found.arrays["probability_Au"] > 0.99).all()
    assert len(read_cif(run / "atoms.cif")) == len(found)


def test_shifts_are_found_up_to_a_common_one(tilts: Path, run: Path) -> None:
    images = read_tilt_series(run / "aligned.mrc", angles=run / "euler.txt", pixel_size=0.45).stack.images
    rows = list(csv.DictReader((tilts.parent / "truth_shifts.csv").open()))
    assert len(images) == len(rows) == 19
    signal = images - 2.0
    y = (signal.sum(2) * (torch.arange(images.shape[1]) - images.shape[1] // 2)).sum(1) / signal.sum((1, 2))
    true_y = torch.tensor([float(row["y_angstrom"]) for row in rows]) / 0.45
    assert float(true_y.std()) > 0.4
    assert float(y.std()) < 0.1  # along the tilt axis all views have the same middle


def test_the_structure_is_analysed(run: Path) -> None:
    found = read_xyz(run / "atoms.xyz")
    assert {"structure", "grain", "strain", "coordination"} <= set(found.arrays)
    told = json.loads((run / "structure.json").read_text())
    assert [plane["kind"] for plane in told["planes"]] == ["twin"]
    assert [grain["lattice_constants_angstrom"][0] for grain in told["grains"]] == pytest.approx([4.08] * 2, abs=0.01)
    page = (run / "report.html").read_text(encoding="utf-8")
    for section in ("Grains and defects", "Twin planes and stacking faults", "Pair distribution function"):
        assert section in page


def test_analysing_the_written_atoms_finds_the_same(run: Path, tmp_path: Path) -> None:
    assert main(["analyse", str(run / "atoms.xyz"), "--out", str(tmp_path / "out")]) == 0
    again, first = (json.loads((folder / "structure.json").read_text()) for folder in (tmp_path / "out", run))
    assert again["atoms_by_local_structure"] == first["atoms_by_local_structure"]
    assert again["planes"][0]["atoms"] == first["planes"][0]["atoms"]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "finished"


def test_stages_alone_take_the_road_of_the_whole(tilts: Path, run: Path, tmp_path: Path) -> None:
    volume, refined = tmp_path / "volume", tmp_path / "refined"
    assert main(["reconstruct-volume", str(tilts), "--out", str(volume)]) == 0
    assert torch.equal(read_volume(volume / "volume.mrc").values, read_volume(run / "volume.mrc").values)
    assert not (volume / "atoms.xyz").exists()
    aligned = ["--angles", str(run / "euler.txt"), "--pixel-size", "0.45"]
    atoms = ["--atoms", str(run / "atoms.xyz"), "--element", "Au"]
    assert main(["refine-atoms", str(run / "aligned.mrc"), *aligned, *atoms, "--out", str(refined)]) == 0
    first, second = read_xyz(run / "atoms.xyz"), read_xyz(refined / "atoms.xyz")
    assert len(second) == len(first)
    assert np.abs(errors(second, first)).max() < 0.03


class Stopped(ProgressObserver):
    """Ctrl-C as soon as a loop has come to a step."""

    at = ("", 0)

    def observe(self, name: str, state: State) -> None:
        super().observe(name, state)
        if (name, state.iteration) == self.at:
            raise KeyboardInterrupt


def test_a_run_stopped_twice_ends_as_if_nothing_had_happened(
    tilts: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["reconstruct", str(tilts), "--element", "Au", "--out", str(tmp_path / "run")]
    for at in (("alignment", 2), ("atoms/all", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(work, "ProgressObserver", Stopped)
            patch.setattr(Stopped, "at", at)
            assert main(command) == 130
        assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
        assert not (tmp_path / "run" / "atoms.xyz").exists()
    assert main(command) == 0
    assert result_of(tmp_path / "run") == result_of(run)


def test_two_processes_write_every_byte_that_one_writes(tmp_path: Path) -> None:
    assert main(["simulate", "--out", str(tmp_path), *SMALL]) == 0
    alone = ["reconstruct", str(tmp_path / "tilts.mrc"), "--element", "Au"]
    assert main([*alone, "--out", str(tmp_path / "one")]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "aet_tilt"]
    command = [*launch, *alone, "--out", str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished: ") == 1
    assert result_of(tmp_path / "two") == result_of(tmp_path / "one")


def test_a_finished_run_is_left_as_it_is(tilts: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = result_of(run)
    command = ["reconstruct", str(tilts), "--out", str(run)]
    assert main([*command, "--element", "Au"]) == 0
    assert "has ended" in capsys.readouterr().out
    assert main([*command, "--element", "Pt"]) == 2
    assert "elements" in capsys.readouterr().err
    assert result_of(run) == before


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_what_cannot_be_used_is_refused_in_one_line(
    tilts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = ["--out", str(tmp_path / "new")]
    assert "--atoms" in refused(["refine-atoms", str(tilts), *new], capsys)
    assert "tilts.mrc is there already" in refused(["simulate", "--out", str(tilts.parent)], capsys)
    assert "expected at least 3" in refused(["simulate", *new, "--n-images", "2"], capsys)
    assert "pixel size is -1" in refused(["simulate", *new, "--pixel-size", "-1"], capsys)
    write_xyz(tmp_path / "three.xyz", Atoms("Au3", positions=np.eye(3) * 3))
    assert "3 atoms" in refused(["analyse", str(tmp_path / "three.xyz"), *new], capsys)
    assert "tolerance is 2" in refused(["analyse", str(tilts.parent / "truth.xyz"), *new, "--tolerance", "2"], capsys)
    assert "'Gold'" in refused(["reconstruct", str(tilts), "--element", "Gold", *new], capsys)
    write_xyz(tmp_path / "atoms.xyz", Atoms("Au3", positions=np.eye(3) * 3))
    own = ["analyse", str(tmp_path / "atoms.xyz"), "--out", str(tmp_path)]
    assert "write over its input atoms.xyz" in refused(own, capsys)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without torchrun" in refused(["simulate", *new], capsys)
    assert not (tmp_path / "new" / "atoms.xyz").exists()
