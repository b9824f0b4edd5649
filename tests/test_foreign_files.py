"""What a user keeps beside our files is never replaced or removed, and damaged records of ours are told in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataloaders.io.manifest import Manifest
from dataloaders.prepare.prepare import PrepareOptions, prepare
from evaluation.report.page import refuse_foreign
from test import refuse_other_results
from tests.toy import phantom, prepared_folder, save_nifti
from tests.toy_results import noisy, write_results


def test_notes_in_a_results_folder_are_kept(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.1), patients=1, slices=1, channels=("CT",), size=(16, 16))
    (folder / "metrics.json").write_text("{}")
    refuse_other_results(folder, {}, overwrite=True)
    (folder / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"did not write, move it: notes\.txt"):
            refuse_other_results(folder, {}, overwrite)


def test_a_report_replaces_reports_alone(tmp_path: Path) -> None:
    refuse_foreign(tmp_path)
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(ValueError, match=r"report\.html: was not written by this command"):
        refuse_foreign(tmp_path)
    (tmp_path / "compare.json").write_text('{"schema": "medsis-compare/1"}')
    refuse_foreign(tmp_path)
    (tmp_path / "compare.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"compare\.json: was not written by this command"):
        refuse_foreign(tmp_path)


def test_a_failed_preparation_leaves_what_it_did_not_write(tmp_path: Path) -> None:
    label, image = phantom(0, (24, 24, 12))
    save_nifti(tmp_path / "images" / "a.nii.gz", image)
    save_nifti(tmp_path / "labels" / "a.nii.gz", label.astype(np.uint8))
    out = tmp_path / "out"
    o: dict[str, Any] = {
        "format": "pairs",
        "images": str(tmp_path / "images"),
        "labels": str(tmp_path / "labels"),
        "out": out,
    }
    empty = PrepareOptions(**o, min_foreground=1.0, split=(1, 0, 0), workers=1)
    with pytest.raises(ValueError, match="no slice has"):
        prepare(empty)
    assert not out.exists()
    (out / ".work").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        prepare(empty)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_slice_number_that_no_table_holds(tmp_path: Path) -> None:
    root = prepared_folder(tmp_path / "data", patients=3, slices=1, size=16)
    data = json.loads((root / "manifest.json").read_text())
    data["cases"][0]["slices"][0]["index"] = 10**400
    (root / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"manifest\.json: case .*slices\[0\]\.index: found .* must be below"):
        Manifest.load(root)
