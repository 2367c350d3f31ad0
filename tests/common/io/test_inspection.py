import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.data import InputError
from common.io import peek

Star, Write = Callable[..., Path], Callable[..., Path]


def test_a_stack_says_what_it_holds(stack: Path) -> None:
    found = peek(stack)
    assert (found["format"], found["images"], found["box_size"], found["dtype"]) == ("MRC", 24, 16, "float32")
    assert found["pixel_size"] == 0.5
    assert found["optics"] is None
    assert found["has_poses"] is False
    assert found["file_bytes"] == found["total_bytes"] == stack.stat().st_size


def test_a_particle_file_says_its_optics_and_columns(stack: Path, write_star31: Star) -> None:
    columns = ("rlnImageName", "rlnOpticsGroup", "rlnDefocusU", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    path = write_star31([f"{k}@stack.mrcs 1 {-50 - k} 0 0 0" for k in (1, 2, 3)], columns)
    found = peek(path)
    assert (found["format"], found["images"], found["box_size"]) == ("RELION 3.1 STAR", 3, 16)
    assert found["optics"]["defocus_u"] == (-53.0, -51.0)
    assert found["optics"]["voltage_kv"] == (300.0, 300.0)
    assert found["columns"] == columns
    assert found["has_poses"] is True
    assert found["stacks"] == (stack,)
    assert found["total_bytes"] == path.stat().st_size + stack.stat().st_size


def test_a_cryosparc_file_says_its_optics(stack: Path) -> None:
    table = np.zeros(4, dtype=[("blob/path", "S20"), ("blob/idx", "u4"), ("blob/psize_A", "f4"), ("ctf/df1_A", "f4")])
    table["blob/path"], table["blob/psize_A"], table["ctf/df1_A"] = b">stack.mrcs", 0.35, [1, 2, 3, 4]
    with (stack.parent / "p.cs").open("wb") as file:
        np.save(file, table)
    found = peek(stack.parent / "p.cs")
    assert (found["images"], found["pixel_size"], found["optics"]["defocus_u"]) == (4, 0.35, (1.0, 4.0))


def test_the_images_are_not_read(tmp_path: Path, write_mrcs: Write) -> None:
    path = write_mrcs(tmp_path / "a.mrcs", np.zeros((50, 128, 128), np.float32))
    tracemalloc.start()
    peek(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20 < path.stat().st_size


def test_bad_files_are_refused_as_when_they_are_read(stack: Path, write_star31: Star, write_mrcs: Write) -> None:
    with pytest.raises(InputError, match=r"'gone\.mrcs' is missing"):
        peek(write_star31(["1@gone.mrcs 1"]))
    with pytest.raises(InputError, match=r"row 1 .*image 25 of stack\.mrcs, which holds 24 images"):
        peek(write_star31(["25@stack.mrcs 1"]))
    with pytest.raises(InputError, match=r"b\.mrcs: the images are 16 x 8 pixels"):
        peek(write_mrcs(stack.parent / "b.mrcs", np.zeros((2, 8, 16), np.float32)))
    (stack.parent / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"a\.txt: the format '\.txt' is unknown"):
        peek(stack.parent / "a.txt")
