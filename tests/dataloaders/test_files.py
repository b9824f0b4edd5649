"""Files that are written: text, tables, lists."""

from __future__ import annotations

from pathlib import Path

from dataloaders.io.files import listed, write_text


def test_names_that_are_no_text_are_written_as_escapes(tmp_path: Path) -> None:
    write_text(tmp_path / "a.csv", "scan\udcff.nii.gz")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "scan\\udcff.nii.gz"


def test_long_lists_are_cut() -> None:
    assert listed(["a", "b"]) == ["a", "b"]
    assert listed([str(i) for i in range(23)]) == [*map(str, range(20)), "and 3 more"]
