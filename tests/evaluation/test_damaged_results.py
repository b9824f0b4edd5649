"""Results with any one value changed: one line that names the file, or a report; never a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluation import evaluate_results
from evaluation.compare import load_entrants, metric_rows
from evaluation.report import gather, ranked, tables
from evaluation.report.cards import cards, settings_table
from evaluation.report.panels import panel_sets
from evaluation.report.pictures import chosen_slices, strip
from evaluation.report.tables import to_json
from evaluation.report.words import limits, verdict
from tests.toy_results import noisy, write_results

OTHERS: tuple[Any, ...] = (None, -1, 1e300, 10**400, "x\n", "\ud800", [], {"a": []}, True, [1, 2])


@pytest.fixture(scope="module")
def results(no_weights: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("r") / "r"
    write_results(folder, noisy(0.1), patients=2, slices=2, channels=("CT",), size=(24, 24), log=True)
    evaluate_results(folder, "auto")
    return folder


def report(folder: Path) -> None:
    """Everything of a report but its drawing, which takes seconds."""
    entrants = load_entrants([folder])
    rows = metric_rows(entrants)
    json.dumps(to_json(entrants, rows, []), allow_nan=False, ensure_ascii=False).encode()
    texts = [*tables.csv_tables(entrants, rows).values(), *tables.latex_tables(entrants, rows).values()]
    parts = [cards(entrants), settings_table(entrants), tables.page_tables(entrants, rows, texts)]
    parts += [tables.long_table(entrants, rows), tables.marks(rows), tables.first_table(entrants, rows)]
    "".join([*texts, *verdict(entrants, rows), *limits(entrants, rows), str(parts)]).encode()
    panel_sets(entrants, rows, gather.gather(entrants))
    ranked.rank(entrants, 0)
    strip(entrants, 0, chosen_slices(entrants[0]))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def with_other(data: Any, path: tuple[Any, ...], other: Any) -> Any:
    if not path:
        return other
    changed = dict(data) if isinstance(data, dict) else list(data)
    changed[path[0]] = with_other(data[path[0]], path[1:], other)
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics.json", "manifest.json", "training_log.jsonl", "metrics.csv"])
def test_one_value_changed(results: Path, name: str) -> None:
    file = results / name
    text = file.read_text()
    if name.endswith(".csv"):
        head, first, *rest = text.splitlines()
        cells = first.split(",")
        versions = [
            "\n".join([head, ",".join([*cells[:i], other, *cells[i + 1 :]]), *rest])
            for i in range(len(cells))
            for other in ("x", "1e999")
        ]
    else:
        lines = text.splitlines() if name.endswith("l") else [text]
        data = json.loads(lines[0])
        every = [path for path in places(data) if path[:1] != ("per_label",) or path[:2] == ("per_label", 0)]
        chosen = [(path, OTHERS[(i + n) % len(OTHERS)]) for i, path in enumerate(every) for n in range(0, 10, 5)]
        versions = [
            "\n".join([json.dumps(with_other(data, *one)), *lines[1:]]) for one in chosen[:: max(1, len(chosen) // 60)]
        ]
    refused = 0
    try:
        report(results)
        for version in versions:
            file.write_text(version)
            message = ""
            try:
                report(results)
            except (ValueError, OSError) as error:
                message = str(error)
            if message:
                refused += 1
                assert str(results) in message
                assert "\n" not in message
    finally:
        file.write_text(text)
    assert 0 < refused <= len(versions)
