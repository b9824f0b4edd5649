"""Dataclasses from TOML tables: unknown keys and wrong values end in one line that names file, key, value and choice."""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


def read_options(kind: type[_T], data: Any, where: str, base: Path) -> _T:
    """An instance of the dataclass `kind` from a TOML table.

    where: file and table for messages, e.g. ``study.toml: [strip]``. base: folder that relative paths start from.
    ValueError for what is no table, for unknown or missing keys, and for values of another type or choice.
    """
    assert is_dataclass(kind)
    if not isinstance(data, dict):
        raise ValueError(f"{where}: must be a table, found {data!r}")
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"{where} {unknown[0]}: no such key; there are {', '.join(sorted(known))}")
    missing = [
        name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING and name not in data
    ]
    if missing:
        raise ValueError(f"{where}: {missing[0]} is missing")
    hints = get_type_hints(kind)
    values = {name: _value(hints[name], value, f"{where} {name}", base) for name, value in data.items()}
    return kind(**values)


def _value(hint: Any, value: Any, where: str, base: Path) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # only `X | None` occurs
        return _value(next(a for a in arguments if a is not type(None)), value, where, base)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            raise ValueError(f"{where} = {value!r}: must be one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _tuple(arguments, value, where, base)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} = {value!r}: must be a table")
        return {str(key): _value(arguments[1], item, f"{where}.{key}", base) for key, item in value.items()}
    if is_dataclass(hint):
        return read_options(hint, value, where, base)  # type: ignore[arg-type]
    if hint is Any:
        return value
    return _scalar(hint, value, where, base)


def _tuple(arguments: tuple[Any, ...], value: Any, where: str, base: Path) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} = {value!r}: must be a list")
    if arguments[-1] is Ellipsis:
        return tuple(_value(arguments[0], item, where, base) for item in value)
    if len(value) != len(arguments):
        raise ValueError(f"{where} = {value!r}: must have {len(arguments)} entries")
    return tuple(_value(hint, item, where, base) for hint, item in zip(arguments, value, strict=True))


def _scalar(hint: Any, value: Any, where: str, base: Path) -> Any:
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    kinds: dict[Any, tuple[type, ...]] = {float: (int, float), Path: (str,)}
    if not isinstance(value, kinds.get(hint, (hint,))) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} = {value!r}: must be {words[hint]}")
    if hint is Path:
        return base / Path(str(value)).expanduser()
    return float(value) if hint is float else value
