from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from dataloaders.io.schema import Mismatch, decode


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
        ({"inner": {"x": "1"}}, r"o\.inner\.x: found '1', must be a finite number"),
        ({"inner": {"x": float("nan")}}, r"o\.inner\.x: found nan"),
        ({"inner": {"x": True}}, r"o\.inner\.x: found True"),
        ({"inner": {"x": 1, "kind": "c"}}, r"must be one of a, b"),
        ({"kind": 1}, r"o: unknown 'kind'; there are inner, many, pair, counts, where"),
        ({"inner": {}}, r"o\.inner: x missing"),
        ({"inner": {"x": 1, "y": 2}}, r"o\.inner: unknown 'y'; there are x, kind"),
        ({"inner": [1]}, r"o\.inner: found \[1\], must be an object"),
        ({"pair": [1]}, r"o\.pair: found \[1\], must be a list of 2"),
        ({"pair": [1, 2.5]}, r"o\.pair\[1\]: found 2\.5, must be a whole number"),
        ({"many": "ab"}, r"o\.many: found 'ab', must be a list"),
        ({"many": [{"x": 1}, 3]}, r"o\.many\[1\]: found 3"),
        ({"counts": {"a": 1}}, r"o\.counts: found 'a', must be a whole number"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Mismatch, match=message):
        decode(Outer, {"inner": {"x": 1}, **change}, "o")


def test_complete_records_have_no_defaults() -> None:
    with pytest.raises(Mismatch, match=r"o\.inner: kind missing"):
        decode(
            Outer, {"inner": {"x": 1}, "many": [], "pair": [1, 2], "counts": None, "where": None}, "o", complete=True
        )
