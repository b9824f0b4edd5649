"""scripts/evaluate.py says in one line what it cannot do, before it computes anything, and leaves nothing behind."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataloaders.io.png import write_png
from evaluation import evaluate, scoring
from evaluation.metrics import sharpness, similarity
from tests.launch import call
from tests.toy_results import noisy, write_results

pytestmark = pytest.mark.usefixtures("no_weights")
run = partial(call, "scripts/evaluate.py")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_results(tmp_path / "toy", noisy(0.05), patients=2, slices=2, channels=("CT",))


def pair(folder: Path) -> tuple[str | Path, ...]:
    return "--real", folder / "groundtruth", "--generated", folder / "generated"


def images(folder: Path, size: int, names: tuple[str, ...] = ("a", "b"), label: bool = True) -> tuple[str | Path, ...]:
    rng = np.random.default_rng(0)
    for kind in ("groundtruth", "generated"):
        for name in names:
            write_png(folder / kind / f"{name}.png", rng.integers(0, 65536, (size, size)).astype(np.uint16))
            write_png(folder / "label" / f"{name}.png", np.ones((size, size), np.uint8))
    return (*pair(folder), "--labels", folder / "label") if label else pair(folder)


# -- refusals -----------------------------------------------------------------------------------------------------

REFUSALS = {
    "results and labels": ("--results TOY --labels TOY/label", "--labels: cannot be used with --results"),
    "reference and draws": (
        "--reference x.npz --generated TOY/generated --draws TOY/generated",
        "--draws: cannot be used with --reference and --generated",
    ),
    "reference and shard": ("--reference x.npz --generated TOY/generated --shard 0/2", "--shard: cannot be used"),
    "one folder": ("--real TOY/groundtruth", "give --results DIR, or --real DIR"),
    "reversed window": ("PAIR --window 3071 -1024", "--window 3071 -1024: must be low and high"),
    "missing folder": ("--real TOY/nowhere --generated TOY/generated", "--real TOY/nowhere: no such folder"),
    "no group": ("PAIR --patient_regex sub", "put the patient into a group"),
    "optional group": ("PAIR --patient_regex sub(x)?", "does not match"),
    "device": ("PAIR --device foo", "--device foo: cannot be used here"),
    "junk extractor": ("PAIR --metrics mae --extractors junk", "--extractors junk: use torchscript:FILE"),
    "built-in extractor": ("PAIR --extractors efficientnet_lite0", "EfficientNet-Lite0 is always measured"),
    "no repeats": ("PAIR --repeats NOWHERE", "--repeats NOWHERE: no such folder"),
    "inception extractor": ("PAIR --extractors inception:FILE", "name its file by --weights"),
    "lesion alone": ("PAIR --lesion 4", "--lesion 4: needs label maps"),
    "nothing": ("PAIR --metrics mae_body", "nothing could be computed: mae_body/image: no pixel with a label"),
    "out is a file": ("PAIR --out TOY/manifest.json", "--out TOY/manifest.json: TOY/manifest.json is a file"),
    "reference is a folder": ("PAIR --save_reference TOY", "--save_reference TOY: is a folder"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSALS)
def test_one_line_and_nothing_written(name: str, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "out is" in name or "is a f" in name:
        monkeypatch.setattr(evaluate, "score", lambda *_: pytest.fail("computed before it was checked"))
    arguments, message = (text.replace("TOY", str(toy)) for text in REFUSALS[name])
    arguments = arguments.replace("PAIR", " ".join(map(str, pair(toy))))
    out = () if "--out" in arguments else ("--out", tmp_path / "o")
    before = sorted(tmp_path.rglob("*"))
    error = run(*arguments.split(" "), *out, code=2).stderr.strip().splitlines()
    assert error[-1].startswith("error: ")
    assert message in error[-1]
    assert sorted(tmp_path.rglob("*")) == before


# -- images that are not as usual ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 10, 30])
def test_tiny_images_have_reasons(size: int, tmp_path: Path) -> None:
    run(*images(tmp_path, size), "--out", tmp_path / "o")
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())["metrics"]
    assert metrics["mae/image"]["value"] > 0
    expected = {"ssim/image": 11, "spectrum_distance/image": 8}
    for key, smallest in expected.items():
        assert (metrics[key]["value"] is None) == (size < smallest), key
        if size < smallest:
            assert f"at least {smallest} pixels" in metrics[key]["reason"]


def test_colours_and_palettes_are_no_intensities(tmp_path: Path) -> None:
    arguments = images(tmp_path, 16)
    grey = Image.fromarray(np.full((16, 16), 1, np.uint8))
    grey.convert("P").save(tmp_path / "label" / "a.png")
    run(*arguments, "--metrics", "mae", "--out", tmp_path / "o")  # label maps may be
    for mode in ("P", "RGB"):
        grey.convert(mode).save(tmp_path / "generated" / "a.png")  # equal channels, a grey palette
        run(*arguments, "--metrics", "mae", "--out", tmp_path / "o")
        red = Image.fromarray(np.full((16, 16, 3), (200, 0, 0), np.uint8))
        red.convert(mode).save(tmp_path / "generated" / "a.png")
        error = run(*arguments, "--out", tmp_path / "o2", code=2).stderr
        assert f"found colours (mode {mode}); convert it to greyscale first" in error


def test_unrelated_images_are_volumes_of_their_own(tmp_path: Path) -> None:
    """No distance leads from one image to another, and none is in mm."""
    names = ("img_0001", "img_0002")
    arguments = images(tmp_path, 32, names)
    for kind, column in (("label", 0), ("seen", 3)):
        for i, name in enumerate(names):
            ids = np.zeros((32, 32), np.uint8)
            ids[4:10, 4 + 8 * i + column : 10 + 8 * i + column] = 1
            write_png(tmp_path / kind / f"{name}.png", ids)
    more = ("--segmented", tmp_path / "seen", "--lesion", "1", "--out", tmp_path / "o")
    run(*arguments, *more)
    result = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert result["n"] == {"slices": 2, "cases": 2, "patients": 2}
    assert result["metrics"]["faithfulness_hd95"]["value"] == 3
    assert result["metrics"]["faithfulness_hd95"]["unit"] == "pixels"
    assert [row["volume_pixels"] for row in result["per_lesion_case"]] == [36, 36]
    assert result["settings"]["spacing"].startswith("unknown")


def test_only_what_is_asked_for_is_computed(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((similarity, "similarity"), (scoring, "slice_features"), (sharpness, "gradient_sum")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("was not asked for"))
    run("--results", toy, "--metrics", "mae", "--out", tmp_path / "o")
    result = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert set(result["metrics"]) == {"mae/CT", "wasserstein"}


def test_a_reference_of_missing_weights_is_exit_code_3(toy: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "fid.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    more = ("--reference", tmp_path / "fid.npz", "--generated", toy / "generated", "--out", tmp_path / "o")
    assert "needs Inception; weights missing: pt_inception" in run(*more, code=3).stderr
    assert not (tmp_path / "o").exists()
