"""The comparison: what is refused, and who is called better."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dataloaders.io.manifest import Manifest
from evaluation.compare import find_results, load_entrants, metric_rows
from evaluation.report.numbers import to_json
from evaluation.report.words import verdict
from tests.toy_results import identity, noisy, write_results


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("MEDSIS_WEIGHTS", raising=False)


def pair(root: Path, patients: int = 2, **options: object) -> list[Path]:
    """Results of a better and a worse method on the same slices, in the folders that test.py would choose."""
    good = write_results(root / "good" / "best", noisy(0.02), name="good", patients=patients, log=True, **options)  # type: ignore[arg-type]
    bad = write_results(root / "bad" / "best", noisy(0.2), name="bad", method="gmm", patients=patients, **options)  # type: ignore[arg-type]
    return [good, bad]


def test_the_newest_results_inside_are_found(tmp_path: Path) -> None:
    good, _ = pair(tmp_path)
    assert find_results(good) == good
    assert find_results(tmp_path / "good") == good
    with pytest.raises(ValueError, match="no results here"):
        find_results(tmp_path / "nowhere")


def test_metrics_are_computed_where_missing(tmp_path: Path) -> None:
    entrants = load_entrants(pair(tmp_path))
    assert [entrant.name for entrant in entrants] == ["good", "bad"]
    assert (tmp_path / "good" / "best" / "metrics.json").is_file()


def test_the_better_method_is_marked_on_every_metric_with_a_direction(tmp_path: Path) -> None:
    entrants = load_entrants(pair(tmp_path))
    rows = metric_rows(entrants)
    compared = [row for row in rows if row.better and row.entries[0]["value"] is not None]
    tied = [row for row in compared if row.entries[0]["value"] == row.entries[1]["value"]]
    assert {row.best for row in compared if row not in tied} == {0}
    shares = ("precision", "recall", "density", "coverage")  # of few slices, so often 0 or 1 for both
    assert all(row.metric.endswith(shares) for row in tied)
    assert all(row.best is None for row in rows if row.entries[0]["value"] is None)
    text = " ".join(verdict(entrants, rows))
    assert "2 patients" in text
    assert "no interval" in text


def test_ties_have_no_best(tmp_path: Path) -> None:
    same = [write_results(tmp_path / name, identity, name=name) for name in ("a", "b")]
    assert all(row.best is None for row in metric_rows(load_entrants(same)))


def test_without_a_direction_nobody_is_best(tmp_path: Path) -> None:
    """A high slice jump ratio is flicker and a low one blur along z: shown, but never marked, counted or tested."""
    entrants = load_entrants(pair(tmp_path, patients=6, slices=3))
    rows = metric_rows(entrants)
    (row,) = (row for row in rows if row.key == "slice_jump_ratio/CT")
    good, bad = (entry["value"] for entry in row.entries if entry is not None)
    assert 1 < good < bad
    assert (row.better, row.best, row.runner_up, row.difference, row.clear) == (None, None, None, None, False)
    assert to_json(entrants, rows)["metrics"]["slice_jump_ratio/CT"]["best"] is None
    text = " ".join(verdict(entrants, rows))
    assert (
        "Texture, borders and continuity: good is best on all 4 measures." in text
    )  # two channels, error and spectrum
    assert "Slice jump relative to real" not in text


def test_clear_differences_over_patients_are_called_so(tmp_path: Path) -> None:
    entrants = load_entrants(pair(tmp_path, patients=6, slices=2))
    rows = metric_rows(entrants)
    assert any(row.clear for row in rows)
    text = " ".join(verdict(entrants, rows))
    assert "intervals" in text
    assert "sign-flip test over patients gives p < 0.05 for" in text
    difference = to_json(entrants, rows)["metrics"]["mae/CT"]["difference"]
    assert difference["patients"] == 6
    assert difference["p"] == 2 / 2**6  # better for all six: only the all-or-none flips are as extreme
    assert difference["ci95"][1] < 0


def test_different_slices_are_refused_with_the_difference(tmp_path: Path) -> None:
    good, bad = pair(tmp_path)
    manifest = Manifest.load(bad)
    first, *others = manifest.cases
    replace(manifest, cases=(replace(first, slices=first.slices[1:]), *others)).save(bad)
    with pytest.raises(ValueError, match=r"bad.* lacks 1 slices? .*sub-00 z0"):
        load_entrants([good, bad])


def test_other_real_images_or_windows_are_refused(tmp_path: Path) -> None:
    good, bad = pair(tmp_path)
    manifest = Manifest.load(bad)
    windows = tuple(replace(window, high=window.high + 1) for window in manifest.cases[0].windows)
    replace(manifest, cases=(replace(manifest.cases[0], windows=windows), *manifest.cases[1:])).save(bad)
    with pytest.raises(ValueError, match="window"):
        load_entrants([good, bad])


def _change(folder: Path, key: str, **fields: object) -> None:
    """Other fields in one entry of a metrics.json."""
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["metrics"][key] |= fields
    path.write_text(json.dumps(metrics))


def test_values_of_other_networks_or_numbers_are_not_ranked(tmp_path: Path) -> None:
    """Two extractors under one key, or another n: both values are shown, nobody is best, and it says why."""
    folders = pair(tmp_path)
    load_entrants(folders)
    _change(folders[1], "radiomics_kid/CT", extractor="another")
    _change(folders[1], "radiomics_frechet/CT", n=7)
    rows = {row.key: row for row in metric_rows(load_entrants(folders))}
    for key, why in (("radiomics_kid/CT", "another extractor"), ("radiomics_frechet/CT", "another n")):
        assert rows[key].best is None
        assert rows[key].incomparable == f"not compared: {why}"
        assert all(value is not None for value in rows[key].values)
    assert rows["radiomics_kid/T1w"].best == 0
    assert not rows["radiomics_kid/T1w"].incomparable


def test_metrics_that_one_method_lacks(tmp_path: Path) -> None:
    folders = pair(tmp_path)
    load_entrants(folders)
    _change(folders[0], "mae/CT", value=None, reason="lost")
    metrics = json.loads((folders[1] / "metrics.json").read_text())
    del metrics["metrics"]["ssim/CT"]
    (folders[1] / "metrics.json").write_text(json.dumps(metrics))
    rows = {row.key: row for row in metric_rows(load_entrants(folders))}
    assert rows["mae/CT"].values[0] is None
    assert rows["mae/CT"].reason(0) == "lost"
    assert rows["mae/CT"].best is None  # one value alone is no best
    assert rows["ssim/CT"].reason(1) == "not measured"


def test_the_best_is_compared_with_every_other(tmp_path: Path) -> None:
    folders = [
        write_results(tmp_path / name, noisy(amount), name=name, patients=5)
        for name, amount in (("mid", 0.1), ("good", 0.02), ("bad", 0.3))
    ]
    entrants = load_entrants(folders)
    (row,) = (row for row in metric_rows(entrants) if row.key == "mae/CT")
    assert (row.best, row.runner_up) == (1, 0)
    assert row.differences[1] is None
    assert row.differences[2] is not None
    per_patient = [entrant.metrics["per_patient"] for entrant in entrants]
    by_hand = sum(per_patient[1][p]["mae/CT"] - per_patient[2][p]["mae/CT"] for p in per_patient[1]) / 5
    assert row.differences[2].mean == pytest.approx(by_hand)
    assert row.difference is row.differences[0]


def test_an_older_schema_says_what_to_do(tmp_path: Path) -> None:
    folders = pair(tmp_path)
    load_entrants(folders)
    metrics = json.loads((folders[0] / "metrics.json").read_text())
    (folders[0] / "metrics.json").write_text(json.dumps(metrics | {"schema": "medsis-metrics/0"}))
    with pytest.raises(ValueError, match=r"evaluate\.py --results"):
        load_entrants(folders)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import scripts.compare as script

    pair(tmp_path, patients=1, channels=("CT",))
    arguments = [str(tmp_path / "good"), str(tmp_path / "bad"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
    assert script.main() == 0
    assert "report.html" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["compare.py", str(tmp_path / "nowhere")])
    assert script.main() == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_numbers_of_two_folders_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"numbers of scripts/evaluate\.py about two folders, without the images"):
        find_results(tmp_path)
