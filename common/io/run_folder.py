"""The folder of a run: made or resumed, locked, and described by its ``run.json``."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from common.data import InputError
from common.io.checkpoint import CheckpointObserver, is_first_process, make_folder, wait_for_all
from common.io.files import atomic_write
from common.io.metrics import MetricsObserver
from common.io.run_record import (
    FINISHED,
    NOT_DETERMINED,
    RUNNING,
    check_same_run,
    jsonable,
    read_record,
    resumed,
    settings_that_matter,
    versions,
)

OUTPUTS = (
    "volume.mrc",
    "half1.mrc",
    "half2.mrc",
    "mask.mrc",
    "fsc.csv",
    "frc.csv",
    "atoms.xyz",
    "atoms.cif",
    "structure.json",
    "pair_distribution.csv",
    "particles.star",
    "aligned.mrc",
    "aligned.tlt",
    "aligned.xf",
    "euler.txt",
    "multislice.csv",
    "class_averages.mrcs",
    "classes.star",
    "classes.csv",
    "differences.csv",
    "motion.csv",
    "background.json",
    "tracks.csv",
    "frames.mrcs",
    "frames.star",
    "weights.csv",
    "orientations.csv",
    "windows.csv",
    "windows_fsc.csv",
    "metrics.csv",
    "run.json",
    "report.html",
)


class RunFolder:
    """An open run folder: made by `RunFolder.open`; closing it (or a ``with`` statement) releases the lock."""

    def __init__(
        self, path: Path, record: dict[str, Any], lock: IO[bytes] | None, *, begun: bool = False, made: bool = False
    ) -> None:
        self.path = path
        self.record = record
        self._lock = lock
        self._begun = begun  # by this opening, and so there was no run before
        self._made = made  # the folder itself

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        inputs: Mapping[str, str],
        settings: Any,
        command: str = "",
        device: str = "cpu",
        overwrite: bool = False,
    ) -> RunFolder:
        """Make a run folder, or resume the run that is in it.

        Parameters
        ----------
        path : the folder; made when missing.
        inputs : SHA-256 of each input file under its name.
        settings : a dataclass or mapping of everything the result depends on, the seed among it.
        command : the subcommand, e.g. ``"reconstruct"``.
        device : "cpu" or "cuda"; a run is resumed on the kind it began on.
        overwrite : remove the run that is there (only files that a run writes) and begin anew.

        Raises
        ------
        InputError : the folder holds something else, a run of other input or settings (the message says what differs),
            or a run that is going on; or it is not writable.
        """
        folder = Path(path)
        description = {
            "program": "nanospr",
            "command": command,
            "status": RUNNING,
            "device": torch.device(device).type,
            "settings": jsonable(settings),
            "inputs": dict(inputs),
            "versions": versions(),
            "metrics": {},
            "warnings": [],
        }
        if not is_first_process():
            wait_for_all()  # the first process makes the folder
            return cls(folder, read_record(folder) or description, None)
        made = not folder.exists()
        make_folder(folder)
        _check_contents(folder)
        lock = _lock(folder)
        try:
            if overwrite and (folder / "run.json").exists():
                _remove_run(folder)
            record = read_record(folder)
            begun = record is None
            if record is None:
                record = description
            else:
                check_same_run(folder, record, description)
                record = resumed(record, description)
            _remove_torn(folder)
            run = cls(folder, record, lock, begun=begun, made=made)
            run._save()
        except BaseException:
            lock.close()
            raise
        wait_for_all()
        return run

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; the run can be resumed."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @contextmanager
    def computing(self, source: str | os.PathLike[str]) -> Iterator[None]:
        """Around what may refuse the input: the message names ``source``, and a run that has only begun is withdrawn.

        Raises
        ------
        InputError : what was raised inside, with the name of the source in front.
        """
        try:
            yield
        except InputError as error:
            self._withdraw()
            named = str(error).startswith(str(source))
            raise InputError(str(error) if named else f"{source}: {error}") from None

    def _withdraw(self) -> None:
        """Leave nothing of a run that this opening began and that has nothing to go on from."""
        if not self._begun or any((self.path / "checkpoints").rglob("*.safetensors")):
            return
        with suppress(OSError):
            for name in ("run.json", "metrics.csv", ".lock"):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
            if self._made:
                self.path.rmdir()

    @property
    def status(self) -> str:
        """ "running" (also of a killed run), "finished" or "not determined"."""
        return self.record["status"]

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended and everything it wrote is still there."""
        written = self.record.get("outputs", [])
        return self.status != RUNNING and all((self.path / name).exists() for name in written)

    def file(self, name: str) -> Path:
        """The path of one of the run's files."""
        return self.path / name

    def observers(self, *, interval: float = 10.0) -> tuple[MetricsObserver, CheckpointObserver]:
        """The observers that keep the run's table of metrics and its checkpoints.

        interval : seconds between two checkpoints of one loop.
        """
        labels = {
            "settings": json.dumps(settings_that_matter(self.record["settings"]), sort_keys=True),
            "input": ",".join(sorted(self.record["inputs"].values())),
            "device": self.record["device"],
        }
        checkpoints = CheckpointObserver(self.path / "checkpoints", labels=labels, interval=interval)
        return MetricsObserver(self.path / "metrics.csv"), checkpoints

    def finish(
        self,
        *,
        metrics: Mapping[str, Any],
        warnings: Sequence[str] = (),
        notes: Sequence[str] = (),
        determined: bool = True,
        timing: Mapping[str, float] | None = None,
    ) -> None:
        """Write the final ``run.json`` and remove the checkpoints.

        metrics : every number worth keeping, under its name (unit in the name).
        warnings : in words; why, when the structure was not determined.
        notes : in words, what was assumed or odd in the input but does not speak against the result.
        determined : whether the run stands by its atoms.
        timing : CPU and wall seconds.
        """
        if not is_first_process():
            return
        self.record = self.record | {
            "status": FINISHED if determined else NOT_DETERMINED,
            "metrics": jsonable(metrics),
            "warnings": [*self.record["warnings"], *(w for w in warnings if w not in self.record["warnings"])],
            "notes": list(notes),
            "outputs": [name for name in OUTPUTS if name == "run.json" or (self.path / name).exists()],
        }
        if timing is not None:
            self.record["timing"] = jsonable(timing)
        self._save()
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def _save(self) -> None:
        with atomic_write(self.path / "run.json", "w") as file:
            file.write(json.dumps(self.record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _check_contents(folder: Path) -> None:
    """A folder that is not empty must be a run folder: nothing of the user's is ever replaced."""
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read ({error.strerror}); choose another --out") from None
    ours = {"run.json", ".lock"}
    foreign = [name for name in names if not (name in ours or name.startswith(".run.json."))]
    if foreign and "run.json" not in names:
        first = sorted(foreign)[0]
        raise InputError(f"{folder}: holds other files ({first}) and no run; choose another folder with --out")


def _lock(folder: Path) -> IO[bytes]:
    path = folder / ".lock"
    try:
        file = path.open("ab")
    except OSError as error:
        raise InputError(f"{folder}: the folder is not writable ({error.strerror}); choose another --out") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise InputError(f"{folder}: another run is going on here; wait for it or choose another --out") from None
    return file


def _remove_run(folder: Path) -> None:
    try:
        record = folder / "run.json"
        if '"program": "nanospr"' not in record.read_text(encoding="utf-8", errors="replace"):
            raise InputError(f"{record}: was not written by this program; choose another folder with --out")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        for name in OUTPUTS:
            (folder / name).unlink(missing_ok=True)
        for own in (
            *folder.glob("class_[0-9][0-9][0-9]"),
            *folder.glob("particle_[0-9][0-9][0-9]"),
        ):  # runs of their own
            if (own / "run.json").exists():
                _remove_run(own)
                (own / ".lock").unlink(missing_ok=True)
                if not any(own.iterdir()):
                    own.rmdir()
    except OSError as error:
        raise InputError(f"{folder}: the old run cannot be removed ({error.strerror}); choose another --out") from None


def _remove_torn(folder: Path) -> None:
    """Remove what a run killed while writing left: temporary files that never got their name."""
    for torn in [*folder.glob(".*.tmp"), *(folder / "checkpoints").glob("**/.*.tmp")]:
        torn.unlink(missing_ok=True)
