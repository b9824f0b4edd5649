"""Plain values, as JSON gives them, to frozen dataclasses: strictly by their type hints. Imports nothing of ours.

Names, texts and paths that come out of files are checked here, and nowhere else.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
import types
import unicodedata
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class Mismatch(ValueError):  # noqa: N818 (reads as what it is in `except Mismatch`)
    """A value that is not what the type hint asks for; the message says where, what was found and what is allowed."""


_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if it can safely be one path component; raise ValueError otherwise.

    Case ids, channels and run names become folders and files: separators, ``..`` and leading dots could leave the folder.
    """
    if not _SAFE_NAME.fullmatch(name) or ".." in name:
        raise ValueError(
            f"{what} {name!r} is not allowed: use 1-100 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit, without '..'"
        )
    return name


def check_text(text: str, what: str) -> str:
    """Return `text` if it is one line that every file and terminal can show; ValueError otherwise."""
    if not text.isprintable() and any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text):
        raise ValueError(f"{what} {text!r} is not allowed: it holds a line break or another control character")
    return text


def check_path(path: str, what: str = "path") -> str:
    """Return `path` if it names something below a folder, as it is spelled; ValueError otherwise."""
    if path.startswith("/") or ".." in path.split("/") or "\0" in path or not path:
        raise ValueError(f"{what} {path!r} leaves the folder")
    return check_text(path, what)


def decode(kind: Any, value: Any, where: str, complete: bool = False) -> Any:
    """`value` as `kind`: a dataclass, bool, int, float, str, Path, None, Literal, tuple, list, dict or a union of them.

    Lists stand for tuples and whole floats of JSON for ints; nothing else is converted. Numbers are finite. A dataclass
    takes a dict of its fields: unknown ones are refused, absent ones only allowed where there is a default, and with
    `complete` not at all. where: how messages call the value. Raises Mismatch, or ValueError of the dataclass's own checks.
    """
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where, complete)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        if any(value == allowed and type(value) is type(allowed) for allowed in inner):
            return value
        raise _wrong(value, where, "one of " + ", ".join(map(str, inner)))
    if origin in (Union, types.UnionType):
        return _either(inner, value, where, complete)
    if origin is list:
        return list(_row((*inner, Ellipsis), value, where, complete))
    if origin is tuple:
        return _row(inner, value, where, complete)
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(value, where, "an object")
        return {
            _key(inner[0], k, where): decode(inner[1], v, f"{where}.{_shown(k)}", complete) for k, v in value.items()
        }
    return value if kind is Any else _scalar(kind, value, where)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _record(kind: Any, value: Any, where: str, complete: bool) -> Any:
    if not isinstance(value, dict):
        raise _wrong(value, where, "an object")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    unknown = sorted(repr(key)[:60] for key in value if key not in fields)
    if unknown:
        raise Mismatch(f"{where}: unknown {', '.join(unknown)}")
    absent = [name for name, field in fields.items() if name not in value and (complete or not _has_default(field))]
    if absent:
        raise Mismatch(f"{where}: {', '.join(absent)} missing")
    return kind(**{name: decode(_hints(kind)[name], item, f"{where}.{name}", complete) for name, item in value.items()})


def _has_default(field: Any) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _either(kinds: tuple[Any, ...], value: Any, where: str, complete: bool) -> Any:
    for kind in kinds:
        try:
            return decode(kind, value, where, complete)
        except Mismatch as error:
            last = error
    raise last


def _row(kinds: tuple[Any, ...], value: Any, where: str, complete: bool) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(value, where, "a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise _wrong(value, where, f"a list of {len(kinds)}")
    return tuple(
        decode(kind, item, f"{where}[{i}]", complete) for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _shown(key: Any) -> str:
    return key if isinstance(key, str) and key.isidentifier() else repr(key)


def _key(kind: Any, key: Any, where: str) -> Any:
    if kind is int and isinstance(key, str) and key.isascii() and key.isdigit():
        return int(key)  # JSON's keys are strings
    return _scalar(kind, key, where)


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind in (None, type(None)):
        if value is None:
            return None
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return float(value)
    elif kind is int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif kind is Path:
        if isinstance(value, (str, Path)) and "\0" not in str(value):
            return Path(value)
    elif isinstance(value, kind):
        return value
    names = {None: "null", type(None): "null", float: "a finite number", int: "a whole number", Path: "a path"}
    raise _wrong(value, where, names.get(kind) or f"a {kind.__name__}")


def _wrong(value: Any, where: str, allowed: str) -> Mismatch:
    shown = repr(value)
    return Mismatch(f"{where}: found {shown if len(shown) < 60 else shown[:57] + '...'}, must be {allowed}")
