"""The tomography command says what it cannot do yet."""

from __future__ import annotations

import pytest

from aet_tilt.cli import main


def test_reconstruct_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconstruct", "tilts.mrc"]) == 2
    said = capsys.readouterr()
    assert "not there yet" in said.err
    assert said.err.count("\n") == 1


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0
    assert "aet-tilt (nanospr)" in capsys.readouterr().out
    assert main(["recon"]) == 2
