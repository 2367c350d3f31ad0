"""Files as wholes: written entirely or not at all, hashed, found without leaving the data folder."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from common.data import InputError

_WHAT_TO_DO = {
    errno.ENOSPC: "the disk is full; free some space or write elsewhere",
    errno.EFBIG: "the file would be larger than is allowed here; write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some space or write elsewhere",
    errno.EACCES: "the folder is not writable; choose another one",
    errno.EPERM: "the folder is not writable; choose another one",
    errno.EROFS: "the folder is not writable (read-only file system); choose another one",
    errno.ENOENT: "the folder does not exist; create it first",
    errno.ENOTDIR: "its parent is not a folder; choose another path",
    errno.EISDIR: "there is a folder of that name; choose another path",
}


def _cannot_write(path: Path, error: OSError) -> InputError:
    reason = _WHAT_TO_DO.get(error.errno or 0, f"{error.strerror or error}; write elsewhere")
    return InputError(f"{path}: cannot be written: {reason}")


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears under its name only once it is whole.

    Parameters
    ----------
    path : the file to write or replace.
    mode : "wb" for bytes or "w" for text (UTF-8, LF line ends).

    Yields
    ------
    A file open for writing, in the same folder under a temporary name. When the block ends it is synced to the disk and
    renamed; when the block fails it is removed, and a file of that name that was there before stays as it was.

    Raises
    ------
    InputError : the folder is missing or not writable, or the disk is full.
    """
    target = Path(path)
    if mode not in ("w", "wb"):
        raise ValueError(f"mode is {mode!r}, expected 'w' or 'wb'")
    temporary = target.parent / f".{target.name}.{secrets.token_hex(6)}.tmp"
    try:
        if target.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise _cannot_write(target, error) from None
    try:
        text = {} if mode == "wb" else {"encoding": "utf-8", "newline": "\n"}
        with os.fdopen(descriptor, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    _sync_folder(target.parent)


def write_csv(path: str | os.PathLike[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows, the names of the columns first, as CSV with LF line ends, whole or not at all.

    Raises
    ------
    InputError : the folder is missing or not writable, or the disk is full.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic_write(path, "w") as file:
        file.write(text.getvalue())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with require_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_file(path: str | os.PathLike[str]) -> Path:
    """The path, once it is known to be a readable file that is not empty.

    Raises
    ------
    InputError : there is no such file, it is a folder, it is empty, or it cannot be read.
    """
    file = Path(path)
    try:
        if "\0" in str(file) or not file.exists():
            raise InputError(f"{str(file)!r}: there is no such file; check the path")
        if not file.is_file():
            raise InputError(f"{file}: is not a file; give a .star, .mrcs, .mrc, .cs, .tif or microscope file")
        if file.stat().st_size == 0:
            raise InputError(f"{file}: the file is empty (0 bytes); write or copy it again")
        with file.open("rb"):
            return file
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None


def find_beside(named: str, described_in: Path, where: str, *, levels: int = 4, allow_outside: bool = False) -> Path:
    """Find a file that a table names relative to its project folder (RELION, cryoSPARC).

    Parameters
    ----------
    named : the path as written in the table.
    described_in : the table; its folder and `levels` folders above it are searched, nearest first.
    where : what to call the row in a message, e.g. ``"particles.star: row 3"``.
    levels : how many folders above the table's may be the project folder.
    allow_outside : also follow ``..`` and absolute paths out of those folders.

    Raises
    ------
    InputError : the path leaves the data folder, or the file is nowhere (the message says where it was looked for).
    """
    folder = Path(os.path.abspath(described_in.parent))
    normal = os.path.normpath(named) if named else ""
    if not normal or normal == "." or "\0" in named:
        raise InputError(f"{where}: the stack's name is {named!r}, expected the path of a file")
    project = [folder, *folder.parents][: levels + 1]
    project = [root for root in project if root != Path(root.anchor)] or [folder]
    if os.path.isabs(normal):
        marked = [root for root in project if root == folder or (root / "default_pipeline.star").exists()]
        if not allow_outside and not any(Path(normal).is_relative_to(root) for root in marked):
            raise InputError(
                f"{where}: the stack {named!r} lies outside the data folder {folder}; "
                "copy or link it there, or allow paths outside (allow_outside)"
            )
        candidates = [Path(normal)]
    elif normal.split(os.sep)[0] == "..":
        if not allow_outside:
            raise InputError(
                f"{where}: the stack {named!r} leaves the data folder {folder}; "
                "copy or link it there, or allow paths outside (allow_outside)"
            )
        candidates = [folder / normal]
    else:
        candidates = [root / normal for root in project]
    for candidate in candidates:
        with suppress(OSError):
            if candidate.is_file():
                return candidate
    looked = ", ".join(str(candidate.parent) for candidate in candidates)
    raise InputError(f"{where}: the stack {named!r} is missing; looked in {looked}; put it there or correct the path")
