import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from common.data import InputError
from common.io import atomic_write, sha256
from common.io.files import find_beside, require_file


def test_a_file_appears_whole_with_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_write(path, "w") as file:
        file.write("one\ntwo\n")
        assert not path.exists()
    assert path.read_bytes() == b"one\ntwo\n"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(InputError, match=r"volume\.mrc: cannot be written: the disk is full") as error,
        atomic_write(tmp_path / "volume.mrc") as file,
    ):
        file.write(b"x")
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_write_that_is_refused_midway_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="larger than is allowed"), atomic_write(tmp_path / "a") as file:
        raise OSError(errno.EFBIG, "File too large", file.name)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_writable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)  # permissions do not bind root, who may be running this
        with (
            pytest.raises(InputError, match=r"a\.xyz: cannot be written: the folder is not writable"),
            atomic_write(tmp_path / "a.xyz"),
        ):
            pass


@pytest.mark.parametrize(
    ("place", "says"),
    [("missing/a.mrc", "the folder does not exist"), ("file/a.mrc", "not a folder"), ("folder", "folder of that name")],
)
def test_a_place_where_no_file_can_be_is_said(tmp_path: Path, place: str, says: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=says), atomic_write(tmp_path / place) as file:
        file.write(b"x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_sha256_is_that_of_hashlib(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 1000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.mrc.*no such file"):
        require_file(tmp_path / "gone.mrc")
    (tmp_path / "empty.mrc").touch()
    with pytest.raises(InputError, match=r"empty\.mrc: the file is empty"):
        require_file(tmp_path / "empty.mrc")
    with pytest.raises(InputError, match="is not a file"):
        require_file(tmp_path)


def test_a_stack_is_found_beside_the_table_or_in_the_project_above_it(tmp_path: Path) -> None:
    table = tmp_path / "project" / "Refine3D" / "job001" / "run_data.star"
    stack = tmp_path / "project" / "Extract" / "job000" / "a.mrcs"
    for path in (table, stack):
        path.parent.mkdir(parents=True)
        path.touch()
    assert find_beside("Extract/job000/a.mrcs", table, "row 1") == stack
    near = table.parent / "Extract" / "job000" / "a.mrcs"
    near.parent.mkdir(parents=True)
    near.touch()
    assert find_beside("Extract/job000/a.mrcs", table, "row 1") == near


def test_paths_that_leave_the_data_folder_are_refused_unless_allowed(tmp_path: Path) -> None:
    outside, table = tmp_path / "other" / "a.mrcs", tmp_path / "data" / "p.star"
    for path in (outside, table):
        path.parent.mkdir()
        path.touch()
    for named in ("../other/a.mrcs", "x/../../other/a.mrcs", str(outside)):
        with pytest.raises(InputError, match=r"row 1: .*the data folder"):
            find_beside(named, table, "row 1")
        assert find_beside(named, table, "row 1", allow_outside=True).samefile(outside)
    inside = table.parent / "a.mrcs"
    inside.touch()
    assert find_beside(str(inside), table, "row 1") == inside


def test_an_absolute_path_into_the_relion_project_is_allowed(tmp_path: Path) -> None:
    table, stack = tmp_path / "Class3D" / "p.star", tmp_path / "Extract" / "a.mrcs"
    for path in (table, stack):
        path.parent.mkdir()
        path.touch()
    with pytest.raises(InputError, match="outside the data folder"):
        find_beside(str(stack), table, "row 1")
    (tmp_path / "default_pipeline.star").touch()
    assert find_beside(str(stack), table, "row 1") == stack
