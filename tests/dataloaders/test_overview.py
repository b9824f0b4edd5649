"""The lines that say what a data set holds, after preparing and before training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataloaders.io.manifest import FILE_NAME, Manifest
from dataloaders.io.spec import Label
from dataloaders.overview import HARD, class_shares, overview
from tests.toy import prepared_folder


@pytest.mark.slow
def test_what_was_found_also_without_the_histograms(tmp_path: Path) -> None:
    root = prepared_folder(tmp_path, channels=2)
    manifest = Manifest.load(root)
    lines = overview(manifest)
    assert lines[:3] == [
        "train: 12 slices, 2 cases, 2 patients",
        "  val: 6 slices, 1 case, 1 patient",
        " test: 6 slices, 1 case, 1 patient",
    ]
    counts = manifest.pixels("train")
    shares = " ".join(lines).replace("  ", " ")
    assert sum(counts.values()) == 12 * 32 * 32
    assert f"grey_matter {100 * counts[2] / (12 * 32 * 32):.0f} %" in shares
    assert "channels: MR0 in a.u., window 0 to 255; MR1 in a.u., window 0 to 255" in lines
    assert "slices: 32x32 pixels of 1 x 1 mm, 1 mm apart, axial" in lines
    # Training leaves histograms out, which are most of a large manifest
    lean = Manifest.load(root, histograms=False)
    assert not any(item.histogram for case in lean.cases for item in case.slices)
    for split in ("train", "val", "test"):
        assert lean.pixels(split) == manifest.pixels(split)
    assert overview(lean) == lines
    data = json.loads((root / FILE_NAME).read_text())
    data["cases"][0]["slices"][0]["histogram"] = {"0": "many"}
    (root / FILE_NAME).write_text(json.dumps(data))
    with pytest.raises(ValueError, match="histogram"):
        Manifest.load(root, histograms=False)


def test_labels_with_hardly_any_pixels_and_none_are_named() -> None:
    names = ("background", "liver", "portal vein", "spleen")
    labels = [Label(number, name, (number,)) for number, name in enumerate(names)]
    assert class_shares(labels, {0: 9_000, 1: 977, 2: 23}).replace(HARD, " ") == (
        "4 labels, share of the training pixels: background 90 %, liver 9.8 %, portal vein 0.23 %"
        "; learned from hardly any pixels: portal vein 23; in no training slice: spleen"
    )
