"""The table of several runs: arithmetic by hand, the command on toy results, repeat scans that were moved."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import gan_table
from benchmarks.gan_table import as_markdown, table_of
from dataloaders.io.pictures import TITLE
from tests.toy_results import good_and_bad

PEOPLE = [f"p{i}" for i in range(6)]


def values(*of_people: float) -> dict[str, float]:
    return dict(zip(PEOPLE, of_people, strict=True))


def test_differences_are_of_distances_from_the_best_value() -> None:
    """A ratio of 0.9 is nearer to 1 than one of 1.2, though it is lower; of errors the lower one is better."""
    found = {
        "a": {"slice_jump_ratio/T1w": values(*[1.2] * 6), "mae_body/T1w": values(1, 2, 3, 4, 5, 6)},
        "b": {"slice_jump_ratio/T1w": values(*[0.9] * 6), "mae_body/T1w": values(2, 3, 4, 5, 6, 7)},
    }
    jump, mae = table_of(found, {"mae_body/T1w": {"p0": 0.5}}, "a")
    assert jump["b"]["difference"]["mean"] == pytest.approx(-0.1)
    assert mae["b"]["difference"]["mean"] == pytest.approx(1)
    assert mae["b"]["difference"]["interval"] == pytest.approx((1, 1))
    assert mae["a"]["value"] == pytest.approx(3.5)
    assert mae["floor"]["value"] == 0.5
    text = as_markdown([jump, mae], ["a", "b"])
    (only,) = table_of({"a": {"faithfulness_dice": values(*[0.5] * 6)}, "b": {}}, {}, "a")  # b was not segmented
    assert only["b"]["value"] is None
    assert "difference" not in only["b"]
    assert "| slice jump ratio, T1w | 1.2 [1.2, 1.2] | 0.9 [0.9, 0.9] (**-0.1 [-0.1, -0.1]**) | – |" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(path) for path in good_and_bad(tmp_path, size=(64, 72), channels=("T1w",), patients=3, slices=4)]
    arguments = ["--reference", "bad", "--out", str(tmp_path / "table")]
    monkeypatch.setattr(sys, "argv", ["gan_table.py", *folders, *arguments])
    assert gan_table.run() == 0
    found = json.loads((tmp_path / "table" / "table.json").read_text())
    rows = {row["metric"].partition("/")[0]: row for row in found["rows"]}
    assert set(rows) == {*gan_table.HEADINGS} - {"faithfulness_dice"}
    for key in ("ssim", "mae_body", "efficientnet_lite0_kid", "radiomics_kid", "spectrum_distance"):
        assert rows[key]["good"]["difference"]["mean"] < 0, key
    other = "sub-01" if found["person"] == "sub-00" else "sub-00"
    assert found["columns"] == ["label", "real", f"real, {other}", "good", "bad"]
    with Image.open(tmp_path / "table" / "people.png") as image:
        assert image.size == (5 * 72 + 4 * 2, 5 * 64 + 4 * 2 + TITLE)  # noise everywhere: nothing to cut away
    assert "EfficientNet-Lite0 kernel distance" in capsys.readouterr().out
