"""The comparison: what is refused, who is called better, and a page that needs nothing else."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dataloaders.manifest import Manifest
from evaluation.compare import Entrant, find_results, limits, load_entrants, metric_rows, to_json, verdict
from evaluation.report import render, write_report
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
    assert "Continuity from slice to slice: good is best on all 2 measures." in text
    assert "Slice jump relative to real" not in text
    page = render(entrants, rows)
    lines = [line for line in page.split("<tr>") if line.startswith("<td>Slice jump relative to real</td>")]
    assert len(lines) == 2
    assert all("best" not in line.partition("</tr>")[0] for line in lines)
    assert "1 is as in the real images" in page


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


class _References(HTMLParser):
    """Every address that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_is_self_contained_and_complete(tmp_path: Path) -> None:
    folders = pair(tmp_path)
    path = write_report(load_entrants(folders), tmp_path / "out")
    page = path.read_text()
    parser = _References()
    parser.feed(page)
    assert parser.open == []
    assert len([r for r in parser.found if r.startswith("data:image/")]) >= 4
    assert all(r.startswith(("data:", "#")) for r in parser.found)
    assert "url(" not in page
    assert "@import" not in page
    for part in ("good", "bad", "grey matter", "T1w", "HU", "n/a", "weights missing", "What this does not show"):
        assert part in page, part
    assert str(tmp_path) not in page


def test_numbers_are_beside_the_report(tmp_path: Path) -> None:
    entrants = load_entrants(pair(tmp_path))
    write_report(entrants, tmp_path / "out")
    text = (tmp_path / "out" / "compare.json").read_text()
    data = json.loads(text)
    assert data["schema"] == "medsis-compare/1"
    assert data["metrics"]["ssim/CT"]["best"] == "good"
    assert set(data["metrics"]["ssim/CT"]["values"]) == {"good", "bad"}
    assert str(tmp_path) not in text


def test_names_cannot_inject_markup(tmp_path: Path) -> None:
    folders = [write_results(tmp_path / n, noisy(0.1), name=f"<script>{n}</script>", slices=2) for n in ("a", "b")]
    entrants: list[Entrant] = load_entrants(folders)
    page = render(entrants, metric_rows(entrants))
    assert "<script>a" not in page
    assert "&lt;script&gt;a" in page


def test_limits_tell_patients_and_missing_metrics(tmp_path: Path) -> None:
    entrants = load_entrants(pair(tmp_path))
    text = " ".join(limits(entrants, metric_rows(entrants)))
    assert "2 patients" in text
    assert re.search(r"fid|FID", text)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import scripts.compare as script

    pair(tmp_path)
    arguments = [str(tmp_path / "good"), str(tmp_path / "bad"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
    assert script.main() == 0
    assert "report.html" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["compare.py", str(tmp_path / "nowhere")])
    assert script.main() == 2
    assert capsys.readouterr().err.startswith("error: ")
