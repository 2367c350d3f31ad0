from collections.abc import Callable
from pathlib import Path

import pytest
from gemmi import cif
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import InputError
from common.io import read_particles
from common.io.star import StarTable, numbers, read_star, write_star

Star = Callable[..., Path]
ROWS = [f"{k:06d}@stack.mrcs 1" for k in range(1, 25)]


def _star(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.star"
    path.write_text(text, newline="")
    return path


def test_tables_come_back_as_they_were_written(tmp_path: Path) -> None:
    tables = (
        StarTable("general", ("rlnA", "rlnB"), (("1", "two words"),), looped=False),
        StarTable("particles", ("rlnImageName", "rlnNote"), (("001@a b.mrcs", "x#y"), ("2@c.mrcs", ""), ("3", "_d"))),
    )
    write_star(tmp_path / "a.star", tables)
    raw = (tmp_path / "a.star").read_bytes()
    assert b"\r" not in raw
    assert raw.endswith(b"\n")
    back = read_star(tmp_path / "a.star")
    for table in tables:
        again = back.table(table.name)
        assert again is not None
        assert (again.columns, again.rows, again.looped) == (table.columns, table.rows, table.looped)
    names = cif.read_file(str(tmp_path / "a.star"))[1].find_values("_rlnImageName")
    assert list(names) == ["'001@a b.mrcs'", "2@c.mrcs", "3"]


def test_rows_know_their_line(tmp_path: Path) -> None:
    star = read_star(_star(tmp_path, "data_x\nloop_\n_rlnA #1\n1\n\n# no row\n2\n"))
    assert star.tables[0].lines == (4, 7)
    assert star.tables[0].where(1) == "row 2 (line 7)"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("3", r"row 3 \(line 24\) is too short: 1 values for 2 columns"),
        ("3 1 9", r"row 3 \(line 24\) is too long: 3 values for 2 columns"),
    ],
)
def test_short_and_long_rows_are_named_by_line(stack: Path, write_star31: Star, row: str, says: str) -> None:
    path = write_star31([*ROWS[:2], row, *ROWS[3:]])
    assert path.read_text().split("\n")[23] == row
    with pytest.raises(InputError, match=rf"particles\.star: {says}"):
        read_particles(path)


def test_a_short_row_is_not_made_up_for_by_a_long_one(stack: Path, write_star31: Star) -> None:
    with pytest.raises(InputError, match=r"row 1 .* too short"):
        read_particles(write_star31(["000001@stack.mrcs", "1 000002@stack.mrcs 1", *ROWS[2:]]))


def test_duplicate_columns_are_named(stack: Path, write_star31: Star) -> None:
    path = write_star31([f"{row} 1" for row in ROWS], ("rlnImageName", "rlnOpticsGroup", "rlnOpticsGroup"))
    with pytest.raises(InputError, match=r"particles\.star: line \d+: duplicate tag _rlnOpticsGroup|names the column"):
        read_particles(path)
    path = write_star31([f"{row} 1" for row in ROWS], ("rlnImageName", "rlnOpticsGroup", "rlnopticsgroup"))
    with pytest.raises(InputError, match=r"duplicate tag|names the column _rln.* twice"):
        read_particles(path)


def test_windows_line_ends_are_read_and_noted_and_not_written(stack: Path, write_star31: Star, tmp_path: Path) -> None:
    path = write_star31(ROWS, end="\r\n")
    particles = read_particles(path)
    assert len(particles.stack) == 24
    assert any("particles.star: has Windows line ends (CRLF), which RELION refuses" in note for note in particles.notes)
    assert particles.source is not None
    write_star(tmp_path / "b.star", particles.source.tables)
    assert b"\r" not in (tmp_path / "b.star").read_bytes()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        ("hello\n", "line 1: expected block header"),
        ("data_x\n\n", "holds no table"),
        ("data_x\nloop_\n_a\n_b\n1 'open\n", "unterminated|values for 2 columns"),
        ("data_x\nloop_\n_a\n1\nloop_\n_b\n2\n", "data_x holds 2 tables"),
        ("data_x\nloop_\n_a\n1\ndata_x\nloop_\n_b\n2\n", "duplicate block name"),
        ("data_x\nloop_ _a\n1\n", "line 2 has '_a' after loop_"),
        ("data_x\nloop_\n_a _b\n1 2\n", "line 3 has '_b' after _a"),
        ("data_x\nloop_\n_a\n;\ntext\n;\n", "line 4 starts a text field"),
        ("data_x\nsave_y\n_a 1\nsave_\n", "save frame"),
        ("data_x\nloop_\n_a\n\x001\n", "byte 17 is 0x00, expected text"),
    ],
)
def test_what_is_no_star_file_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=rf"a\.star: .*({says})") as error:
        read_particles(_star(tmp_path, text))
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.star").write_bytes(b"data_x\n\xff\xfe\n")
    with pytest.raises(InputError, match=r"a\.star: byte 8 is not UTF-8"):
        read_particles(tmp_path / "a.star")


@pytest.mark.parametrize("value", ["nan", "NaN", "inf", "-inf", "abc", "1_000", "''", "1e999", "0x10"])
def test_values_that_are_not_finite_numbers_are_named_by_row(tmp_path: Path, value: str) -> None:
    star = read_star(_star(tmp_path, f"data_x\nloop_\n_rlnA\n1.5\n{value}\n"))
    with pytest.raises(InputError, match=r"a\.star: row 2 \(line 5\): rlnA is '.*', expected a (finite )?number"):
        numbers(star, star.tables[0], "rlnA")


_WORDS = "data_ data_particles data_optics loop_ _rlnImageName _rlnDefocusU 1 0@a 000001@s.mrcs 2@../b nan ' ; # é"
_PIECES = st.sampled_from([*_WORDS.split(), "_rlnOpticsGroup #2", '"', "\n", "\n", "\n", "\r\n", "\t"])
_LINES = st.lists(_PIECES, min_size=1, max_size=40).map(lambda pieces: " ".join(pieces).encode())


@settings(max_examples=200, deadline=None)
@given(raw=_LINES | st.binary(min_size=1))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.star"
    path.write_bytes(raw)
    try:
        star = read_star(path)
    except InputError as error:
        says = str(error)
    else:
        says = str(path)
        assert all(len(row) == len(table.columns) for table in star.tables for row in table.rows)
    assert str(path) in says
    assert "\n" not in says
    with pytest.raises(InputError):  # there is no stack beside it
        read_particles(path)
