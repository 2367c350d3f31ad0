"""Frozen dataclasses as files: safetensors for the numbers, JSON for the rest, never pickle.

One file holds one object: the tensors as safetensors, the structure around them as JSON in the safetensors header. So a
file is replaced as a whole, and a run killed while writing keeps the last good one.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from ase import Atoms
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from common.data import InputError
from common.io.files import atomic_write

T = TypeVar("T")

FORMAT = "nanospr state 1"
_OWN_PACKAGES = frozenset({"common", "spr", "aet_tilt"})


def save_state(path: str | os.PathLike[str], value: Any, *, labels: Mapping[str, str] | None = None) -> None:
    """Write an object so that `load_state` gives the equal one back, bit for bit.

    Parameters
    ----------
    path : the file to write or replace, as a whole or not at all.
    value : dataclasses, tuples, lists and dicts (to any depth) of tensors, numpy arrays, numbers, strings, bools,
        None and `ase.Atoms` (without calculator and constraints).
    labels : what the object belongs to (settings, input); `load_state` refuses a file with other labels.

    Raises
    ------
    InputError : the folder is missing or not writable, or the disk is full.
    TypeError : the object holds something else.
    """
    tensors: dict[str, Tensor] = {}
    header = {"format": FORMAT, "labels": dict(labels or {}), "value": _encode(value, tensors, "value")}
    content = save(tensors, metadata={"nanospr": json.dumps(header)})
    with atomic_write(path) as file:
        file.write(content)


def load_state(
    path: str | os.PathLike[str],
    kind: type[T],
    *,
    labels: Mapping[str, str] | None = None,
    device: torch.device | str | None = None,
) -> T:
    """Read what `save_state` wrote.

    Parameters
    ----------
    path : the file.
    kind : the type of the object; its package is, beside the suite's own, the only one whose dataclasses are made.
    labels : what the file must belong to; None takes any.
    device : where tensors go that were on an accelerator; None: onto the same kind of accelerator.

    Raises
    ------
    InputError : the file is missing, damaged, of another kind, or of another run (the message says what differs).
    """
    name = Path(path)
    try:
        with safe_open(name, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("nanospr", "{}"))
            if header.get("format") != FORMAT:
                raise InputError(f"{name}: not a saved state (expected {FORMAT!r}); remove it and run again")
            _check_labels(name, header["labels"], labels)
            reader = _Reader(file, _OWN_PACKAGES | {kind.__module__.partition(".")[0]}, device)
            value = reader.decode(header["value"])
    except FileNotFoundError:
        raise InputError(f"{name}: there is no such saved state") from None
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name}: the saved state cannot be read ({reason}); remove it and run again") from None
    if not isinstance(value, kind):
        raise InputError(f"{name}: holds a {type(value).__name__}, expected a {kind.__name__}; remove it and run again")
    return value


def _check_labels(name: Path, found: Mapping[str, str], expected: Mapping[str, str] | None) -> None:
    for key in sorted(set(found) | set(expected)) if expected is not None else ():
        if found.get(key) != (expected or {}).get(key):
            differs = f"{key} ({found.get(key)}, expected {(expected or {}).get(key)})"
            raise InputError(f"{name}: was saved by a run with other {differs}; write elsewhere or start anew")


def _encode(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """JSON of a value; tensors go into ``tensors`` under their path, tagged objects are dicts with one ``$`` key."""
    if value is None or isinstance(value, bool | str):
        return value
    if type(value) in (int, float):
        return value
    if isinstance(value, Tensor):
        return _encode_tensor(value, tensors, where)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {"$array": _encode_tensor(torch.from_numpy(value.astype(value.dtype.newbyteorder("="))), tensors, where)}
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        return {"$strings": [list(value.shape), value.dtype.itemsize // 4, value.ravel().tolist()]}
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        return {"$scalar": _encode(np.asarray(value), tensors, where)}
    if isinstance(value, Atoms):
        return {"$atoms": _encode_atoms(value, tensors, where)}
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: _encode(getattr(value, f.name), tensors, f"{where}.{f.name}") for f in fields(value)}
        return {"$dataclass": [type(value).__module__, type(value).__qualname__, named]}
    if isinstance(value, dict):
        pairs = enumerate(value.items())
        parts = [[_encode(part, tensors, f"{where}.{i}.{j}") for j, part in enumerate(pair)] for i, pair in pairs]
        return {"$dict": parts}
    if type(value) in (tuple, list):
        items = [_encode(item, tensors, f"{where}.{i}") for i, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    raise TypeError(f"{where} is a {type(value).__name__}, which a saved state cannot hold")


def _encode_tensor(tensor: Tensor, tensors: dict[str, Tensor], where: str) -> dict[str, Any]:
    """The numbers go into ``tensors``; the memory layout is kept too, as the order of a sum depends on it."""
    if tensor.layout != torch.strided:
        raise TypeError(f"{where} is a tensor of layout {tensor.layout}, which a saved state cannot hold")
    values = tensor.detach().resolve_conj().resolve_neg()
    strides = list(values.stride())
    for dim, (size, stride) in enumerate(zip(values.shape, strides, strict=True)):
        if stride == 0 and size > 1:  # expanded: one copy is enough
            values = values.narrow(dim, 0, 1)
    if _overlaps(values):
        values = values.contiguous()
        strides = list(values.stride())
    if values.is_complex():
        values = torch.view_as_real(values)
    tensors[where] = values.cpu().contiguous().clone()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"$tensor": [where, list(tensor.shape), strides, dtype, tensor.device.type]}


def _overlaps(tensor: Tensor) -> bool:
    """Whether two elements share memory (windows made by ``unfold``), so that the layout cannot be filled again."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def _encode_atoms(atoms: Atoms, tensors: dict[str, Tensor], where: str) -> dict[str, Any]:
    if atoms.calc is not None or atoms.constraints:
        raise TypeError(f"{where} has a calculator or constraints, which a saved state cannot hold")
    arrays = {name: _encode(array, tensors, f"{where}.{name}") for name, array in atoms.arrays.items()}
    return {
        "arrays": arrays,
        "cell": atoms.cell.array.tolist(),
        "pbc": atoms.pbc.tolist(),
        "info": _encode(atoms.info, tensors, f"{where}.info"),
    }


