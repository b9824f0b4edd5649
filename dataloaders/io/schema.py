"""What values may be: types with ranges, the one way from plain values and command lines to frozen dataclasses, and from
there to flags.

A range stands in the type of an option, as ``n: AtLeast1``; what options must fulfil together is their method
`check_together`.
Imports nothing of ours.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import re
import sys
import types
import unicodedata
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from pydantic import ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreConfig, CoreSchema, PydanticCustomError, SchemaValidator, core_schema

_T = TypeVar("_T")


class Mismatch(ValueError):  # noqa: N818 (reads as what it is in `except Mismatch`)
    """A value that is not what it must be. path: keys and indices to it; value: what was found; allowed: in words."""

    def __init__(self, message: str, path: tuple[str | int, ...] = (), value: Any = None, allowed: str = "") -> None:
        super().__init__(message)
        self.path, self.value, self.allowed = path, value, allowed


@dataclass(frozen=True)
class Must:
    """A range in a type: ``Annotated[int, Must("odd", lambda n: n % 2 == 1)]``. words: as after "must be"."""

    words: str
    test: Callable[[Any], bool]

    def of(self, value: Any, what: str) -> Any:
        """Return `value` if it may be so; ValueError naming `what` otherwise."""
        if not self.test(value):
            raise ValueError(f"{what} {value!r} is not allowed: must be {self.words}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def tested(value: Any) -> Any:
            if not self.test(value):
                raise PydanticCustomError("must", "{words}", {"words": self.words})
            return value

        return core_schema.no_info_after_validator_function(tested, handler(source))


def at_least(low: float) -> Must:
    """`low` or more."""
    return Must(f"at least {low}", lambda value: value >= low)


def is_range(values: Sequence[float]) -> bool:
    """One value, or low and high in this order."""
    return len(values) in (1, 2) and values[0] <= values[-1]


def _is_one_line(text: str) -> bool:
    return text.isprintable() or not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


def _stays_below(path: str) -> bool:
    goes_up = ".." in path and ".." in path.split("/")
    return path[:1] not in ("", "/") and not goes_up and _is_one_line(path)


def _is_shard(text: str) -> bool:
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    return match is not None and int(match[1]) < int(match[2])


_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

# Case ids, channels and run names become folders and files: separators, ``..`` and leading dots could leave the folder.
NAME = Must(
    "1-100 letters, digits, '.', '_' or '-', starting with a letter or digit, without '..'",
    lambda name: bool(_SAFE_NAME.fullmatch(name)) and ".." not in name,
)
TEXT = Must("one line without control characters", _is_one_line)
COLOR = Must("#rrggbb or empty", lambda text: not text or bool(re.fullmatch("#[0-9a-f]{6}", text)))
BELOW = Must("a path below the folder, in one line", _stays_below)
SHARD = Must("i/n with i from 0 to n-1, such as 0/4", _is_shard)

Name = Annotated[str, NAME]
Text = Annotated[str, TEXT]
PathBelow = Annotated[str, BELOW]
Iteration = Annotated[
    str,
    Must("best, latest or a number of images seen", lambda text: text in ("best", "latest") or text.isdigit()),
]
GpuIds = Annotated[
    str, Must("auto, -1 for the CPU, or one GPU number", lambda text: text == "auto" or text.lstrip("-").isdigit())
]
Shard = Annotated[str, SHARD]
AtLeast0 = Annotated[int, Field(ge=0, lt=2**63)]  # checked by pydantic itself: a manifest holds millions of them
AtLeast1 = Annotated[int, at_least(1)]
NotNegative = Annotated[float, at_least(0)]
Positive = Annotated[float, Must("above 0", lambda value: value > 0)]
Share = Annotated[float, Must("in [0, 1]", lambda value: 0 <= value <= 1)]
BelowOne = Annotated[float, Must("in [0, 1)", lambda value: 0 <= value < 1)]
LowHigh = Annotated[tuple[float, float], Must("low and high", lambda pair: pair[0] < pair[1])]
SPREAD = Must("one value of 0 or more, or low and high", lambda values: is_range(values) and values[0] >= 0)
Spread = Annotated[tuple[float, ...], SPREAD]
UP_TO_THREE = Must("above 0, one value or one per axis", lambda v: len(v) <= 3 and all(x > 0 for x in v))
Shape = Annotated[tuple[int, ...], UP_TO_THREE]
PositiveSpread = Annotated[
    tuple[float, ...], Must("one value above 0, or low and high", lambda v: is_range(v) and min(v) > 0)
]
Spacing = Annotated[
    tuple[float, ...],
    Must("one or three lengths in mm, above 0", lambda v: len(v) in (0, 1, 3) and all(0 < mm < 100 for mm in v)),
]


def decode(kind: Any, value: Any, where: str, context: Any = None) -> Any:
    """`value`, as JSON or TOML give it, as `kind`: a dataclass or any other type that pydantic knows.

    Strict as JSON is: a list stands for a tuple, a text for a path, and nothing else is converted; numbers are finite. A
    dataclass takes a dict of its fields: unknown ones are refused, absent ones have their defaults, where there are any.
    where: how messages call the value, "" for the file itself. context: for validators. Raises Mismatch for the first value
    that does not fit.
    """
    text = json.dumps([value], default=str)
    try:
        (found,) = _validator(kind).validate_json(text, context=context)
    except ValidationError as error:
        raise _mismatch(kind, text, where, error.errors(include_url=False)) from None
    return found


def check(options: Any, prefix: str = "") -> None:
    """ValueError ``--flag value: must be ...`` for the first option out of range, and for what does not go together.

    The dataclass may have a method `check_together` for the latter, whose messages name flags without `prefix`.
    """
    nested = {name: value for name, value in _values(options).items() if dataclasses.is_dataclass(value)}
    for name, value in nested.items():
        check(value, f"{prefix}{name}.")
    try:
        decode(type(options), dataclasses.asdict(options), "")
        getattr(options, "check_together", lambda: None)()
    except Mismatch as error:
        if not error.path:  # letters that no file can hold
            raise
        name = str(error.path[0])
        raise ValueError(f"--{prefix}{name} {spelled(getattr(options, name))}: must be {error.allowed}") from None
    except ValueError as error:
        raise ValueError(re.sub(r"--(?=\w)", f"--{prefix}", str(error))) from None


def _values(options: Any) -> dict[str, Any]:
    return {item.name: getattr(options, item.name) for item in dataclasses.fields(options)}


def spelled(value: Any) -> str:
    """As it stands on a command line."""
    if isinstance(value, tuple):
        return " ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    return str(value)


@functools.cache
def _validator(kind: Any) -> SchemaValidator:
    # A tuple, since a dataclass by itself would take no configuration from here. Dataclasses keep the first of the two.
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    schema = TypeAdapter(tuple[kind], config=config).core_schema
    return SchemaValidator(schema, CoreConfig(strict=True, allow_inf_nan=False))


@functools.cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind)


def _mismatch(kind: Any, text: str, where: str, errors: Sequence[Any]) -> Mismatch:
    """The first of pydantic's errors by path, value and what is allowed; those of a union's other members add to that."""
    first = errors[0]
    if first["type"] == "json_invalid":  # half a character (a lone surrogate) is
        return Mismatch(_named(where, (), first["msg"]))
    path, found = _path(text, first), first["input"]
    last = first["loc"][-1]
    if first["type"] == "unexpected_keyword_argument":
        path.pop()
        words = f"unknown {last[:60]!r}; there are {', '.join(_hints(_kind_at(kind, path)))}"
    elif first["type"] == "missing" and isinstance(last, str):
        words = f"{last} missing"
    elif first["type"] == "value_error":  # of the dataclass's own __post_init__
        words = str(first["ctx"]["error"])
    else:
        allowed = " or ".join(dict.fromkeys(_allowed(error) for error in errors if _path(text, error) == path))
        shown = repr(found)
        words = f"found {shown if len(shown) < 60 else shown[:57] + '...'}, must be {allowed}"
        return Mismatch(_named(where, path, words), tuple(path), found, allowed)
    return Mismatch(_named(where, path, words), tuple(path))


def _named(where: str, path: Sequence[str | int], text: str) -> str:
    for step in path:
        where += f"[{step}]" if isinstance(step, int) else f".{step}" if where else step
    return f"{where}: {text}" if where else text


def _path(text: str, error: Any) -> list[str | int]:
    """Keys and indices to the value that is wrong: pydantic's location without the names of a union's members."""
    value, path = json.loads(text), []
    for step in error["loc"]:
        with suppress(KeyError, IndexError, TypeError):
            value = value[step]
            path.append(step)
    return path[1:]


def _kind_at(kind: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        is_record = isinstance(kind, type) and dataclasses.is_dataclass(kind)
        kind = _hints(kind)[str(step)] if is_record else get_args(kind)[get_origin(kind) is dict]
        if get_origin(kind) in (Union, types.UnionType):
            kind = next(part for part in get_args(kind) if dataclasses.is_dataclass(part))
    return kind


def _allowed(error: Any) -> str:
    if error["type"] in ("missing", "too_long"):  # of a tuple
        return f"{'more' if error['type'] == 'missing' else 'fewer'} than {len(error['input'])} values"
    words: str = error["msg"].removeprefix("Input should be ")
    return words.replace("greater than or equal to", "at least").replace("less than", "below")


def options_of(kind: type[_T], arguments: Sequence[str] | None = None, **how: Any) -> _T:
    """Options of the dataclass `kind`, whose docstring is the help's first line; what is not one ends the command, code 2.

    arguments: by default those of the process. how: further arguments of ``tyro.cli``.
    """
    _silent_about_none(kind)
    with refused_in_one_line():
        return tyro.cli(kind, args=arguments, use_underscores=True, **{"description": kind.__doc__} | how)


def _silent_about_none(kind: Any) -> None:
    """Let --help not end ``(default: None)``, as the sentence before it says what happens by default."""
    hint = tyro.conf.arg(help_behavior_hint=lambda default: "" if default == "None" else f"(default: {default})")
    hints = get_type_hints(kind, include_extras=True)
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[item.name]):
            _silent_about_none(hints[item.name])
        elif item.default is None:
            kind.__annotations__[item.name] = Annotated[hints[item.name], hint]


@contextmanager
def refused_in_one_line() -> Iterator[None]:
    """What tyro draws in a box when it refuses a command line becomes one line on stderr."""
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            yield
    except SystemExit:
        if text := _in_one_line(box.getvalue()):
            print(text, file=sys.stderr)
        raise


def _in_one_line(box: str) -> str:
    """What was given, and of the help beneath the flags alone."""
    lines = [stripped for line in box.splitlines() if (stripped := line.strip("│| "))]
    ruled = "\n".join("" if set(line) <= set("─-") else line for line in lines if line[0] not in "╭╰")
    title = 0 if "╭" in box else 1  # it stands in the upper border, or above a rule where the terminal has no boxes
    said, *more = ruled.split("\n\n")[title:] or [""]
    said = said.partition("Got errors:")[0]  # of each member of a union, with what these are in Python
    flags = [next(line for line in part.splitlines() if line.startswith("--")) for part in more if "\n--" in part]
    meant = f"; {'perhaps ' if 'Perhaps' in box else ''}{' or '.join(flags)}" if flags else ""
    return f"error: {' '.join(said.split()).rstrip('.')}{meant}; --help lists all" if said else ""
