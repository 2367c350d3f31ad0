"""The record of a run, ``run.json``: read, compared with what is wanted, brought up to date."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from common.data import InputError

RUNNING, FINISHED, NOT_DETERMINED = "running", "finished", "not determined"
NOT_INSTALLED = "not installed"
# These change memory and speed, never the result: a run may be resumed with others.
FREE_SETTINGS = frozenset({"batch_size"})


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    names = ("nanospr", "torch", "numpy", "scipy", "ase")
    return {"python": platform.python_version(), **{name: package_version(name) for name in names}}


def package_version(name: str) -> str:
    """The version of an installed package, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return NOT_INSTALLED


def jsonable(value: Any) -> Any:
    """Settings and metrics as JSON values: dataclasses as objects, tuples as lists, NaN and infinities as strings.

    Raises
    ------
    TypeError : something that has no such form.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return jsonable(asdict(value))
    if isinstance(value, torch.Tensor):
        return jsonable(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "item"):  # a numpy scalar
        return jsonable(value.item())
    raise TypeError(f"{type(value).__name__} has no form in run.json")


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a folder, None where there is none.

    Raises
    ------
    InputError : it cannot be read, or is not the record of a run.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({reason}); choose another folder (--out) or --overwrite") from None
    expected = {"command": str, "device": str, "settings": dict, "inputs": dict, "versions": dict, "warnings": list}
    if not isinstance(record, dict) or record.get("program") != "nanospr":
        raise InputError(f"{path}: was not written by this program; choose another folder with --out")
    for key, kind in expected.items():
        if not isinstance(record.get(key), kind):
            raise InputError(f"{path}: has no {key!r}; choose another folder with --out or replace it with --overwrite")
    return record


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def settings_that_matter(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings the result depends on, under dotted names."""
    return {key: value for key, value in _flat(settings).items() if key.rpartition(".")[2] not in FREE_SETTINGS}


def check_same_run(folder: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Whether a run may go on as another.

    Raises
    ------
    InputError : command, device, input or a setting differs; the message says which.
    """
    what_to_do = "choose another folder with --out or replace it with --overwrite"
    for key in ("command", "device"):
        if there[key] != wanted[key]:
            raise InputError(f"{folder}: holds a run with {key} {there[key]}, not {wanted[key]}; {what_to_do}")
    if sorted(there["inputs"].values()) != sorted(wanted["inputs"].values()):
        names = [name for name, digest in wanted["inputs"].items() if digest not in there["inputs"].values()]
        new = names[0] if names else "fewer files"
        raise InputError(f"{folder}: holds a run of other input (not of {new}); {what_to_do}")
    before, now = settings_that_matter(there["settings"]), settings_that_matter(wanted["settings"])
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise InputError(f"{folder}: holds a run with {key} = {before.get(key)}, not {now.get(key)}; {what_to_do}")


def resumed(there: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the run that is there, brought up to date; other versions since then are worth a warning."""
    old, new = there["versions"], wanted["versions"]
    warnings = list(there["warnings"])
    changed = [f"{name} {old.get(name)} -> {new[name]}" for name in new if old.get(name) != new[name]]
    if there["status"] == RUNNING and changed:
        warnings.append(f"resumed with other versions: {', '.join(changed)}")
        there = there | {"versions": new}
    return there | {"settings": wanted["settings"], "warnings": warnings}
