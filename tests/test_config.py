from __future__ import annotations

import ast
import itertools
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

import config
from engine.methods.base import workflow_of

ROOT = Path(__file__).resolve().parents[1]
BASE = ["--name", "exp", "--dataroot", "data"]


def parse(*flags: str) -> config.Config:
    return config.parse_train([*BASE, *flags])


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The line on stderr."""
    with pytest.raises(SystemExit) as exit_info:
        parse(*flags)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


def test_flags_of_the_predecessors_keep_their_names() -> None:
    flags = "--batch_size 3 --num_epochs 7 --lr_g 0.1 --lr_d 0.2 --beta1 0.5 --beta2 0.9 --continue_train"
    flags += " --which_iter latest --freq_print 1 --freq_fid 2 --freq_save_ckpt 3 --freq_save_latest 4 --seed 5"
    parsed = parse(*flags.split(), "--gpu_ids", "-1", "--checkpoints_dir", "ck")
    assert (parsed.batch_size, parsed.num_epochs, parsed.lr_g, parsed.gpu_ids) == (3, 7, 0.1, "-1")
    tested = config.parse_test([*BASE, "--ckpt_iter", "latest", "--results_dir", "out"])
    assert tested.ckpt_iter == "latest"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--oasis.unpaired --oasis.lambda_l1 1", "--oasis.lambda_l1 1.0: needs pairs"),
        ("--oasis.images_from b", "--oasis.images_from b: only with --oasis.unpaired"),
        ("--oasis.generator haar --oasis.channels_G 10", "--oasis.channels_G 10: must be a multiple of 4"),
        (
            "--model oasis --preset brain",
            "--model oasis --preset brain: there is no such pair; --model spade has small,",
        ),
        ("--model segmenter --preset demo", "--model segmenter --preset demo: there is no such pair"),
        ("--model=x", "--model x: there is no such pair; --model spade has small, demo, spade;"),
        ("--preset x", "--preset x: there is no such pair"),
        (
            "--oasis.crop x",
            "Error parsing --oasis.crop: no type matching {None}|{INT INT} could be instantiated from ['x']",
        ),
        ("--oasis.crop 32 40", "--oasis.crop 32 40: must be multiples of 32"),
        ("--oasis.crop 0 32", "--oasis.crop 0 32: must be multiples of 32"),
        ("--oasis.crop 32 32 --oasis.lambda_mask 1", "--oasis.lambda_mask 1: must be 0 with --oasis.crop"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, *flags.split()).startswith(f"error: {message}")


@pytest.mark.parametrize("pair", [f"{m} {p}" for m, method in config.METHODS.items() for p in method.presets])
def test_every_pair_of_method_and_preset_survives_a_checkpoint(pair: str) -> None:
    model, preset = pair.split()
    parsed = parse("--model", model, "--preset", preset)
    assert (parsed.model, parsed.preset) == (model, preset)
    assert config.from_dict(config.to_dict(parsed)) == parsed


@pytest.mark.parametrize(
    ("flags", "pair"),
    [
        ("", "spade small"),
        ("--oasis.z_dim 8", "oasis small"),
        ("--preset demo --oasis.z_dim=8", "oasis demo"),
        ("--segmenter.contrasts T1w --gmm.tie_std 8", "segmenter small"),
        ("--gmm.tie_std 8", "gmm fitted"),
        ("--oasis.z_dim 8 --preset salem2019", "lesion salem2019"),
        ("--model spade", "spade small"),
        ("--model=lesion", "lesion lesion"),
        ("--model segmenter", "segmenter small"),
        ("--model gmm", "gmm fitted"),
        ("--preset demo", "spade demo"),
        ("--preset small_unpaired", "oasis small_unpaired"),
        ("--preset salem2019", "lesion salem2019"),
        ("--preset synthseg", "segmenter synthseg"),
    ],
)
def test_one_of_the_pair_is_enough(flags: str, pair: str) -> None:
    parsed = parse(*flags.split())
    assert f"{parsed.model} {parsed.preset}" == pair


def test_published_presets_have_the_published_values() -> None:
    """OASIS as for Cityscapes (but for its batch of 20), SPADE by its paper and code; the recipe's parts are off."""
    for preset, rates, betas, width in (
        ("oasis", (4e-4, 4e-4), (0, 0.999), 128),
        ("spade", (1e-4, 4e-4), (0, 0.9), 64),
    ):
        parsed = parse("--preset", preset)
        own = getattr(parsed, preset)
        assert (parsed.lr_g, parsed.lr_d, parsed.beta1, parsed.beta2) == (*rates, *betas)
        assert (own.channels_G, own.channels_D, own.spade_hidden, own.param_free_norm) == (64, width, 128, "batch")
        assert (own.neighbours, own.grain, own.lambda_l1, own.lambda_lite, own.lambda_spectrum) == (0, False, 0, 0, 0)
    assert (own.lambda_feature, own.lambda_vgg, own.num_D, own.detail_D) == (10, 10, 2, 0)
    oasis = parse("--preset", "oasis").oasis
    assert (oasis.ema_decay, oasis.lambda_labelmix, oasis.z_dim) == (0.999, 5, 64)


def test_small_is_what_the_results_measure() -> None:
    """docs/results.md's command: `demo` with rows, 128 hidden channels and a cosine."""
    small, demo = parse(*"--model spade --preset small".split()), parse(*"--model spade --preset demo".split())
    assert replace(small.spade, slices_D=1, spade_hidden=64) == demo.spade
    assert (small.spade.slices_D, small.spade.spade_hidden, small.lr_decay) == (2, 128, "cosine")
    for name in ("batch_size", "lr_g", "lr_d", "lr_decay_from", "beta1", "beta2"):
        assert getattr(small, name) == getattr(demo, name)


