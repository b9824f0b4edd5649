"""Messages name options as users give them, and say where values come from that nobody has given."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

import config
from config import Config, parse_train
from dataloaders.io.geometry import plane_spacing
from dataloaders.prepare.options import PrepareOptions
from engine.command import exit_code
from tests.launch import training
from tests.toy import prepared_folder
from train import train

ROOT = Path(__file__).resolve().parents[1]


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
        ("--oasis.lambda_mask 1.0: no body", "--preset=demo", told),
        ("--batch_size 2: x", "--preset demo --batch-size 2", ""),
        ("--batch_size 2: x", "--preset demo --batch_size=2", ""),
        ("--num_workers 2: x", "--preset demo", ""),  # not of the preset
        ("--batch_size 8: x", "", ""),
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
