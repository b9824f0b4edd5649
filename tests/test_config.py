from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import config
from models import METHODS

ROOT = Path(__file__).resolve().parents[1]
BASE = ["--name", "exp", "--dataroot", "data"]


def test_flags_of_the_predecessors_keep_their_names() -> None:
    flags = [
        "--batch_size",
        "3",
        "--num_epochs",
        "7",
        "--lr_g",
        "0.1",
        "--lr_d",
        "0.2",
        "--beta1",
        "0.5",
        "--beta2",
        "0.9",
    ]
    flags += [
        "--continue_train",
        "--which_iter",
        "latest",
        "--freq_print",
        "1",
        "--freq_fid",
        "2",
        "--freq_save_ckpt",
        "3",
    ]
    flags += ["--freq_save_latest", "4", "--seed", "5", "--gpu_ids", "-1", "--checkpoints_dir", "ck"]
    parsed = config.parse_train(BASE + flags)
    assert (parsed.batch_size, parsed.num_epochs, parsed.lr_g, parsed.gpu_ids) == (3, 7, 0.1, "-1")
    tested = config.parse_test([*BASE, "--ckpt_iter", "latest", "--results_dir", "out"])
    assert tested.ckpt_iter == "latest"


def test_a_preset_gives_defaults_that_flags_override() -> None:
    parsed = config.parse_train([*BASE, "--preset", "demo", "--oasis.channels_G", "9"])
    assert parsed.oasis.channels_G == 9
    assert parsed.oasis.channels_D == config.demo_preset().oasis.channels_D
    assert parsed.lr_g == config.demo_preset().lr_g


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--batch_size", "0"),
        ("--lr_g", "-1"),
        ("--beta1", "1"),
        ("--oasis.spade_ks", "2"),
        ("--gpu_ids", "one"),
        ("--which_iter", "best"),
        ("--freq_fid", "0"),
        ("--oasis.ema_decay", "1.5"),
    ],
)
def test_a_value_out_of_range_is_one_line(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        config.parse_train([*BASE, flag, value])
    assert exit_info.value.code == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith(f"error: {flag} ")
    assert "\n" not in message


def test_the_config_survives_a_checkpoint() -> None:
    parsed = config.parse_train([*BASE, "--preset", "small", "--weights", "w"])
    assert config.from_dict(config.to_dict(parsed)) == parsed
    with pytest.raises(ValueError, match="does not know"):
        config.from_dict(config.to_dict(parsed) | {"lambda_new": 1})


def test_differences_name_flags_and_leave_runtime_options_out() -> None:
    old = config.parse_train(BASE)
    new = replace(old, batch_size=3, num_epochs=999, oasis=replace(old.oasis, z_dim=7))
    lines = config.differences(config.to_dict(old), config.to_dict(new))
    assert lines == ["--batch_size: was 8, now 3", "--oasis.z_dim: was 64, now 7"]


def test_runtime_options_exist() -> None:
    assert {f.name for f in fields(config.Config)} >= config.RUNTIME_OPTIONS


def test_model_names_agree() -> None:
    assert set(get_args(get_type_hints(config.Config)["model"])) == set(METHODS)


def test_every_option_has_a_reader() -> None:
    text = "".join(p.read_text() for p in ROOT.glob("**/*.py") if not {"tests", ".venv"} & set(p.parts))
    for cls in (config.Config, config.TestConfig, config.OasisConfig, config.GmmConfig):
        for f in fields(cls):
            if f.name == "preset":
                continue  # read before parsing, by _peek_preset
            assert re.search(rf"\.{f.name}\b", text), f"nobody reads {cls.__name__}.{f.name}"
