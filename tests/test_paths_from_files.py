"""Names and paths that come out of files stay where they belong, and are what every file and terminal can show."""

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
from pipeline.records import Output, Record
from tests.toy import prepared_folder, toy_spec


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
