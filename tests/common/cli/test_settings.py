"""The command line, a TOML file and run.json are three spellings of one dataclass, checked alike."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from common.cli.program import Parser
from common.cli.settings import add_settings, describe_fields, list_settings, read_settings
from common.data import InputError
from common.io.run_record import jsonable


@dataclass(frozen=True)
class Search:
    """How poses are searched.

    n_directions : of the grid, >= 12.
    temperatures : start and end,
        relative to the likelihood's.
    """

    n_directions: int = 400
    temperatures: tuple[float, float] = (10.0, 1.0)


@dataclass(frozen=True)
class Settings:
    """All settings.

    seed : of all randomness.
    element : chemical symbol.
    method, use_halves : how; 100 % or not.
    seeds : of the starts.
    resolution : angstrom.
    """

    seed: int = 1
    element: str | None = None
    method: Literal["soft", "hard"] = "soft"
    use_halves: bool = True
    seeds: tuple[int, ...] = (1, 2)
    resolution: float | None = 2.0
    search: Search = field(default_factory=lambda: Search(n_directions=300))

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"the seed is {self.seed}, expected 0 or more")


@dataclass(frozen=True)
class Reading:
    pixel_size: float | None = None


SECTIONS = {"input": Reading, "": Settings}


def read(arguments: list[str], config: Path | None = None) -> dict[str, Any]:
    parser = Parser(prog="spr test")
    add_settings(parser, Reading, section="input")
    add_settings(parser, Settings)
    return read_settings(SECTIONS, parser.parse_all(arguments), config)


def test_nothing_given_means_the_defaults_also_of_nested_instances() -> None:
    assert read([]) == {"input": Reading(), "": Settings()}
    assert read(["--search.temperatures", "5", "1"])[""].search == Search(300, (5.0, 1.0))


WANTED = Settings(7, "Au", "hard", False, (4, 5, 6), None, Search(200, (8.0, 0.5)))
COMMAND_LINE = (
    "--seed 7 --element Au --method hard --no-use-halves --seeds 4 5 6 --resolution none "
    "--search.n-directions 200 --search.temperatures 8 0.5 --pixel-size 0.35"
)
TOML = """
seed = 7
element = "Au"
method = "hard"
use_halves = false
seeds = [4, 5, 6]
resolution = 3

[search]
n-directions = 200
temperatures = [8, 0.5]

[input]
pixel_size = 0.35
"""


def test_three_spellings_give_one_dataclass(tmp_path: Path) -> None:
    expected = {"input": Reading(0.35), "": WANTED}
    assert read(COMMAND_LINE.split()) == expected
    (tmp_path / "a.toml").write_text(TOML)
    assert read(["--resolution", "none"], tmp_path / "a.toml") == expected
    record = {"settings": jsonable({"input": asdict(Reading(0.35)), **asdict(WANTED)})}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert read([], tmp_path / "run.json") == expected


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TOML)
    assert read(["--search.n-directions", "50"], tmp_path / "a.toml")[""].search == Search(50, (8.0, 0.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1", "'sed' is not a setting; did you mean 'seed'"),
        ("[search]\nn_direction = 1", r"'search\.n_direction' is not a setting; did you mean 'search\.n_directions'"),
        ("n_directions = 1", r"did you mean 'search\.n_directions'"),
        ("[serch]\nn_directions = 1", r"'serch\.n_directions' is not a setting; did you mean 'search\.n_directions'"),
        ("zzz = 1", "see --help"),
        ('seed = "x"', "seed is 'x', expected a whole number"),
        ("seed = 1.5", r"seed is 1\.5, expected a whole number"),
        ("seed = true", "seed is True, expected a whole number"),
        ("use_halves = 1", "use_halves is 1, expected true or false"),
        ("resolution = nan", "resolution is nan, expected a number"),
        ("method = 'firm'", "expected one of soft, hard"),
        ("[search]\ntemperatures = [1]", "temperatures is 1, expected 2 values"),
        ("seeds = 3", "expected a list of values"),
        ("search = 3", "'search' is not a setting"),
        ("seed = ", "is not TOML"),
        ("seed = -1", "the seed is -1"),
    ],
)
def test_what_a_file_gets_wrong_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read([], tmp_path / "a.toml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--seed x", "--seed is 'x', expected a whole number"),
        ("--seed none", "--seed is none, expected a whole number"),
        ("--resolution nan", "--resolution is 'nan', expected a number, or none"),
        ("--method firm", "--method is 'firm', expected one of soft, hard"),
        ("--search.temperatures 1", r"--search\.temperatures is 1, expected 2 values"),
        ("--search.n-direction 3", r"--search\.n-direction is not an option of spr test; did you mean '--search"),
        ("--sed=3", "--sed is not an option of spr test; did you mean '--seed'"),
        ("--see 3", "--see is not an option"),
        ("--seed", "--seed: expected one argument"),
        ("extra", "'extra' was not expected"),
    ],
)
def test_what_the_command_line_gets_wrong_is_one_line(arguments: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read(arguments.split())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["missing.toml", "missing.json"])
def test_a_missing_file_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read([], tmp_path / name)


def test_help_says_what_each_setting_is_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert describe_fields(Search)["temperatures"] == "start and end, relative to the likelihood's."
    assert describe_fields(Settings)["use_halves"] == "how; 100 % or not."
    assert [s.key for s in list_settings(Settings)][-2:] == ["search.n_directions", "search.temperatures"]
    with pytest.raises(SystemExit) as end:
        read(["--help"])
    assert end.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "of the grid, >= 12 (default: 300)" in said
    assert "chemical symbol (default: from the data)" in said
    assert "start and end, relative to the likelihood's (default: 10.0 1.0)" in said
