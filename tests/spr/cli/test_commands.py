"""The commands of ``spr`` as a user gives them: what they write, print and refuse."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data import Volume
from common.io import read_particles, read_xyz, write_volume
from spr.cli import main


def simulate(folder: Path, *more: str) -> int:
    return main(["simulate", "--out", str(folder), "--n-images", "24", "--box-size", "48", "--n-atoms", "13", *more])


def test_simulated_particles_can_be_read_and_hold_no_truth(tmp_path: Path) -> None:
    assert simulate(tmp_path / "a", "--seed", "3") == 0
    given, truth = read_particles(tmp_path / "a" / "particles.star"), read_particles(tmp_path / "a" / "truth.star")
    assert given.poses is None
    assert truth.poses is not None
    assert given.stack.images.shape == (24, 48, 48)
    assert given.stack.pixel_size == pytest.approx(0.35)
    assert torch.equal(given.stack.images, truth.stack.images)
    assert len(read_xyz(tmp_path / "a" / "truth.xyz")) == 13
    assert json.loads((tmp_path / "a" / "simulation.json").read_text())["seed"] == 3


def test_a_simulation_is_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert simulate(tmp_path / name, "--seed", seed) == 0
    images = [(tmp_path / name / "particles.mrcs").read_bytes()[1024:] for name in "abc"]
    assert images[0] == images[1]
    assert images[0] != images[2]


def test_the_stated_defocus_can_be_off(tmp_path: Path) -> None:
    for name, error in (("a", "0"), ("b", "30")):
        assert simulate(tmp_path / name, "--model", "phase_object", "--defocus-error", error) == 0
    a, b = (read_particles(tmp_path / name / "particles.star").stack for name in "ab")
    assert a.optics is not None
    assert b.optics is not None
    assert torch.equal(a.images, b.images)
    torch.testing.assert_close(b.optics.defocus[:, :2] - a.optics.defocus[:, :2], torch.full((24, 2), 30.0))


def test_an_earlier_simulation_is_not_replaced_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(tmp_path / "a") == 0
    before = (tmp_path / "a" / "particles.mrcs").stat().st_mtime_ns
    assert simulate(tmp_path / "a", "--seed", "9") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "a" / "particles.mrcs").stat().st_mtime_ns == before
    assert simulate(tmp_path / "a", "--seed", "9", "--overwrite") == 0


def test_info_tells_what_a_file_holds_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(tmp_path / "a", "--model", "phase_object") == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "a" / "particles.star")]) == 0
    said = capsys.readouterr().out
    for text in ("24 of 48 x 48 pixels", "0.35 A", "300 kV", "-0.013 mm", "spr reconstruct", "GiB"):
        assert text in said
    assert main(["info", str(tmp_path / "a" / "truth.xyz")]) == 0
    assert "13, Au13" in capsys.readouterr().out


def test_trace_finds_the_atoms_of_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size, voxel = 40, 0.5
    axis = (torch.arange(size, dtype=torch.float64) - size // 2) * voxel
    x, y, z = np.meshgrid(np.arange(-1, 2) * 2.9, np.arange(-1, 2) * 2.9, np.arange(-1, 1) * 2.9)
    atoms = torch.tensor(np.stack((x.ravel(), y.ravel(), z.ravel()), 1))
    profiles = [torch.exp(-((axis - atoms[:, k, None]) ** 2) / (2 * 0.5**2)) for k in range(3)]
    values = torch.einsum("ax,ay,az->zyx", *profiles)
    values += 0.02 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    write_volume(tmp_path / "map.mrc", Volume(values.float(), voxel))
    assert main(["trace", str(tmp_path / "map.mrc"), "--element", "Au"]) == 0
    assert "18 atoms" in capsys.readouterr().out
    found = read_xyz(tmp_path / "map.xyz").positions
    distances = np.linalg.norm(found[:, None] - atoms.numpy(), axis=-1).min(0)
    assert distances.max() < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reconstruc"], "'reconstruc' is not a command; did you mean 'reconstruct'?"),
        (["simulate"], "the following arguments are required: --out; see spr simulate --help"),
        (["simulate", "--out", "x", "--n-imags", "3"], "did you mean '--n-images'?"),
        (["simulate", "--out", "x", "--pixel-size", "0"], "the pixel size is 0"),
        (["simulate", "--out", "x", "--snr", "-1"], "the SNR is -1"),
        (["simulate", "--out", "x", "--n-images", "0"], "0 images of 68 atoms"),
        (["simulate", "--out", "x", "--atoms", "missing.xyz"], "missing.xyz"),
        (["info", "missing.star"], "'missing.star': there is no such file"),
        (["info"], "the following arguments are required: FILE"),
        (["doctor", "missing"], "missing: is not a folder"),
        (["trace", "missing.mrc"], "missing.mrc"),
    ],
)
def test_what_cannot_be_done_is_one_line_status_2_and_nothing_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert [name for _, _, files in os.walk(tmp_path) for name in files] == []


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for command in ("reconstruct", "abinitio", "refine", "trace", "refine-atoms", "simulate", "info", "doctor"):
        assert f"  {command} " in said
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("spr (nanospr)")
