"""One settings dataclass, three spellings: options of the command line, a TOML file, and ``run.json``.

A field ``n_directions`` of the nested dataclass ``search`` is ``--search.n-directions 300`` on the command line,
``n_directions = 300`` under ``[search]`` in TOML, and ``settings.search.n_directions`` in ``run.json``. The command
line wins over the file, the file over the defaults.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import re
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from common.data import InputError

_DEST = "setting:"
_UNITS = ("-kv", "-mm")


@dataclass(frozen=True)
class Setting:
    """One field of a settings dataclass. key : dotted name; kind : its type; help : from the class's docstring."""

    key: str
    kind: Any
    default: Any
    help: str

    @property
    def option(self) -> str:
        return "--" + self.key.replace("_", "-")

    @property
    def spellings(self) -> list[str]:
        """The option, and without its unit where it ends with one: ``--voltage-kv``, ``--voltage``."""
        units = [self.option.removesuffix(unit) for unit in _UNITS if self.option.endswith(unit)]
        return [self.option, *units]


def list_settings(kind: type, prefix: str = "", defaults: Any = None) -> Iterator[Setting]:
    """Every field of a settings dataclass and of the dataclasses in it, under dotted names, in order.

    defaults : an instance whose values are the defaults; None: those of the class.
    """
    hints, described = get_type_hints(kind), describe_fields(kind)
    for field in fields(kind):
        key, default = prefix + field.name, _default(field, defaults)
        if is_dataclass(hints[field.name]):
            nested = None if default is MISSING else default
            yield from list_settings(hints[field.name], key + ".", nested)
        else:
            yield Setting(key, hints[field.name], default, described.get(field.name, ""))


def _default(field: Field[Any], instance: Any) -> Any:
    if instance is not None:
        return getattr(instance, field.name)
    return field.default_factory() if field.default_factory is not MISSING else field.default


def describe_fields(kind: type) -> dict[str, str]:
    """What a dataclass's docstring says of its fields: lines ``name : text`` or ``name, name : text``."""
    found: dict[str, str] = {}
    names: list[str] = []
    inherited = [one.__doc__ or "" for one in reversed(kind.__mro__) if is_dataclass(one)]
    for line in "\n\n".join(inherited).splitlines():
        start = re.match(r"\s*([a-z_][a-z_0-9]*(?:, [a-z_][a-z_0-9]*)*) : (.+)", line)
        if start:
            names = start[1].split(", ")
            found |= dict.fromkeys(names, start[2].strip())
        elif line.strip() and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return found


def add_settings(parser: argparse.ArgumentParser, kind: type, *, section: str = "") -> None:
    """Add an option for every field of a settings dataclass.

    Parameters
    ----------
    section : where the dataclass stands in a TOML file; its options have no prefix for that.
    """
    group: Any = parser
    last = None
    for setting in list_settings(kind):
        name = setting.key.rpartition(".")[0]
        if name != last:
            group = parser.add_argument_group(name or section or "settings")
            last = name
        options: dict[str, Any] = {"dest": _DEST + _join(section, setting.key), "default": argparse.SUPPRESS}
        shape = _shape(setting.kind)
        if shape.repeated is not None:
            options["nargs"] = "+"
        if shape.of is bool:
            group.add_argument(setting.option, action=argparse.BooleanOptionalAction, help=_help(setting), **options)
            continue
        metavar = "|".join(map(str, shape.choices)) if shape.choices else {int: "N", float: "X", str: "TEXT"}[shape.of]
        group.add_argument(*setting.spellings, metavar=metavar, help=_help(setting), **options)


def _help(setting: Setting) -> str:
    default = setting.default
    automatic = default is None or default == ()
    said = "" if default is MISSING else "default: from the data" if automatic else f"default: {_spell(default)}"
    return f"{setting.help.rstrip('.')} ({said})".replace("%", "%%") if said else setting.help.replace("%", "%%")


