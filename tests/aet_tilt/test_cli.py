"""The tomography command takes what it should and refuses the rest in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from aet_tilt.cli import main


def test_a_missing_file_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconstruct", str(tmp_path / "tilts.mrc"), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert "tilts.mrc" in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0
    assert "aet-tilt (nanospr)" in capsys.readouterr().out
    assert main(["recon"]) == 2
