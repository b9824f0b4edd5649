"""The table of tissue classifiers and its picture; the classifiers themselves are tested where they are."""

from __future__ import annotations

from benchmarks.tissue_table import METHODS, PARTS, as_markdown


def test_rows_are_methods_and_groups_of_people() -> None:
    columns = ("grey", "white", "csf", *PARTS, "seconds")
    values = {f"p{i}": {method: dict.fromkeys(columns, i / 10) for method in METHODS} for i in range(1, 4)}
    text = as_markdown(values, {"sub-1": {"atlas": {"white": 0.75}}}, unseen=["p3"])
    assert "| `atlas` | 3 all | 0.200 |" in text
    assert "| `hmrf` | 2 others | 0.150 |" in text
    assert "| `atlas` | 1 unseen | 0.300 |" in text
    assert "lesion voxels of sub-1 called white matter: atlas 0.75" in text