class _Reader:
    """Makes the objects again; knows the open file, the packages it may build from, and the device."""

    def __init__(self, file: Any, packages: frozenset[str], device: torch.device | str | None) -> None:
        self.file = file
        self.packages = packages
        self.device = device

    def decode(self, code: Any) -> Any:
        if isinstance(code, list):
            return [self.decode(item) for item in code]
        if not isinstance(code, dict):
            return code
        ((tag, content),) = code.items()
        if tag == "$tensor":
            return self._tensor(*content)
        if tag == "$array":
            return self.decode(content).numpy()
        if tag == "$scalar":
            return self.decode(content)[()]
        if tag == "$strings":
            shape, width, items = content
            return np.array(items, dtype=f"<U{max(width, 1)}").reshape(shape)
        if tag == "$atoms":
            return self._atoms(content)
        if tag == "$dataclass":
            return self._dataclass(*content)
        if tag == "$dict":
            return {self.decode(key): self.decode(value) for key, value in content}
        if tag == "$tuple":
            return tuple(self.decode(item) for item in content)
        raise KeyError(f"unknown tag {tag}")

    def _tensor(self, where: str, shape: list[int], strides: list[int], dtype: str, device_type: str) -> Tensor:
        values = self.file.get_tensor(where)
        kind = getattr(torch, dtype)
        if kind.is_complex:
            values = torch.view_as_complex(values)
        device: torch.device | str = "cpu"
        if device_type != "cpu":
            device = self.device if self.device is not None else device_type
        # A tensor of its own, aligned and laid out as it was: the file's memory is neither.
        stored = [size if stride or size < 2 else 1 for size, stride in zip(shape, strides, strict=True)]
        tensor = torch.empty_strided(stored, strides, dtype=kind, device=device)
        tensor.copy_(values)
        return tensor.as_strided(shape, strides)

    def _atoms(self, content: dict[str, Any]) -> Atoms:
        arrays = {name: self.decode(array) for name, array in content["arrays"].items()}
        atoms = Atoms(
            numbers=arrays.pop("numbers"), positions=arrays.pop("positions"), cell=content["cell"], pbc=content["pbc"]
        )
        for name, array in arrays.items():
            atoms.set_array(name, array)
        atoms.info = self.decode(content["info"])
        return atoms

    def _dataclass(self, module: str, name: str, parts: dict[str, Any]) -> Any:
        package = module.partition(".")[0]
        if package not in self.packages:
            raise TypeError(f"it names a type of {package}, which is not read from files")
        found: Any = sys.modules.get(module)
        if found is None:
            if package not in _OWN_PACKAGES:
                raise TypeError(f"the module {module} is not loaded")
            found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        if not (isinstance(found, type) and is_dataclass(found)):
            raise TypeError(f"{module}.{name} is not a dataclass")
        made = {f.name: f.init for f in fields(found)}
        if set(made) != set(parts):
            changed = ", ".join(sorted(set(made) ^ set(parts)))
            raise TypeError(f"{name} has changed since ({changed})")
        return found(**{key: self.decode(value) for key, value in parts.items() if made[key]})
