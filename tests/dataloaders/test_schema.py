from __future__ import annotations

import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from dataloaders.io.schema import Mismatch, decode, options_of


@dataclass(frozen=True)
class Inner:
    x: float
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    inner: Inner
    many: tuple[Inner, ...] = ()
    pair: tuple[int, int] = (1, 2)
    counts: dict[int, int] | None = None
    where: Path | None = None


def test_what_fits_is_taken() -> None:
    data = {"inner": {"x": 1}, "many": [{"x": 2.5, "kind": "b"}], "pair": [3, 4], "counts": {"7": 1}, "where": "a/b"}
    assert decode(Outer, data, "o") == Outer(Inner(1.0), (Inner(2.5, "b"),), (3, 4), {7: 1}, Path("a/b"))
    assert decode(Outer, {"inner": {"x": 1}}, "o") == Outer(Inner(1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": {"x": "1"}}, r"o\.inner\.x: found '1', must be a valid number"),
        ({"inner": {"x": float("nan")}}, r"o\.inner\.x: found nan"),
        ({"inner": {"x": True}}, r"o\.inner\.x: found True"),
        ({"inner": {"x": 1, "kind": "c"}}, r"must be 'a' or 'b'"),
        ({"kind": 1}, r"o: unknown 'kind'; there are inner, many, pair, counts, where"),
        ({"inner": {}}, r"o\.inner: x missing"),
        ({"inner": {"x": 1, "y": 2}}, r"o\.inner: unknown 'y'; there are x, kind"),
        ({"inner": [1]}, r"o\.inner: found \[1\], must be an object"),
        ({"pair": [1]}, r"o\.pair: found \[1\], must be more than 1 values"),
        ({"pair": [1, 2.5]}, r"o\.pair\[1\]: found 2\.5, must be a valid integer"),
        ({"many": "ab"}, r"o\.many: found 'ab', must be a valid array"),
        ({"many": [{"x": 1}, 3]}, r"o\.many\[1\]: found 3"),
        ({"counts": {"a": 1}}, r"o\.counts\.a: found 'a', must be a valid integer"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Mismatch, match=message):
        decode(Outer, {"inner": {"x": 1}, **change}, "o")


@dataclass(frozen=True)
class Flags:
    """What can be given."""

    run_name: str
    size: tuple[int, ...] = ()
    kind: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", r"error: Missing from \S+ --run_name STR .*required\)"),
        ("--run_name x --size 3 large", r"error: .*--size.*'large'.*; --size \[INT \[INT ...\]\]"),
        ("--run_name x --kind c", r"error: invalid choice 'c' for argument '--kind'. Expected one of .*'b'.*"),
        ("--run_name x --kimd a", r"error: Unrecognized options: --kimd, a; perhaps --kind \{a,b\}"),
        ("--run_name", r"error: Missing value for argument '--run_name'. Expected 1 values"),
    ],
)
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])  # which draws another box
def test_a_refused_command_line_is_one_line(
    given: str, message: str, encoding: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    with pytest.raises(SystemExit) as end:
        options_of(Flags, given.split())
    assert end.value.code == 2
    assert re.fullmatch(f"{message}; --help lists all\n", capsys.readouterr().err)


def test_the_help_writes_flags_as_the_documentation_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        options_of(Flags, ["--help"])
    assert end.value.code == 0
    assert "--run_name STR" in capsys.readouterr().out
    assert options_of(Flags, ["--run-name", "x"]) == options_of(Flags, ["--run_name", "x"])
