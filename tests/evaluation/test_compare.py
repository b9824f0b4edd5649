"""The comparison: what is refused, and who is called better."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dataloaders.io.manifest import Case, Manifest
from evaluation.compare import Row, find_results, load_entrants, metric_rows
from evaluation.report.tables import to_json
from evaluation.report.words import verdict
from tests.evaluation.helpers import scored
from tests.toy_results import good_and_bad, identity, noisy, write_results

pytestmark = [pytest.mark.usefixtures("no_weights"), pytest.mark.slow]


@pytest.fixture(scope="module")
def runs(no_weights: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients, two methods; not to be changed."""
    root = tmp_path_factory.mktemp("scored")
    load_entrants(good_and_bad(root))
    return root


@pytest.fixture
def folders(runs: Path, tmp_path: Path) -> list[Path]:
    """A copy of it."""
    return [Path(shutil.copytree(runs / name, tmp_path / name)) / "best" for name in ("good", "bad")]


def _rows(folders: list[Path]) -> dict[str, Row]:
    return {row.key: row for row in metric_rows(load_entrants(folders))}


def _change(folder: Path, key: str, **fields: object) -> None:
    """Other fields in one entry of a metrics.json."""
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["metrics"][key] |= fields
    path.write_text(json.dumps(metrics))


# -- which results ------------------------------------------------------------------------------------------------


def test_the_newest_results_inside_are_found_and_scored(runs: Path) -> None:
    assert find_results(runs / "good" / "best") == find_results(runs / "good") == runs / "good" / "best"
    assert (runs / "good" / "best" / "metrics.json").is_file()
    assert [entrant.name for entrant in load_entrants([runs / "good", runs / "bad"])] == ["good", "bad"]


def _without_first_slice(case: Case) -> Case:
    return replace(case, slices=case.slices[1:])


def _with_other_window(case: Case) -> Case:
    return replace(case, windows=tuple(replace(window, high=window.high + 1) for window in case.windows))


@pytest.mark.parametrize(
    ("change", "message"),
    [(_without_first_slice, r"bad.* lacks 1 slices? .*sub-00 z0"), (_with_other_window, "intensity window")],
)
def test_other_slices_are_refused_with_the_difference(
    folders: list[Path], change: Callable[[Case], Case], message: str
) -> None:
    manifest = Manifest.load(folders[1])
    first, *others = manifest.cases
    replace(manifest, cases=(change(first), *others)).save(folders[1])
    with pytest.raises(ValueError, match=message):
        load_entrants(folders)


def test_an_older_schema_says_what_to_do(folders: list[Path]) -> None:
    file = folders[0] / "metrics.json"
    file.write_text(file.read_text().replace("medsis-metrics/1", "medsis-metrics/0"))
    with pytest.raises(ValueError, match=r"evaluate\.py --results"):
        load_entrants(folders)


# -- who is better ------------------------------------------------------------------------------------------------


def test_the_better_method_is_marked_on_every_metric_with_a_direction(runs: Path) -> None:
    entrants = load_entrants([runs / "good", runs / "bad"])
    rows = metric_rows(entrants)
    compared = [row for row in rows if row.better and row.values[0] is not None]
    tied = [row for row in compared if row.values[0] == row.values[1]]
    assert {row.best for row in compared if row not in tied} == {0}
    shares = ("precision", "recall", "density", "coverage")  # of few slices, so often 0 or 1 for both
    assert all(row.metric.endswith(shares) for row in tied)
    assert all(row.best is None for row in rows if row.values[0] is None)
    text = " ".join(verdict(entrants, rows))
    assert "2 patients" in text
    assert "no interval" in text


def test_ties_have_no_best(tmp_path: Path) -> None:
    same = [write_results(tmp_path / name, identity, name=name) for name in ("a", "b")]
    rows = metric_rows(scored(same, "mae,ssim,wasserstein,slice_jump_ratio"))
    assert [row.best for row in rows] == [None] * len(rows)


def test_over_six_patients(tmp_path: Path) -> None:
    """Clear differences are called so; a metric without a direction is shown, but never marked, counted or tested."""
    texture = "slice_jump_ratio,slice_difference_mae,spectrum_distance,edge_sharpness_ratio"
    entrants = scored(good_and_bad(tmp_path, patients=6, slices=3), f"mae,{texture}")
    rows = metric_rows(entrants)
    assert any(row.clear for row in rows)
    text = " ".join(verdict(entrants, rows))
    assert "intervals" in text
    assert "sign-flip test over patients gives p < 0.05 for" in text
    assert "Texture, borders and continuity: good is best on all 4 measures." in text  # error and spectrum, 2 channels
    assert "Slice jump relative to real" not in text
    numbers = to_json(entrants, rows)["metrics"]
    difference = numbers["mae/CT"]["difference"]
    # better for all six: only the all-or-none flips are as extreme
    assert (difference["patients"], difference["p"]) == (6, 2 / 2**6)
    assert difference["ci95"][1] < 0
    (row,) = (row for row in rows if row.key == "slice_jump_ratio/CT")
    good, bad = (entry["value"] for entry in row.entries if entry is not None)
    assert 1 < good < bad  # a high ratio is flicker, a low one blur along z
    assert (row.better, row.best, row.runner_up, row.difference, row.clear) == (None, None, None, None, False)
    assert numbers["slice_jump_ratio/CT"]["best"] is None


def test_values_of_other_networks_or_numbers_are_not_ranked(folders: list[Path]) -> None:
    """Two extractors under one key, or another n: both values are shown, nobody is best, and it says why."""
    _change(folders[1], "radiomics_kid/CT", extractor="another")
    _change(folders[1], "radiomics_frechet/CT", n=7)
    rows = _rows(folders)
    for key, why in (("radiomics_kid/CT", "another extractor"), ("radiomics_frechet/CT", "another n")):
        assert rows[key].best is None
        assert rows[key].incomparable == f"not compared: {why}"
        assert all(value is not None for value in rows[key].values)
    assert rows["radiomics_kid/T1w"].best == 0
    assert not rows["radiomics_kid/T1w"].incomparable


def test_metrics_that_one_method_lacks(folders: list[Path]) -> None:
    _change(folders[0], "mae/CT", value=None, reason="lost")
    metrics = json.loads((folders[1] / "metrics.json").read_text())
    del metrics["metrics"]["ssim/CT"]
    (folders[1] / "metrics.json").write_text(json.dumps(metrics))
    rows = _rows(folders)
    assert rows["mae/CT"].values[0] is None
    assert rows["mae/CT"].reason(0) == "lost"
    assert rows["mae/CT"].best is None  # one value alone is no best
    assert rows["ssim/CT"].reason(1) == "not measured"


def test_the_best_is_compared_with_every_other(tmp_path: Path) -> None:
    amounts = {"mid": 0.1, "good": 0.02, "bad": 0.3}
    folders = [write_results(tmp_path / name, noisy(of), name=name, patients=5) for name, of in amounts.items()]
    entrants = scored(folders, "mae")
    (row,) = (row for row in metric_rows(entrants) if row.key == "mae/CT")
    assert (row.best, row.runner_up) == (1, 0)
    assert row.differences[1] is None
    good, bad = (entrant.metrics["per_patient"] for entrant in entrants[1:])
    assert row.differences[2].mean == pytest.approx(sum(good[p]["mae/CT"] - bad[p]["mae/CT"] for p in good) / 5)
    assert row.difference is row.differences[0]