def _spell(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _join(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key


def read_settings(
    sections: Mapping[str, type], given: argparse.Namespace, config: str | Path | None = None
) -> dict[str, Any]:
    """Make the settings dataclasses from the command line and a file.

    Parameters
    ----------
    sections : section of the file -> dataclass; the section ``""`` is the top of the file.
    given : what `argparse` made of the options of `add_settings`.
    config : a TOML file, or the ``run.json`` of an earlier run.

    Returns
    -------
    Section -> dataclass.

    Raises
    ------
    InputError : a key that is unknown (the nearest known one is named), or a value of the wrong type or out of range.
    """
    known = {_join(name, s.key): s for name, kind in sections.items() for s in list_settings(kind)}
    values: dict[str, Any] = {}
    if config is not None:
        for key, value in _flatten(_read_config(Path(config))):
            if key not in known:
                raise InputError(f"{config}: {key!r} is not a setting; {nearest(key, list(known))}")
            values[key] = _convert(known[key].kind, value, f"{config}: {key}")
    for dest, value in vars(given).items():
        if dest.startswith(_DEST) and dest[len(_DEST) :] in known:
            setting = known[dest[len(_DEST) :]]
            values[dest[len(_DEST) :]] = _convert(setting.kind, value, setting.option, text=True)
    return {name: _build(kind, _join(name, ""), values) for name, kind in sections.items()}


def _build(kind: Any, prefix: str, values: Mapping[str, Any], defaults: Any = None) -> Any:
    hints = get_type_hints(kind)
    made: dict[str, Any] = {}
    for field in fields(kind):
        key, default = prefix + field.name, _default(field, defaults)
        if is_dataclass(hints[field.name]):
            if any(name.startswith(key + ".") for name in values):
                nested = None if default is MISSING else default
                made[field.name] = _build(hints[field.name], key + ".", values, nested)
        elif key in values:
            made[field.name] = values[key]
    return kind(**made) if defaults is None else replace(defaults, **made)


def nearest(key: str, known: Sequence[str]) -> str:
    """What to say of a misspelt name: the nearest known one, by its full name or its last part."""
    by_last = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(key, known, 1) or difflib.get_close_matches(key.rpartition(".")[2], by_last, 1)
    if close:
        return f"did you mean {close[0] if close[0] in known else by_last[close[0]]!r}?"
    return "see --help for all of them"


def _read_config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode()
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"{path}: the settings cannot be read ({error.strerror})") from None
    except ValueError as error:  # not UTF-8, not TOML, not JSON
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise InputError(f"{path}: is not {kind}: {' '.join(str(error).split())}") from None
    if path.suffix == ".json":
        content = content.get("settings") if isinstance(content, dict) else None
        if not isinstance(content, dict):
            raise InputError(f"{path}: has no settings, expected the run.json of a run")
    return content


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = prefix + str(key).replace("-", "_")
        if isinstance(value, dict):
            yield from _flatten(value, name + ".")
        else:
            yield name, value


@dataclass(frozen=True)
class _Shape:
    of: type
    optional: bool
    repeated: int | None  # how many values a tuple holds; 0: any number; None: a single value
    choices: tuple[Any, ...]


def _shape(kind: Any) -> _Shape:
    optional = False
    if get_origin(kind) in (Union, types.UnionType):
        rest = [part for part in get_args(kind) if part is not type(None)]
        optional = len(rest) < len(get_args(kind))
        if len(rest) != 1:
            raise TypeError(f"a setting of type {kind} has no spelling")
        kind = rest[0]
    repeated = None
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        repeated = 0 if parts[-1] is Ellipsis else len(parts)
        kind = parts[0]
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return _Shape(type(choices[0]), optional, repeated, choices)
    if kind not in (bool, int, float, str):
        raise TypeError(f"a setting of type {kind} has no spelling")
    return _Shape(kind, optional, repeated, ())


def _convert(kind: Any, value: Any, where: str, *, text: bool = False) -> Any:
    """A value as its field wants it; ``text``: it comes from the command line, as a string."""
    shape = _shape(kind)
    if value is None or (text and isinstance(value, str) and value.lower() in ("none", "auto")):
        if not shape.optional:
            raise InputError(f"{where} is none, expected {_expected(shape)}")
        return None
    if shape.repeated is not None:
        if not isinstance(value, list) or shape.repeated not in (0, len(value)):
            raise InputError(f"{where} is {_spell_given(value)}, expected {_expected(shape)}")
        return tuple(_single(shape, item, where, text) for item in value)
    return _single(shape, value, where, text)


def _single(shape: _Shape, value: Any, where: str, text: bool) -> Any:
    wrong = InputError(f"{where} is {_spell_given(value)}, expected {_expected(shape)}")
    if text and isinstance(value, str) and shape.of in (int, float):
        try:
            value = shape.of(value)
        except ValueError:
            raise wrong from None
    if shape.of is float and type(value) in (int, float):
        value = float(value)
    if shape.of is float and value in ("nan", "inf", "-inf"):  # as run.json spells them
        value = float(value)
    if type(value) is not shape.of or (shape.choices and value not in shape.choices):
        raise wrong
    if isinstance(value, float) and math.isnan(value):
        raise wrong
    return value


def _spell_given(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else repr(value)


def _expected(shape: _Shape) -> str:
    if shape.choices:
        one = "one of " + ", ".join(map(str, shape.choices))
    else:
        one = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[shape.of]
    if shape.repeated is not None:
        one = f"{shape.repeated or 'a list of'} values, each {one}"
    return f"{one}, or none" if shape.optional else one
