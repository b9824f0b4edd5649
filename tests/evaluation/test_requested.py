"""What is measured on request: protocols, further extractors, draws, segmented images, lesions, references."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from dataloaders.io.manifest import Manifest
from dataloaders.io.png import read_png, write_png
from dataloaders.io.weights import MissingWeights, resolve
from evaluation import request
from evaluation.evaluate import evaluate_pairs
from evaluation.metrics.distribution import frechet_distance
from evaluation.pairs import ManifestPairs
from evaluation.request import Request
from tests.evaluation.helpers import save_script
from tests.launch import call
from tests.toy_results import noisy, write_results

pytestmark = pytest.mark.usefixtures("no_weights")
run = partial(call, "scripts/evaluate.py")


def evaluate(folder: Path, **options: Any) -> dict[str, Any]:
    return evaluate_pairs(ManifestPairs(folder, Manifest.load(folder)), folder, Request(**options))


class Moments(torch.nn.Module):
    """Mean and spread of the image: features whose distances can be understood."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3))], 1)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return save_script(Moments(), tmp_path / "my-net v2.pt")


# -- extractors ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_further_extractor_has_its_own_names(tmp_path: Path, script: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=3, channels=("CT",))
    result = evaluate(folder, extractors=(f"torchscript:{script}",))
    entry = result["metrics"]["torchscript_my_net_v2_frechet/CT"]
    assert entry["value"] > 0
    assert entry["extractor"] == "torchscript:my-net v2"
    assert len(entry["weights_sha256"]) == 64
    assert entry["floor"]["value"] is not None
    assert result["metrics"]["fid/CT"]["value"] is None  # never stands in for Inception
    assert "weights missing" in result["metrics"]["fid/CT"]["reason"]


def test_extractor_metrics_by_name_and_refusals(tmp_path: Path, script: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), channels=("CT",))
    named = evaluate(folder, metrics="torchscript_my_net_v2_kid", extractors=(f"torchscript:{script}",))
    assert set(named["metrics"]) == {"torchscript_my_net_v2_kid/CT", "wasserstein"}
    with pytest.raises(ValueError, match="unknown; there are"):
        evaluate(folder, metrics="torchscript_my_net_v2_kid")
    with pytest.raises(ValueError, match="already have"):
        evaluate(folder, extractors=(f"torchscript:{script}", f"torchscript:{script}"))
    with pytest.raises(MissingWeights, match="no such file"):
        evaluate(folder, extractors=("resnet50:nowhere.pth",))


