"""What names may do in the files that are given away: nothing. And nothing in them tells whose machine made them."""

from __future__ import annotations

import csv
import io
import socket
from pathlib import Path

import pytest
from matplotlib.text import Text

import config as options
from config import parse_train
from dataloaders.io.files import csv_text, write_json
from dataloaders.io.runlog import RunLog
from engine.export import shareable
from evaluation import evaluate_results
from evaluation.compare import load_entrants, metric_rows
from evaluation.report import write_report
from evaluation.report.tables import csv_tables, latex
from tests.toy_results import noisy, write_results


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))


def test_a_spreadsheet_runs_no_cell() -> None:
    cells = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "plain", "a=b"]
    numbers = ["-1.5", "+2", "-1e-3", "-inf", -2.5, None]
    text = csv_text(["=head", "b"], [[cell, 1] for cell in (*cells, *numbers)])
    found = [row[0] for row in csv.reader(io.StringIO(text))]
    assert found[0] == "'=head"
    assert found[1:8] == ["'=1+1", "'+cmd|' /C calc'!A0", "'-2+3", "'@SUM(A1)", "'\t=1", "plain", "a=b"]
    assert found[8:] == ["-1.5", "+2", "-1e-3", "-inf", "-2.5", ""]


def test_names_in_the_tables_of_a_report(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.1), name='=HYPERLINK("x")', patients=1, slices=1, size=(16, 16))
    evaluate_results(folder, "mae")
    entrants = load_entrants([folder])
    tables = csv_tables(entrants, metric_rows(entrants))
    rows = list(csv.DictReader(io.StringIO(tables["metrics.csv"])))
    assert {row["method"] for row in rows} == {'\'=HYPERLINK("x")'}
    assert latex("a\n\\input{x}\x1b") == r"a \textbackslash{}input\{x\} "


def test_a_dollar_in_a_name_is_no_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$\\frac$ would end the report, $x$ would be set as a formula. And the same results give the same files."""
    folder = write_results(
        tmp_path / "r", noisy(0.1), name=r"$\frac$", patients=1, slices=1, channels=("CT",), size=(16, 16)
    )
    evaluate_results(folder, "mae,spectrum_distance")
    seen: list[bool] = []
    before = Text.__init__

    def spied(self: Text, *arguments: object, **named: object) -> None:
        before(self, *arguments, **named)  # type: ignore[arg-type]
        seen.append(self.get_parse_math())

    monkeypatch.setattr(Text, "__init__", spied)
    trees = []
    for name in "ab":
        write_report(load_entrants([folder]), tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        trees.append({path.name: path.read_bytes() for path in files})
    assert seen
    assert not any(seen)
    assert trees[0] == trees[1]
    assert r"$\frac$" in (tmp_path / "a/figures/slices_CT.svg").read_text()


def test_options_that_are_given_away_hold_no_path(tmp_path: Path) -> None:
    """By their type, so that an option that is added later is none of those that are forgotten."""
    home = tmp_path / "smith"
    words = f"--name x --dataroot {home}/d --weights {home}/w --checkpoints_dir {home}/c --model gmm"
    priors = home / "priors.json"
    write_json(priors, {})
    trained = parse_train([*words.split(), "--gmm.priors", str(priors)])
    kept = options.without_paths(trained)
    assert "smith" not in str(kept)
    assert kept["gmm"]["priors"] == "priors.json"
    assert not {"dataroot", "weights", "checkpoints_dir"} & kept.keys()
    assert "images_from" not in kept["oasis"]
    assert not {"label_maps", "generation_labels", "prior_means_file", "results"} & kept["segmenter"].keys()
    released = shareable(trained, "y")
    assert "smith" not in str(released)
    assert (released.name, released.gmm.priors, str(released.dataroot)) == ("y", "priors.json", "data")


def test_tensorboard_files_do_not_name_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(socket, "gethostname", lambda: "smiths-laptop")
    log = RunLog(tmp_path)
    log.record({"kind": "train", "images": 1, "losses": {"a": 1.0}})
    log.close()
    files = [path for path in (tmp_path / "tensorboard").iterdir() if path.stat().st_size > 100]
    assert files
    assert not any("smith" in path.name or b"smith" in path.read_bytes() for path in files)
