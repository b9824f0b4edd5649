"""What users keep is not replaced; names and paths out of files stay where they belong and can be shown everywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataloaders.io.manifest import Manifest
from dataloaders.io.png import write_png
from dataloaders.io.spec import Channel, DataSpec, Label
from dataloaders.plain_folder import load_manifest
from dataloaders.prepare.prepare import PrepareOptions, prepare
from evaluation.report.page import refuse_foreign
from pipeline.records import Output, Record
from test import refuse_other_results
from tests.toy import phantom, prepared_folder, save_nifti, toy_spec
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


def changed(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((root / "manifest.json").read_text())
    change(data)
    (root / "manifest.json").write_text(json.dumps(data))


@pytest.mark.parametrize("name", ["../../../x", "a/../../x", "a/b", ".hidden", "a\nb", "", "x" * 101])
def test_a_channel_name_is_one_part_of_a_path(tmp_path: Path, name: str) -> None:
    """It becomes part of the names of volumes: `volumes/<case>_<channel>.nii.gz`."""
    root = prepared_folder(tmp_path / "data", patients=1, slices=1)
    changed(root, lambda data: data["spec"]["channels"][0].update(name=name))
    with pytest.raises(ValueError, match=r"manifest.json: damaged manifest: .* channel name .* is not allowed"):
        Manifest.load(root)
    stored = toy_spec().to_dict()  # as in a checkpoint
    stored["channels"][0]["name"] = name
    with pytest.raises(ValueError, match="channel name"):
        DataSpec.from_dict(stored)


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[31mb", "a\u2028b", "a\ud800", "a\x00"])
def test_texts_are_one_line(tmp_path: Path, text: str) -> None:
    for make in (lambda: Label(1, text), lambda: Channel("CT", text)):
        with pytest.raises(ValueError, match="is not allowed: must be one line without control characters"):
            make()
    root = prepared_folder(tmp_path / "data", patients=1, slices=1)
    changed(root, lambda data: data["cases"][0].update(patient=text))
    with pytest.raises(ValueError, match=r"case 'sub-00'\.patient: found|Invalid JSON"):
        Manifest.load(root)
    assert Label(1, "weiße Substanz (links) \u00a0").name.startswith("weiße")


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_link_out_of_the_data_is_refused(tmp_path: Path, place: str) -> None:
    """It would be read, and copied into results that are given away."""
    root = prepared_folder(tmp_path / "data", patients=3, slices=1)
    images = root / "test/images"
    secret = tmp_path / "secret"
    images.rename(secret)
    if place == "folder":
        images.symlink_to(secret)
    else:
        images.mkdir()
        for file in secret.iterdir():
            (images / file.name).symlink_to(file)
    with pytest.raises(ValueError, match=r"test/images.* is a link that leaves the folder"):
        load_manifest(root)


def test_links_that_people_make_are_followed(tmp_path: Path) -> None:
    """The whole folder, links within it, git-annex, and plain folders, whose files no manifest has named."""
    root = prepared_folder(tmp_path / "data", patients=1, slices=2)
    (tmp_path / "link").symlink_to(root)
    first, second, *_ = sorted(root.rglob("*.png"))
    for path, folder in ((first, tmp_path / ".git/annex/objects/a/b"), (second, root / "elsewhere")):
        folder.mkdir(parents=True)
        path.rename(folder / path.name)
        path.symlink_to(os.path.relpath(folder / path.name, path.parent))
    assert Manifest.load(tmp_path / "link").cases
    plain = tmp_path / "plain/train"
    label = tmp_path / "label.png"
    write_png(label, np.eye(32, dtype=np.uint8))
    for kind in ("images", "labels"):
        (plain / kind).mkdir(parents=True)
        (plain / kind / "a.png").symlink_to(label)
    assert load_manifest(plain.parent) == load_manifest(plain.parent)


@pytest.mark.parametrize("file", ["/etc/passwd", "../../other", 3, ""])
def test_a_record_of_a_study_names_files_of_its_own_folder(tmp_path: Path, file: Any) -> None:
    """One that does not is as good as none: the unit runs again."""
    output = Output("map.nii.gz", "0" * 64, 1)
    record = Record("segment/a", "key", "done", outputs={"map": output})
    record.save(tmp_path)
    assert Record.load(tmp_path) == record
    Record("segment/a", "key", "done", outputs={"map": replace(output, file=file)}).save(tmp_path)
    assert Record.load(tmp_path) is None
