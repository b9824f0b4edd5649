"""The page of a study from made-up scores: every table has its numbers, and names do nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline import report
from pipeline.report import COLUMNS

BAD = "hmrf_<b>'\"&"


def _dice(mean: float | None) -> dict[str, Any]:
    values = {column: {"value": mean, "ci95": [0.1, 0.9]} for column in COLUMNS}
    return values | {"cases": {"sub-02": dict.fromkeys(COLUMNS, mean)}}


def test_every_table_is_there_and_escaped() -> None:
    real = {
        BAD: {"dice": {"reference": _dice(0.9), BAD: {"mean": {"value": 0.95}}}, "hd95": {"mean": {"value": 3.25}}},
        "fast_bet": {"dice": {}, "hd95": None},  # no reference
    }
    pair = {"a": "hmrf_bet", "b": BAD, "cases": 2, "GM": 0.81, "WM": 0.82, "CSF": None, "mean": 0.815}
    masks = [{"a": "bet", "b": "hd-bet", "dice": 0.97, "cases": 2}]
    gate = {
        "state": "excluded",
        "reason": "0.3 l <small>",
        "litres": 0.3,
        "share": {"GM": 0.4, "WM": 0.35, "CSF": 0.25},
    }
    data = {
        "study": "<script>study",
        "scores": {"real": real, "synthetic": {}, "agreement": [pair], "masks": masks},
        "cases": [
            {"id": "sub-01", "split": "train", "maps": {BAD: gate | {"unknown_ml": {"77": 1.2}}}},
            {"id": "sub-02", "split": "test", "maps": {}},
        ],
        "left_out": [{"unit": "segment/x", "state": "failed", "reason": "no <space> left"}],
        "blocked": {"segment/x": ["a", "b"]},
        "tools": [{"name": "bet", "version": "1"}],
        "times": {"strip": {"units": 2, "minutes": 1.5, "cpu_minutes": 2.5}},
    }
    study = SimpleNamespace(
        strip=SimpleNamespace(tools=["bet", "hd-bet"]),
        evaluate=SimpleNamespace(reference="labels", tissues=("GM", "WM")),
        work=Path("x"),
    )
    cases = {"sub-02": SimpleNamespace(id="sub-02", split="test", patient="2", given_brain=None)}
    context: Any = SimpleNamespace(study=study, records={}, cases=cases, done=lambda names: [], of=lambda *names: {})
    page = report.page(context, data)
    for harmful in ("<script", "<b>", "<space>", "0.3 l <small>"):
        assert harmful not in page
    for part in ("0.900", "[0.100, 0.900]", "3.2", "0.950", "0.815", "GM 0.810, WM 0.820", "0.970", "77 (1.20 ml)"):
        assert part in page, part
    for part in (
        "1.5",
        "no &lt;space&gt; left",
        "Nothing was measured.",
        "hmrf_&lt;b&gt;&#39;&#34;&amp;",
        "1 were tested",
    ):
        assert part in page, part
    assert 'class="best"' in page  # a network against its own labels
