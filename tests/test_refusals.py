"""Every option with a range refuses what lies outside, in one line that names flag, value and range."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from pydantic.fields import FieldInfo

import config
from config import starting_values
from dataloaders.io.schema import Mismatch, Must, check, decode, spelled
from dataloaders.prepare.options import PrepareOptions
from engine.add_lesions import AddLesionsOptions
from pipeline.study import CaseOptions, Study
from scripts.estimate_priors import PriorOptions
from scripts.evaluate import EvaluateOptions
from scripts.generate import GenerateOptions
from scripts.make_seeds import SeedOptions
from scripts.segment import SegmentOptions
from scripts.utility import UtilityOptions

A, B = Path("a"), Path("b.json")
OPTIONS = [
    replace(starting_values(), name="a", dataroot=A),
    config.TestConfig(name="a"),
    GenerateOptions(labels=A, out=B),
    SegmentOptions(input=(A,), output=B),
    UtilityOptions(dataroot=A, out=B),
    SeedOptions(bids_path=A, out_path=B),
    PriorOptions(images="a", labels="a", out=B),
    AddLesionsOptions(name="a", input=(A,), output=B),
    PrepareOptions(),
    EvaluateOptions(),
    Study(name="a", case=(CaseOptions(id="a", t1=A),)),
]
WRONG: list[Any] = [-1, 0, 2, -2, 99, -1.5, 1.5, 99.5, 2**40, "", "x", "../x", "a\nb", A, Path("a\nb"), (), (-1,)]
WRONG += [(1,) * 5, (-1.0,), (2.0, 1.0), (-1.0, -1.0), (2.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.5,) * 4, ("x",)]
WRONG += [("x", "x"), ("a\nb",), (33, 32), ("gmm", "gmm"), {"a": ["a\nb"]}]


def ranges(hint: Any) -> Iterator[Must | FieldInfo]:
    """In the type itself and in its parts, as in ``Positive | None``."""
    yield from (part for part in getattr(hint, "__metadata__", ()) if isinstance(part, (Must, FieldInfo)))
    for part in get_args(hint):
        yield from ranges(part)


def limited(options: Any, where: str = "") -> Iterator[tuple[Any, str, str]]:
    """Every dataclass with the name of an option that has a range, and the flag's prefix."""
    hints = get_type_hints(type(options), include_extras=True)
    for item in fields(options):
        value = getattr(options, item.name)
        if is_dataclass(value):
            yield from limited(value, f"{where}{item.name}.")
        elif any(ranges(hints[item.name])):
            yield options, item.name, where


CASES = [case for options in OPTIONS for case in limited(options)]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "name", "where"), CASES, ids=[f"{type(o).__name__}-{w}{n}" for o, n, w in CASES])
def test_a_value_outside_is_refused_by_flag_value_and_range(options: Any, name: str, where: str) -> None:
    kind = type(options)
    plain, limited = (get_type_hints(kind, include_extras=extras)[name] for extras in (False, True))
    refused = [value for value in WRONG if taken(plain, value) and not taken(limited, value)]
    words = [limit.words if isinstance(limit, Must) else "at least 0" for limit in ranges(limited)]
    assert refused, f"no value tried here is out of the range of {name}: {words}"
    for value in refused:
        with pytest.raises(Mismatch) as caught:
            decode(kind, asdict(options) | {name: value}, "")
        assert caught.value.path[0] == name
        assert caught.value.allowed in words
        if kind.__module__ != Study.__module__:  # which has no flags
            with pytest.raises(ValueError, match="must be") as of_flag:
                check(replace(options, **{name: value}), where)
            assert str(of_flag.value) == f"--{where}{name} {spelled(value)}: must be {caught.value.allowed}"


def taken(hint: Any, value: Any) -> bool:
    try:
        decode(hint, json.loads(json.dumps(value, default=str)), "")
    except Mismatch:
        return False
    return True


def test_there_are_many() -> None:
    assert len(CASES) > 130
