"""``spr classify`` as a user gives it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from common.data import InputError
from common.io import read_particles
from common.io.star import read_star
from spr.class_pipeline import ClassifySettings
from spr.cli import main
from spr.cli.classify import frame_order

QUICK = ("--classes", "2", "--annealing.iterations", "3")


@pytest.fixture(scope="module")
def particles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("particles")
    given = ("--n-images", "40", "--box-size", "48", "--n-atoms", "13", "--snr", "4", "--seed", "2")
    assert main(["simulate", "--out", str(folder), *given]) == 0
    star = folder / "particles.star"
    lines = star.read_text().splitlines()
    # a column of the user's own, which must come through
    head = max(i for i, line in enumerate(lines) if line.startswith("_rln"))
    number = int(lines[head].split("#")[1]) + 1
    rows = [f"{line} {k}" if "@" in line else line for k, line in enumerate(lines)]
    rows.insert(head + 1, f"_rlnMyColumn #{number}")
    star.write_text("\n".join(rows) + "\n")
    return star


def test_command_writes_everything_and_does_not_run_twice(
    particles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["classify", str(particles), "--out", str(run), *QUICK]) == 0
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["settings"]["classes"] == 2
    assert set(record["outputs"]) >= {"class_averages.mrcs", "classes.star", "classes.csv", "frc.csv", "report.html"}
    averages = read_particles(run / "class_averages.mrcs").stack
    assert averages.images.shape == (2, 48, 48)
    assert averages.pixel_size == pytest.approx(0.35)
    table = next(t for t in read_star(run / "classes.star").tables if "rlnClassNumber" in t)
    given = next(t for t in read_star(particles).tables if "rlnMyColumn" in t)
    assert table.strings("rlnMyColumn") == given.strings("rlnMyColumn")
    assert [name.split("@")[0] for name in table.strings("rlnImageName")] == [f"{k:06d}" for k in range(1, 41)]
    assert set(table.strings("rlnClassNumber")) <= {"1", "2"}
    for column in ("rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnSelected"):
        assert column in table
    assert {float(tilt) for tilt in table.strings("rlnAngleTilt")} == {0.0}
    shutil.copy(particles.with_name("particles.mrcs"), tmp_path)
    written = read_particles(run / "classes.star")
    assert written.poses is not None
    counts = [int(line.split(",")[1]) for line in (run / "classes.csv").read_text().splitlines()[1:]]
    assert sum(counts) <= 40
    assert (run / "frc.csv").read_text().startswith("class,frequency_per_angstrom,correlation,coefficients")
    page = (run / "report.html").read_text()
    assert page.count("class average ") >= 2
    before = (run / "classes.star").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["classify", str(particles), "--out", str(run), *QUICK]) == 0
    assert "has ended" in capsys.readouterr().out
    assert (run / "classes.star").stat().st_mtime_ns == before
    assert main(["classify", str(particles), "--out", str(run), *QUICK, "--classes", "3"]) == 2
    assert "classes = 2, not 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--classes", "0"), "0 classes are wanted"),
        (("--classes", "many"), "expected a whole number"),
        (("--classes", "30"), "30 classes of 40 images"),
        (("--annealing.iterations", "1"), "1 iterations"),
    ],
)
def test_bad_settings_are_one_line(
    particles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], said: str
) -> None:
    assert main(["classify", str(particles), "--out", str(tmp_path / "run"), *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_time_comes_from_the_names_of_images() -> None:
    order = frame_order(("3@b.mrcs", "1@a.mrcs", "1@b.mrcs", "4@a.mrcs"))
    assert [int(k) for k in order.order] == [2, 0, 1, 3]
    assert order.gaps.tolist() == [0, 2, 0, 3]
    with pytest.raises(InputError, match=r"image 1 is 'x\.png'"):
        frame_order(("x.png",))
    with pytest.raises(InputError, match=r"1@a\.mrcs comes twice"):
        frame_order(("1@a.mrcs", "1@a.mrcs"))


def test_auto_is_a_number_of_classes(particles: Path, tmp_path: Path) -> None:
    assert ClassifySettings().classes is None
    run = tmp_path / "run"
    command = ["classify", str(particles), "--out", str(run), "--classes", "auto", "--annealing.iterations", "2"]
    assert main([*command, "--no-halves"]) == 0
    assert not (run / "frc.csv").exists()
    assert torch.isfinite(read_particles(run / "class_averages.mrcs").stack.images).all()
