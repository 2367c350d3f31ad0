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
    size = ["--n-frames", "30", "--frame-size", "128", "--diameters", "12", "--dose", "60"]
    assert main(["simulate", "--movie", "--out", str(folder), *size]) == 0
    return folder / "movie.mrc"


def test_extracted_particles_can_be_read(movie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["extract", str(movie), "--out", str(out), "--dose", "60"]) == 0
    particles = read_particles(out / "particle_001" / "frames.star")
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


def test_whole_road_of_a_movie(movie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A hasty search finds nothing, and the run says so; a run that was interrupted goes on where it was."""
    out = tmp_path / "run"
    given = ["movie", str(movie), "--out", str(out), "--dose", "60", "--element", "Pt", "--search.directions", "60"]
    hasty = ["--search.iterations", "2", "--starts.most", "2", "--time.candidates", "300"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spr.time_consensus.shared_orientations", _interrupted)
        assert main([*given, *hasty]) == 130
    assert "To go on from here: spr movie" in capsys.readouterr().err
    assert main([*given, *hasty]) == 0
    told = capsys.readouterr().err
    assert [name for name in ("track", "search/start-1", "search/start-2") if f"{name}: loaded" in told] == [
        "track",
        "search/start-1",
        "search/start-2",
    ]
    whole, own = (json.loads((folder / "run.json").read_text()) for folder in (out, out / "particle_001"))
    assert whole["status"] == own["status"] == "not determined"
    assert whole["metrics"]["particles"] == 1
    assert "Particle 1 is not determined" in whole["warnings"][0]
    assert own["warnings"][0].startswith("Not determined")
    for name in ("motion.csv", "background.json", "tracks.csv", "report.html"):
        assert (out / name).exists()
    for name in ("frames.mrcs", "frames.star", "weights.csv", "report.html"):
        assert (out / "particle_001" / name).exists()
    assert "particle_001/report.html" in (out / "report.html").read_text()
    assert main([*given, *hasty]) == 0
    assert "this run has ended" in capsys.readouterr().out
    assert main([*given, *hasty, "--seed", "5"]) == 2
    assert "seed" in capsys.readouterr().err


def _interrupted(*_: object) -> float:
    raise KeyboardInterrupt
