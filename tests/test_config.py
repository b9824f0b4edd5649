from __future__ import annotations

import ast
import itertools
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
        ("--oasis.lambda_mask", "-1"),
        ("--oasis.mask_threshold", "2"),
        ("--oasis.neighbours", "-1"),
        ("--oasis.r1_every", "0"),
        ("--spade.num_D", "0"),
        ("--stop_patience", "-1"),
        ("--lesion.patch", "60"),
        ("--lesion.lesion_share", "1.5"),
        ("--lesion.width", "0"),
    ],
)
def test_a_value_out_of_range_is_one_line(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        config.parse_train([*BASE, flag, value])
    assert exit_info.value.code == 2
    *warnings, message = capsys.readouterr().err.strip().splitlines()
    assert message.startswith(f"error: {flag} ")
    assert all("has no effect with --model" in line for line in warnings)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--oasis.unpaired --oasis.lambda_l1 1", "--oasis.lambda_l1 1.0: needs pairs"),
        ("--oasis.images_from b", "--oasis.images_from b: only with --oasis.unpaired"),
        ("--oasis.lambda_feature 1", "--oasis.lambda_feature 1.0: needs --oasis.critic wavelet"),
        ("--oasis.generator wavelet --oasis.channels_G 12", "--oasis.channels_G 12: must be a multiple of 8"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        config.parse_train([*BASE, *flags.split()])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {message}")
    assert "\n" not in error


def test_the_model_chooses_its_published_preset() -> None:
    assert config.parse_train([*BASE, "--model", "spade"]).beta2 == 0.9
    demo = config.parse_train([*BASE, "--model", "spade", "--preset", "demo"])
    assert (demo.spade.channels_G, demo.beta2) == (16, 0.9)
    assert config.parse_train([*BASE, "--model", "oasis", "--preset", "spade"]).beta2 == 0.999
    assert config.parse_train([*BASE, "--preset", "spade"]).model == "spade"
    assert config.parse_train(BASE).beta2 == 0.999


def test_lesion_presets() -> None:
    plain = config.parse_train([*BASE, "--model", "lesion"])
    assert (plain.lr_g, plain.beta1, plain.beta2, plain.num_epochs) == (1e-3, 0.9, 0.999, 70)
    assert (plain.lesion.levels, plain.lesion.composite) == ("soft", True)
    published = config.parse_train([*BASE, "--preset", "salem2019"])
    assert (published.model, published.lesion.levels, published.lesion.composite) == ("lesion", "bands", False)
    assert published.batch_size * published.lesion.patches == 32
    assert (published.lesion.patch, published.lesion.stride, published.lesion.window_stride) == (64, 32, 16)
    demo = config.parse_train([*BASE, "--model", "lesion", "--preset", "demo", "--lesion.width", "8"])
    assert (demo.lesion.width, demo.lesion.branches) == (8, "fused")
    assert config.from_dict(config.to_dict(published)) == published


def test_every_option_is_explained_in_one_line() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "config.py", *ROOT.glob("models/*/options.py"))]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    assert {"Config", "OasisConfig", "GmmConfig"} <= {cls.name for cls in classes}
    for cls in classes:
        for field, text in itertools.pairwise([*cls.body, None]):
            if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).endswith("Config"):
                assert isinstance(text, ast.Expr), f"{cls.name}.{ast.unparse(field.target)} has no help"
                assert "\n" not in text.value.value, ast.unparse(field.target)


def test_the_config_survives_a_checkpoint() -> None:
    flags = ["--preset", "small", "--weights", "w", "--oasis.unpaired", "--oasis.images_from", "b"]
    parsed = config.parse_train([*BASE, *flags])
    assert config.from_dict(config.to_dict(parsed)) == parsed
    with pytest.raises(ValueError, match="does not know"):
        config.from_dict(config.to_dict(parsed) | {"lambda_new": 1})


def test_differences_name_flags_and_leave_runtime_options_out() -> None:
    old = config.parse_train(BASE)
    new = replace(old, batch_size=3, num_epochs=999, oasis=replace(old.oasis, z_dim=7))
    lines = config.differences(config.to_dict(old), config.to_dict(new))
    assert lines == ["--batch_size: was 8, now 3", "--oasis.z_dim: was 64, now 7"]


def test_runtime_options_exist() -> None:
    names = {f.name for f in fields(config.Config)} | {f"oasis.{f.name}" for f in fields(config.OasisConfig)}
    names |= {f"segmenter.{f.name}" for f in fields(config.SegmenterConfig)}
    assert names >= config.RUNTIME_OPTIONS


def test_model_names_agree() -> None:
    assert set(get_args(get_type_hints(config.Config)["model"])) == set(METHODS)


def test_every_option_has_a_reader() -> None:
    text = "".join(p.read_text() for p in ROOT.glob("**/*.py") if not {"tests", ".venv"} & set(p.parts))
    for cls in (
        config.Config,
        config.TestConfig,
        config.OasisConfig,
        config.SpadeConfig,
        config.GmmConfig,
        config.LesionConfig,
    ):
        for f in fields(cls):
            if f.name == "preset":
                continue  # read before parsing, by _peek_preset
            assert re.search(rf"\.{f.name}\b", text), f"nobody reads {cls.__name__}.{f.name}"


def test_results_folders_of_one_name_are_two_sources() -> None:
    made = config.parse_train([*BASE, "--model", "segmenter", "--segmenter.real_fraction", "0"])
    folders = (Path("a/best"), Path("b/best"))
    sources = config.segmenter_sources(replace(made, segmenter=replace(made.segmenter, results=folders)))
    assert sorted(sources.values()) == list(folders)


def test_the_brain_preset_needs_label_maps_only() -> None:
    """What docs/segmenter.md measured; each value can still be changed by its flag."""
    flags = ["--name", "x", "--dataroot", "maps", "--model", "segmenter", "--preset", "brain"]
    given = config.parse_train([*flags, "--segmenter.contrasts", "any", "--gmm.gamma_std", "0.4"])
    assert (given.segmenter.real_fraction, given.segmenter.classes, given.segmenter.spacing) == (0, "tissue", (1.0,))
    assert (given.gmm.skull_strip_prob, given.gmm.background, given.gmm.tie_std) == (1, "zero", 8)
    assert (given.segmenter.contrasts, given.gmm.gamma_std, given.num_epochs) == ("any", 0.4, 30)
    assert config.parse_train(flags).segmenter.contrasts == "mr"
