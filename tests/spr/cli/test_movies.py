"""The commands of a movie: simulated, tracked and extracted as a user does it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.io import read_particles
from spr.cli import main


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("movie") / "a"
    size = ["--n-frames", "30", "--frame-size", "128", "--diameters", "16", "--dose", "60"]
    assert main(["simulate", "--movie", "--out", str(folder), *size]) == 0
    return folder / "movie.mrc"


def test_extracted_particles_can_be_read(movie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["extract", str(movie), "--out", str(out), "--dose", "60"]) == 0
    particles = read_particles(out / "particle_001" / "particles.star")
    assert len(particles.stack) == 30
    assert particles.poses is None
    assert len((out / "tracks.csv").read_text().splitlines()) == 31
    assert len(json.loads((out / "background.json").read_text())["graphene"]) == 2
    assert main(["extract", str(movie), "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_the_background_alone(movie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["background", str(movie), "--out", str(tmp_path / "run")]) == 0
    assert "graphene sheet 2" in capsys.readouterr().out
    assert (tmp_path / "run" / "motion.csv").exists()


def test_a_given_position_lies_in_the_frame(movie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "boxes.txt").write_text("900 20\n")
    given = ["--out", str(tmp_path / "run"), "--box-file", str(tmp_path / "boxes.txt")]
    assert main(["track", str(movie), *given]) == 2
    assert "expected within the frame" in capsys.readouterr().err
