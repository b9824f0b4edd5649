"""The whole chain with real tools, tiny: brainextractor, HMRF, GMM slices, nnU-Net's own commands, Dice, report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.programs import find_program
from tests.pipeline.conftest import go, in_process, undone
from tests.pipeline.heads import STUDY, bids

pytestmark = pytest.mark.slow

needs_extra = pytest.mark.skipif(
    find_program(["nnUNetv2_train"]) is None or find_program(["brainextractor"]) is None,
    reason="nnU-Net and brainextractor are not installed: see docs/pipeline.md",
)
CHANGES = {
    "time_limit = 60": "time_limit = 600",
    "train = 8": "train = 30",
    "iterations = 2\n": "iterations = 60\n",
    'plan = "small"': 'plan = "small"\nbatch = 4',
    "features = [4, 8, 16]": "features = [8, 16, 32]",
    'source = "bids"': 'source = "brains"\nstripped = true\n[[input]]\nsource = "heads"',
}


@needs_extra
def test_from_heads_to_dice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two brains to train on, a head to test on. Sixty steps make a Dice of 0.4; an untrained network has below 0.2."""
    bids(tmp_path / "brains", 2, skull=False)
    bids(tmp_path / "heads", 3, first=2)
    text = STUDY + "[strip]\ntools = ['bet']\n[segment]\ntools = ['hmrf']\n[tools.bet]\niterations = 200\n"
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "study.toml"
    path.write_text(text)
    in_process(monkeypatch)
    project, _ = go(path)
    assert undone(project) == {}
    assert project.records["strip/bet/sub-03"].tool["name"] == "bet"
    assert project.records["strip/bet/sub-01"].tool["name"] == "given"
    assert project.records["train/hmrf_bet"].tool["version"].startswith("2.")
    log = (tmp_path / "work" / "train" / "hmrf_bet" / "log.txt").read_text()
    assert re.findall(r"threads: (\d+)", log) == ["1"]  # the study's, not the machine's
    scores = json.loads((tmp_path / "work" / "evaluate" / "scores.json").read_text())
    real = scores["real"]["hmrf_bet"]["dice"]["reference"]
    assert real["mean"]["value"] > 0.3
    assert scores["synthetic"]["hmrf_bet"]["hmrf_bet"]["mean"]["value"] > 0.3
    page = (tmp_path / "work" / "report" / "report.html").read_text()
    assert f"{real['mean']['value']:.3f}" in page
    assert go(path)[1] == []