# -- protocols ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_oasis_is_what_pytorch_fid_prints(
    tmp_path: Path, inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytorch-fid's own features of 8-bit files of the same images, with the same test-made weights.

    Its distance is what `frechet_distance` is tested against in test_distribution.py; its square root of a singular
    2048 x 2048 matrix takes half a minute, so it is not repeated here.
    """
    from pytorch_fid import fid_score
    from pytorch_fid.inception import InceptionV3

    folder = write_results(tmp_path / "r", noisy(0.1), patients=3, slices=2, channels=("CT",))
    monkeypatch.setattr(request, "resolve", lambda key, explicit=None: inception_file)
    result = evaluate(folder, metrics="oasis_fid,fid", protocol=("oasis",))
    state = torch.load(inception_file, weights_only=True)
    with mock.patch("pytorch_fid.inception.load_state_dict_from_url", return_value=state):
        net = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
    features = []
    for kind in ("groundtruth", "generated"):
        for path in (folder / kind).iterdir():
            write_png(tmp_path / kind / path.name, np.rint(read_png(path) / 257).astype(np.uint8))
        features.append(fid_score.get_activations(sorted((tmp_path / kind).iterdir()), net, 4, 2048, "cpu", 0))
    entry = result["metrics"]["oasis_fid/CT"]
    assert entry["value"] == pytest.approx(frechet_distance(*features), rel=1e-4)
    assert entry["value"] != result["metrics"]["fid/CT"]["value"]  # 8 bits are not 16
    assert len(entry["weights_sha256"]) == 64


def test_a_protocol_by_name_needs_its_weights(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.1), channels=("CT",))
    with pytest.raises(MissingWeights):
        evaluate(folder, protocol=("oasis",))
    with pytest.raises(ValueError, match="synthrad2023, oasis"):
        evaluate(folder, protocol=("synthrad2077",))
    assert "synthrad2023_mae/CT" not in evaluate(folder)["metrics"]


# -- draws --------------------------------------------------------------------------------------------------------


def shifted(folder: Path, out: Path, levels: int) -> Path:
    """Generated images with another level in the body: a further draw."""
    for item in (slice_ for case in Manifest.load(folder).cases for slice_ in case.slices):
        body = read_png(folder / item.label) > 0
        for path in item.generated:
            write_png(out / Path(path).name, read_png(folder / path) + (levels * body).astype(np.uint16))
    return out


@pytest.mark.slow
def test_diversity_of_draws(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.02), channels=("T1w",))
    equal = evaluate(folder, draws=(folder / "generated",))["metrics"]
    assert equal["diversity_ssim/T1w"]["value"] == pytest.approx(1)
    assert equal["diversity_ssim/T1w"]["draws"] == 2
    assert equal["diversity_ssim/T1w"]["better"] is None
    assert equal["diversity_label_spread/T1w"]["value"] == 0
    assert "weights missing" in equal["diversity_lpips/T1w"]["reason"]
    of, draws = "diversity_ssim,diversity_label_spread", (shifted(folder, tmp_path / "d", 1000),)
    other = evaluate(folder, metrics=of, draws=draws)["metrics"]
    expected = 1000 / 65535 * 1000 / np.sqrt(2)  # window 0..1000; two draws that differ by d have a spread of d/sqrt(2)
    assert other["diversity_label_spread/T1w"]["value"] == pytest.approx(expected, rel=1e-3)
    assert other["diversity_ssim/T1w"]["value"] < 1


# -- lesions; label faithfulness: test_faithfulness.py, test_volume_pairs.py -------------------------------------------


@pytest.mark.slow
def test_lesions_found_in_the_generated_images(tmp_path: Path) -> None:
    """Three patients; the segmenter misses the lesions of one and draws one too many in another."""
    folder = write_results(tmp_path / "r", lambda real, label, rng: real + 5 * (label == 4), patients=3, slices=4)

    def see(path: Path, label: np.ndarray) -> np.ndarray:
        if path.name.startswith("sub-00"):
            label[label == 4] = 3
        if path.name.startswith("sub-01_z0001"):
            label[20:23, 2:5] = 4
        return label

    for path in (folder / "label").iterdir():
        write_png(tmp_path / "seen" / path.name, see(path, read_png(path).copy()))
    of = "lesion_recall,lesion_f1,lesion_volume_correlation,lesion_change_outside"
    result = evaluate(folder, metrics=of, segmented=tmp_path / "seen", lesion="lesion")
    rows = {row["case"]: row for row in result["per_lesion_case"]}
    assert [rows[f"sub-0{i}"]["found"] for i in range(3)] == [0, 2, 2]
    assert rows["sub-01"]["segmented"] == 3
    metrics = result["metrics"]
    assert metrics["lesion_recall"]["value"] == pytest.approx(2 / 3)
    assert metrics["lesion_recall"]["pooled"] == pytest.approx(4 / 6)
    assert metrics["lesion_f1"]["value"] == pytest.approx((0 + 0.8 + 1) / 3)
    assert metrics["lesion_volume_correlation"]["value"] is None  # the phantoms' lesions are equally large
    assert "volumes that differ" in metrics["lesion_volume_correlation"]["reason"]
    for channel in ("T1w", "CT"):
        assert metrics[f"lesion_change_outside/{channel}"]["value"] == 0  # the method changes lesions only
    with pytest.raises(ValueError, match="--lesion tumour: no such label"):
        evaluate(folder, lesion="tumour")


# -- references ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_saved_reference_gives_the_same_numbers(tmp_path: Path, script: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=3, channels=("CT",))
    network = ("--extractors", f"torchscript:{script}")
    real, labels = ("--real", folder / "groundtruth"), ("--labels", folder / "label")
    generated, saved = ("--generated", folder / "generated"), tmp_path / "ref" / "real.npz"
    run(*real, *generated, *labels, *network, "--save_reference", saved, "--out", tmp_path / "a")
    again = run(*generated, *labels, *network, "--reference", saved, "--out", tmp_path / "b", "--json")
    printed = json.loads(again.stdout)
    full = json.loads((tmp_path / "a" / "metrics.json").read_text())["metrics"]
    assert len(printed["metrics"]) == 18  # six metrics of the network, of EfficientNet and of radiomics
    for key, entry in printed["metrics"].items():
        assert entry["value"] == pytest.approx(full[key]["value"], rel=1e-6), key
        assert entry["floor"] | {"matched": full[key]["floor"]["matched"]} == full[key]["floor"]
    table = list(csv.DictReader((tmp_path / "b" / "summary.csv").open()))
    assert {row["metric"] for row in table} == {key.partition("/")[0] for key in printed["metrics"]}


def test_references_that_do_not_fit(tmp_path: Path, script: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=2, channels=("CT",))
    evaluate(folder, extractors=(f"torchscript:{script}",), save_reference=tmp_path / "ref.npz")
    other = tmp_path / "other" / script.name
    other.parent.mkdir()
    save_script(torch.nn.Sequential(Moments(), torch.nn.Linear(2, 2)), other)
    generated = ("--generated", folder / "generated", "--out", tmp_path / "o")
    for reference, more, message in (
        (tmp_path / "ref.npz", ("--extractors", f"torchscript:{other}"), "differ"),
        (folder / "metrics.json", (), "not a reference"),
        (tmp_path / "nowhere.npz", (), "not a reference"),
        (tmp_path / "ref.npz", ("--real", folder / "groundtruth"), "--real: cannot be used with --reference"),
    ):
        error = run(*generated, "--reference", reference, *more, code=2).stderr.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_pytorch_fids_statistics(tmp_path: Path, inception_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_results(tmp_path / "r", noisy(0.1), patients=2, channels=("CT",))
    monkeypatch.setattr(
        request, "resolve", lambda key, explicit=None: inception_file if key == "inception" else resolve(key)
    )
    np.savez(tmp_path / "fid.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    out = ("--reference", tmp_path / "fid.npz", "--out", tmp_path / "o")
    run("--generated", folder / "generated", *out)
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())["metrics"]
    assert set(metrics) == {"fid/image"}
    assert metrics["fid/image"]["value"] > 0


# -- shards -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_shards_merge_to_the_same_bytes(tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks see the same batches, which may end within a case, in any number of shards."""
    monkeypatch.setattr("evaluation.pairs.GROUP", 6)  # two cases
    monkeypatch.setattr("evaluation.scoring.BATCH", 4)
    folder = write_results(tmp_path / "r", noisy(0.05), patients=7, slices=3, channels=("CT",))
    options = ("--results", folder, "--segmented", folder / "label", "--lesion", "lesion")
    options += ("--extractors", f"torchscript:{script}")
    run(*options, "--out", tmp_path / "whole")
    for shard in ("2/3", "0/3"):
        run(*options, "--out", tmp_path / "parts", "--shard", shard)
        assert not (tmp_path / "parts" / "metrics.json").exists()
    run(*options, "--out", tmp_path / "parts", "--shard", "1/3", "--json")
    for name in ("metrics.json", "metrics.csv", "summary.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_a_changed_image_or_window_is_another_evaluation(tmp_path: Path) -> None:
    """Parts of the images as they were are not mixed with parts of what they are now."""
    folder = write_results(tmp_path / "r", noisy(0.05), patients=4, slices=12, channels=("CT",))
    pair = ("--real", folder / "groundtruth", "--generated", folder / "generated", "--metrics", "mae")
    out = tmp_path / "o"

    def shard(number: int, *more: str | Path) -> bool:
        run(*pair, "--out", out, "--shard", f"{number}/2", *more)
        return (out / "metrics.json").exists()

    assert not shard(0)
    assert not shard(1, "--patient_regex", "(sub)")
    assert not shard(1, "--window", "0", "1000")
    assert not shard(0)
    write_png(folder / "generated" / "sub-03_z0001_0000.png", np.zeros((48, 40), np.uint16))
    assert not shard(1)
    assert shard(0)
    assert not (out / "shards").exists()
    mae = json.loads((out / "metrics.json").read_text())["metrics"]["mae/image"]["value"]
    run(*pair, "--out", tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["metrics"]["mae/image"]["value"] == mae
