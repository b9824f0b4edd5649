"""What names may do in the files that are given away: nothing. And nothing in them tells whose machine made them."""

from __future__ import annotations

import csv
import io
import socket
from pathlib import Path

import pytest

import config as options
from config import parse_train
from dataloaders.io.files import csv_text, write_json
from dataloaders.io.runlog import RunLog
from scripts.export_model import shareable


def test_a_spreadsheet_runs_no_cell() -> None:
    cells = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "plain", "a=b"]
    numbers = ["-1.5", "+2", "-1e-3", "-inf", -2.5, None]
    text = csv_text(["=head", "b"], [[cell, 1] for cell in (*cells, *numbers)])
    found = [row[0] for row in csv.reader(io.StringIO(text))]
    assert found[0] == "'=head"
    assert found[1:8] == ["'=1+1", "'+cmd|' /C calc'!A0", "'-2+3", "'@SUM(A1)", "'\t=1", "plain", "a=b"]
    assert found[8:] == ["-1.5", "+2", "-1e-3", "-inf", "-2.5", ""]


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