def test_a_preset_gives_defaults_that_flags_override() -> None:
    parsed = parse("--preset", "demo", "--oasis.channels_G", "9")
    assert (parsed.oasis.channels_G, parsed.oasis.channels_D, parsed.lr_g) == (9, 16, 4e-4)
    given = parse(*"--model segmenter --preset brain --segmenter.contrasts any --gmm.gamma_std 0.4".split())
    assert (given.segmenter.contrasts, given.gmm.gamma_std, given.gmm.tie_std) == ("any", 0.4, 8)
    assert parse(*"--model segmenter --gmm.preset fetal".split()).gmm == config.GMM_PRESETS["fetal"]()


def test_options_of_other_methods_are_warned_of_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--oasis.z_dim 3 --gmm.blur 0.1 0.2 --segmenter.features=4 --oasis.no-balance_classes --model gmm --seed 1"
    parsed = parse(*flags.split())
    assert (parsed.seed, parsed.gmm.blur, parsed.oasis) == (1, (0.1, 0.2), config.OasisConfig())
    idle = ("--oasis.z_dim", "--segmenter.features=4", "--oasis.no-balance_classes")
    told = [f"warning: {flag} has no effect with --model gmm" for flag in idle]
    assert capsys.readouterr().err.strip().splitlines() == told


@pytest.mark.parametrize("model", config.METHODS)
def test_help_shows_the_options_of_one_method(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        config.parse_train(["--model", model, "--help"])
    said = capsys.readouterr().out
    assert set(re.findall(r"--(\w+)\.\w", said)) == set(config.METHODS[model].groups)
    words = " ".join(re.sub(r"[│\s]+", " ", said).split())
    assert "(default: None)" not in words  # the sentence says what happens
    assert "(default: 42)" in words


def test_every_option_is_explained_in_one_line() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "config.py", *ROOT.glob("models/*/options.py"))]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    classes = [cls for cls in classes if cls.name.endswith("Config") and cls.name != "Config"]
    assert {"CommonConfig", "OasisConfig", "GmmConfig"} <= {cls.name for cls in classes}
    for cls in classes:
        for field, text in itertools.pairwise([*cls.body, None]):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(text, ast.Expr), f"{cls.name}.{ast.unparse(field.target)} has no help"
                assert "\n" not in text.value.value, ast.unparse(field.target)


def test_the_config_survives_a_checkpoint() -> None:
    parsed = parse("--preset", "small_unpaired", "--weights", "w", "--oasis.images_from", "b")
    recorded = config.to_dict(parsed)
    assert config.from_dict(recorded) == parsed
    for other, words in (
        ({"lambda_new": 1}, "does not know"),
        ({"oasis": {"generator": "wavelet_residual"}}, "train anew with --generator haar"),
        ({"model": "x"}, "model: found 'x', must be one of spade, oasis"),
    ):
        with pytest.raises(ValueError, match=words):
            config.from_dict(recorded | other)


def test_pairs_that_version_0_1_took_are_read_and_go_on() -> None:
    """Its presets set options of all methods, of which only those of the method count."""
    new = config.to_dict(parse("--model", "segmenter"))
    old = new | {"preset": "demo", "oasis": new["oasis"] | {"channels_G": 16}}
    assert config.from_dict(old).preset == "small"
    assert config.differences(old, new) == []


def test_differences_name_flags_and_leave_runtime_options_out() -> None:
    old = parse("--model", "oasis")
    new = replace(old, batch_size=3, num_epochs=999, oasis=replace(old.oasis, z_dim=7))
    lines = config.differences(config.to_dict(old), config.to_dict(new))
    assert lines == ["--batch_size: was 8, now 3", "--oasis.z_dim: was 32, now 7"]


def test_runtime_options_exist() -> None:
    names = {f.name for f in fields(config.Config)}
    names |= {f"{group}.{f.name}" for group in ("oasis", "segmenter") for f in fields(getattr(parse(), group))}
    assert names >= config.RUNTIME_OPTIONS


READERS = {  # options -> where they are read, beside the checks of their ranges
    config.CommonConfig: ("train.py", "engine", "models", "dataloaders"),
    config.TestConfig: ("test.py", "engine"),
    config.OasisConfig: ("models/gan", "engine/methods"),
    config.SpadeConfig: ("models/gan", "engine/methods"),
    config.GmmConfig: ("models/gmm", "dataloaders"),
    config.LesionConfig: ("models/lesion", "dataloaders/lesions"),
    config.SegmenterConfig: ("models/segmenter", "dataloaders", "engine"),
}


@pytest.mark.parametrize("options", READERS, ids=lambda options: options.__name__)
def test_every_option_has_a_reader(options: type) -> None:
    files = [f for place in READERS[options] for f in [ROOT / place, *(ROOT / place).rglob("*.py")] if f.is_file()]
    text = "".join(file.read_text() for file in files if file.name != "options.py")
    holders = "config|c|o|options|oasis|own|gmm|segmenter|self"
    for f in fields(options):
        read = rf"\b({holders})\.{f.name}\b|\"{f.name}\""  # or by its name, among others
        assert re.search(read, text), f"nobody reads {options.__name__}.{f.name}"


def test_results_folders_of_one_name_are_two_sources() -> None:
    made = parse("--model", "segmenter", "--segmenter.real_fraction", "0")
    folders = (Path("a/best"), Path("b/best"))
    sources = workflow_of(replace(made, segmenter=replace(made.segmenter, results=folders))).sources()
    assert sorted(sources.values()) == list(folders)
