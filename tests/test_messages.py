"""Options out of range and faults are one line that names options as users give them, value and range."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from pydantic.fields import FieldInfo

import config
from config import Config, parse_train, starting_values
from dataloaders.io.geometry import plane_spacing
from dataloaders.io.schema import Mismatch, Must, check, decode, spelled
from dataloaders.prepare.options import PrepareOptions
from engine.add_lesions import AddLesionsOptions
from engine.command import exit_code
from pipeline.study import CaseOptions, Study
from scripts.estimate_priors import PriorOptions
from scripts.evaluate import EvaluateOptions
from scripts.generate import GenerateOptions
from scripts.make_seeds import SeedOptions
from scripts.segment import SegmentOptions
from scripts.utility import UtilityOptions
from tests.launch import ROOT, training
from tests.toy import prepared_folder
from train import train

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


def flags(options: type, prefix: str = "") -> set[str]:
    found = set()
    for name, kind in get_type_hints(options).items():
        if name in {f.name for f in fields(options)}:
            found |= flags(kind, f"{prefix}{name}.") if is_dataclass(kind) else {prefix + name, f"no-{prefix}{name}"}  # type: ignore[arg-type]
    return found


def test_what_training_can_say_names_real_options() -> None:
    """``--mask_threshold`` is no option of train.py; ``--oasis.mask_threshold`` is."""
    known = flags(Config) | flags(config.TestConfig) | flags(PrepareOptions)
    in_groups = known | {name.rpartition(".")[2] for name in known}  # of options.py, whose messages get their prefix
    for file in [ROOT / "train.py", *(ROOT / "models").rglob("*.py"), *ROOT.glob("engine/methods/*.py")]:
        tree = ast.parse(file.read_text())
        texts = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Raise)]
        for flag in (flag for text in texts for flag in re.findall(r"--([a-z][\w.-]*\w)(?![\w.]*\{)", text)):
            assert flag in (in_groups if file.name == "options.py" else known), f"{file.name}: --{flag}"


def test_options_of_a_preset_are_called_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    told = " (set by --preset demo)"
    for message, arguments, more in (
        ("--batch_size 2: must be a multiple", "--preset demo", told),
        ("--oasis.lambda_mask 1.0: no body", "--model oasis --preset=demo", told),
        ("--batch_size 2: x", "--preset demo --batch-size 2", ""),
        ("--batch_size 2: x", "--preset demo --batch_size=2", ""),
        ("--num_workers 2: x", "--preset demo", ""),  # not of the preset
        ("--batch_size 8: x", "--model oasis", ""),
        ("no option: --batch_size 2", "--preset demo", ""),
    ):

        def fails(message: str = message) -> int:
            raise ValueError(message)

        monkeypatch.setattr(sys, "argv", ["train.py", *arguments.split()])
        assert exit_code(fails) == 2
        assert capsys.readouterr().err == f"error: {message}{more}\n"


@pytest.mark.slow
def test_a_forgotten_preset_is_named_first(tmp_path: Path) -> None:
    """The differences that follow are of options which nobody has given."""
    words = training(
        prepared_folder(tmp_path / "data"), tmp_path / "runs", "exp", "--metrics", "none", "--num_epochs", 1
    )
    words = [str(word) for word in words if word not in ("train.py", "--preset", "oasis")]
    assert train(parse_train([*words, "--preset", "demo"])) == 0
    with pytest.raises(ValueError, match="another --name:\n  --preset: was demo, now small, which sets many"):
        train(parse_train(words))


def test_slices_of_a_tilted_gantry_are_as_far_apart_as_their_planes() -> None:
    """3 mm were told as 3.106, the step from voxel to voxel along the sheared axis."""
    affine = np.array([[1.0, 0, 0, 0], [0, 1, 0.804, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    assert plane_spacing(affine, "axial") == (3.0, 1.0, 1.0)
    turned = np.eye(4)
    turned[:3, :3] = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    assert plane_spacing(turned @ affine, "axial") == pytest.approx((3.0, 1.0, 1.0))
