"""evaluate.py opens each image, label map and second scan once, also where only all of them tell what it has to know."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataloaders.io.manifest import Manifest
from dataloaders.io.nifti import write_volume
from dataloaders.io.png import NoGrey, write_png
from evaluation.evaluate import evaluate_generated, evaluate_pairs, evaluate_shard
from evaluation.folders import Folders
from evaluation.pairs import ManifestPairs, Pairs
from evaluation.request import Request
from tests.toy_results import good_and_bad

pytestmark = pytest.mark.usefixtures("no_weights")
METRICS = "mae,ssim,label_mean_error,diversity_label_spread,faithfulness_dice,radiomics_frechet"
KINDS = ("real", "generated", "labels", "draw", "segmented", "repeats")
_watched: list[Counter[str]] = []


def _audit(event: str, given: tuple[Any, ...]) -> None:
    if _watched and event == "open" and str(given[0]).endswith((".png", ".nii.gz")):
        _watched[0][str(Path(given[0]).resolve())] += 1


sys.addaudithook(_audit)  # the interpreter's own list of what is opened: no reader can pass it by


@pytest.fixture
def opened() -> Any:
    """How often each image file is opened."""
    _watched.append(Counter())
    yield _watched[0]
    _watched.clear()


def images(root: Path, suffix: str, cases: int = 3, highest: int = 3000) -> dict[str, Path]:
    """Folders of each kind; PNG files of 12 bits in 16."""
    rng = np.random.default_rng(0)
    for case in range(cases):
        for kind in KINDS:
            label = np.pad(np.full((20, 16, 3), 1 + case), 4)
            image = np.where(label > 0, rng.integers(highest // 2, highest, label.shape), 20)
            volume = (label if kind in ("labels", "segmented") else image).astype(np.uint16)
            if suffix == "nii.gz":
                write_volume(root / kind / f"p{case}.nii.gz", volume.astype(np.int32), np.eye(4))
            else:
                for z in range(volume.shape[2]):
                    write_png(root / kind / f"p{case}_z{z}.png", volume[..., z])
    return {kind: root / kind for kind in KINDS}


@pytest.mark.parametrize("window", [None, (0.0, 4095.0)])
@pytest.mark.parametrize("suffix", ["nii.gz", "png"])
def test_each_file_is_opened_once(
    tmp_path: Path, opened: Counter[str], suffix: str, window: tuple[float, float] | None
) -> None:
    of = images(tmp_path, suffix)
    volumes = suffix == "nii.gz"
    others = {"draws": (of["draw"],), "segmented": of["segmented"], "repeats": of["repeats"] if volumes else None}
    pairs = Folders(of["real"], of["generated"], of["labels"], window=window).pairs()
    opened.clear()  # of writing
    result = evaluate_pairs(pairs, tmp_path / "out", Request(METRICS, **others))  # type: ignore[arg-type]
    assert result["metrics"]["mae/image"]["value"] > 0
    assert ("floor" in result["metrics"]["mae/image"]) is volumes
    there = [path for kind in KINDS if volumes or kind != "repeats" for path in of[kind].iterdir()]
    assert dict(opened) == {str(path): 1 for path in there}


def test_each_file_of_results_and_their_second_scans_is_opened_once(tmp_path: Path, opened: Counter[str]) -> None:
    good, bad = good_and_bad(tmp_path, size=(32, 40), channels=("T1w", "CT"), patients=2, slices=2)
    opened.clear()
    evaluate_pairs(ManifestPairs(bad, Manifest.load(bad)), tmp_path / "out", Request("mae", repeats=good))
    assert len(opened) == 2 * 2 * 2 * 5  # folders, patients, slices; a label map and two channels, real and generated
    assert set(opened.values()) == {1}


@pytest.mark.parametrize("suffix", ["nii.gz", "png"])
def test_against_a_reference_each_file_is_opened_once(tmp_path: Path, opened: Counter[str], suffix: str) -> None:
    of = images(tmp_path, suffix)
    folders = Folders(of["real"], of["generated"], of["labels"], window=(0, 4095), levels=4095)
    reference = tmp_path / "real.npz"
    evaluate_pairs(folders.pairs(), tmp_path / "out", Request("radiomics_frechet", save_reference=reference))
    alone = replace(folders, real=of["generated"]).pairs()  # looks into the headers of label maps for names
    opened.clear()
    evaluate_generated(alone, reference, tmp_path / "out", Request("radiomics_frechet"))
    assert dict(opened) == {str(path): 1 for kind in ("generated", "labels") for path in of[kind].iterdir()}


def twelve_bits_at_last(root: Path) -> Folders:
    """Two groups of cases; the real images of the first stay below 1,024 levels, and those of the second do not."""
    rng = np.random.default_rng(1)
    for i in range(40):
        for kind in ("real", "generated"):
            image = rng.integers(0, 4096 if i >= 36 and kind == "real" else 1000, (16, 16)).astype(np.uint16)
            write_png(root / kind / f"p{i:02d}_z0.png", image)
    return Folders(root / "real", root / "generated")


def shards(folders: Folders, out: Path, request: Request, n: int = 2) -> dict[str, Any] | None:
    return [evaluate_shard(folders.pairs(), out, request, (i, n)) for i in range(n)][-1]


def test_a_range_that_shows_late_counts_from_the_start(tmp_path: Path, opened: Counter[str]) -> None:
    folders, request = twelve_bits_at_last(tmp_path), Request("mae,ssim,psnr,radiomics_frechet")
    given = evaluate_pairs(replace(folders, levels=4095).pairs(), tmp_path / "0", request)
    opened.clear()
    found = evaluate_pairs(folders.pairs(), tmp_path / "1", request)
    assert found == given
    often = Counter(opened.values())
    # the first group once more, unless the second was read before the first was scored
    assert sorted(often.items()) in ([(1, 2 * 8), (2, 2 * 32)], [(1, 2 * 40)])
    assert shards(folders, tmp_path / "2", request) == given


def test_palettes_of_other_shards_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    folders = replace(twelve_bits_at_last(tmp_path), labels=tmp_path / "labels")
    for path in (tmp_path / "real").iterdir():
        image = Image.fromarray(np.eye(16, dtype=np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 255, 0, 0] if path.stem < "p32" else [0, 0, 0, 0, 255, 0])
        image.save(tmp_path / "labels" / path.name)
    with pytest.raises(NoGrey, match="its palette is not that of"):
        shards(folders, tmp_path / "out", Request("mae"))


def test_what_only_all_label_maps_tell_is_said_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of = images(tmp_path, "png")

    def pairs() -> Pairs:
        return Folders(of["real"], of["generated"], of["labels"]).pairs()

    with pytest.raises(ValueError, match="--lesion 9: no such label; there are 0 background, 1 label_1, 2 label_2"):
        evaluate_pairs(pairs(), tmp_path / "out", Request("mae", lesion="9"))
    with pytest.raises(ValueError, match="--lesion tumour: no such label; there are ids without names"):
        evaluate_pairs(pairs(), tmp_path / "out", Request("mae", lesion="tumour"))
    assert not (tmp_path / "out").exists()
    for path in of["labels"].iterdir():
        write_png(path, np.zeros((28, 24), np.uint8))
    evaluate_pairs(pairs(), tmp_path / "out", Request("mae"))
    assert "all label maps are 0" in capsys.readouterr().err
