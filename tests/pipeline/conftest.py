"""Fake tools on PATH."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline import fakes


class Fakes:
    """`calls`: the command lines so far, without versions; `mode` makes a tool misbehave."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log, self.monkeypatch = root / "calls.txt", monkeypatch
        monkeypatch.setenv("FAKE_CALLS", str(self.log))

    @property
    def calls(self) -> list[list[str]]:
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        return [call for line in lines if "--version" not in (call := json.loads(line))]

    def mode(self, tool: str, mode: str) -> None:
        self.monkeypatch.setenv(f"FAKE_{tool.replace('-', '_').replace('.sh', '').upper()}", mode)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which nothing is installed: neither on PATH nor beside this Python."""
    for name in ("FREESURFER_HOME", "FSLDIR", "FASTSURFER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr("pipeline.commands.BESIDE", tmp_path / "nowhere")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bare: None) -> Fakes:
    """All fake tools, and nothing else."""
    folder = fakes.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return Fakes(tmp_path, monkeypatch)
