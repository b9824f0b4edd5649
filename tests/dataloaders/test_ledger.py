"""Claim, record, resume: what every long command relies on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataloaders.io import ledger as module
from dataloaders.io.ledger import Ledger
from dataloaders.io.locks import lock_folder
from tests.launch import ROOT

SETTINGS = {"seed": 0, "gmm": {"bias": 1.0}}


def claim(folder: Path, settings: dict[str, Any] | None = None, **how: Any) -> Ledger:
    return Ledger.claim(folder, SETTINGS if settings is None else settings, **{"schema": "s/1", **how})


def make(ledger: Ledger, key: str, sources: Any = "map", *outputs: str) -> None:
    """One piece, made if it is not there."""
    files = outputs or (f"{key}.txt",)
    if ledger.done(key, sources) is None:
        ledger.start(key)
        for file in files:
            (ledger.folder / file).write_text(str(sources))
        ledger.record(key, sources, outputs=files)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file()}


def test_a_whole_piece_is_kept_and_one_without_its_files_or_record_is_not(tmp_path: Path) -> None:
    ledger = claim(tmp_path / "out", about={"name": "x"})
    assert json.loads((tmp_path / "out/settings.json").read_text()) == {
        "schema": "s/1",
        "settings": SETTINGS,
        "name": "x",
    }
    for key in ("a", "sub/b"):
        (tmp_path / "out/sub").mkdir(exist_ok=True)
        make(ledger, key, {"sha256": "1"})
    again = claim(tmp_path / "out")
    assert again.keys() == ["a", "sub/b"]
    record = again.done("a", {"sha256": "1"})
    assert record["outputs"] == ["a.txt"]
    assert again.done("a", {"sha256": "1"}, ["more.txt"]) is None  # asked for by now
    again.path("sub/b").write_text('{"schema": "s/1", "sour')
    assert again.read("sub/b") is None
    (tmp_path / "out/a.txt").unlink()
    assert again.done("a", {"sha256": "1"}) is None
    assert again.done("c") is None


@pytest.mark.parametrize("outputs", [["../mine.txt"], ["/mine.txt"], [5], 5])
def test_a_record_that_names_other_files_is_none(outputs: Any, tmp_path: Path) -> None:
    ledger = claim(tmp_path / "out")
    (tmp_path / "mine.txt").touch()
    ledger.record("a", "map", outputs=outputs)
    assert ledger.read("a") is None
    ledger.forget("a")
    assert names(tmp_path) == {"mine.txt", "out/settings.json"}


def test_other_settings_are_refused_or_replace_what_was_made(tmp_path: Path) -> None:
    claim(tmp_path, {"seed": 5})  # a start that failed before it made anything binds nobody
    make(claim(tmp_path), "a")
    other = {"seed": 1, "gmm": {"bias": 2.0}}
    with pytest.raises(
        ValueError, match=r"made with other settings: --gmm\.bias: was 1\.0, now 2\.0; --seed: was 0, now 1"
    ):
        claim(tmp_path, other)
    assert claim(tmp_path).done("a", "map")
    ledger = claim(tmp_path, other, overwrite=True)
    assert names(tmp_path) == {"settings.json"}
    make(ledger, "a")
    assert ledger.done("a", "map")
    assert json.loads((tmp_path / "settings.json").read_text())["settings"] == other


def test_a_record_of_a_shard_with_other_settings_counts_as_none(tmp_path: Path) -> None:
    old = claim(tmp_path)
    new = claim(tmp_path, {"seed": 1}, overwrite=True)
    make(old, "a")  # it was under way
    assert new.done("a", "map") is None


def test_other_sources_are_refused_or_made_again(tmp_path: Path) -> None:
    make(claim(tmp_path), "a", "first")
    with pytest.raises(ValueError, match=r"a\.txt: was made with other sources; give --overwrite"):
        claim(tmp_path).done("a", "second")
    make(claim(tmp_path), "b", {"map": {"file": "x", "sha256": "1"}})
    with pytest.raises(ValueError, match=r"b\.txt: was made with other map\.sha256; give"):
        claim(tmp_path).done("b", {"map": {"file": "x", "sha256": "2"}})
    for how in ({"overwrite": True}, {"renew": True}):
        assert claim(tmp_path, **how).done("a", "second") is None


@pytest.mark.parametrize(
    "content", ["{}", "[]", "5", '{"settings": 5, "schema": "s/1"}', '{"settings": {"editor": 1}}']
)
def test_a_settings_file_of_another_program_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=r"settings\.json: was not written by this command"):
        claim(tmp_path, overwrite=True)
    assert (tmp_path / "settings.json").read_text() == content


def test_a_foreign_folder_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(ValueError, match=f"--output {tmp_path} is not empty and was not written by this command"):
        claim(tmp_path, overwrite=True, flag="--output")
    assert os.listdir(tmp_path) == ["x"]
    with pytest.raises(ValueError, match="is a file; choose a folder"):
        claim(tmp_path / "x")


def test_two_processes_claim_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_WAIT", 0.1)
    first = claim(tmp_path / "out")
    with first.held(), pytest.raises(ValueError, match="in use by process"):
        claim(tmp_path / "out")
    with claim(tmp_path / "out", alone=True):
        for how in ({}, {"alone": True}):
            with pytest.raises(ValueError, match="in use by process"):
                claim(tmp_path / "out", **how)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/x").touch()
    with pytest.raises(ValueError, match="not empty"):
        claim(tmp_path / "foreign", alone=True)
    assert os.listdir(tmp_path / "foreign") == ["x"]
    lock_folder(tmp_path / "out").close()


KILLED = """
import os, signal, sys
from pathlib import Path
from dataloaders.io.ledger import Ledger
ledger = Ledger.claim(Path(sys.argv[1]), {"seed": 0})
for key in ("a", "b"):
    ledger.start(key)
    (ledger.folder / f"{key}.txt").write_text(key)
    if key == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    ledger.record(key, key, outputs=[f"{key}.txt"])
"""


@pytest.mark.slow
def test_a_kill_costs_the_piece_under_way(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(Ledger.claim(out, {"seed": 0}), "b", "older")  # whose file is about to be replaced: its record goes first
    done = subprocess.run([sys.executable, "-c", KILLED, out], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    ledger = Ledger.claim(out, {"seed": 0})
    assert ledger.keys() == ["a"]
    assert ledger.done("a", "a")
    assert ledger.done("b", "older") is None
