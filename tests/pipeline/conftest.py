"""Fake tools on PATH, and a finished toy study."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import runner
from pipeline.execute import execute
from pipeline.project import Project
from pipeline.records import Unit
from tests.pipeline import fakes
from tests.pipeline.heads import study


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
        self.monkeypatch.setenv(fakes.variable(tool), mode)


def in_process(patch: pytest.MonkeyPatch) -> None:
    """Units run in this process, which is faster."""

    def start(project: Project, unit: Unit) -> Any:
        execute(project, unit)
        return SimpleNamespace(poll=lambda: 0, returncode=0)

    patch.setattr("pipeline.runner.start", start)


def go(path: Path, **options: Any) -> tuple[Project, list[str]]:
    """Run a study; the project, and the units that were really run."""
    lines: list[str] = []
    project = Project.load(path)
    runner.run(project, say=lines.append, **options)
    return project, [line.partition(":")[0] for line in lines if not line.endswith("…")]


def undone(project: Project) -> dict[str, str]:
    """What was not done, and why."""
    return {name: record.reason for name, record in project.records.items() if record.state != "done"}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which nothing is installed: neither on PATH nor beside this Python."""
    for name in ("FREESURFER_HOME", "FSLDIR", "FASTSURFER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr("pipeline.programs.BESIDE", tmp_path / "nowhere")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bare: None) -> Fakes:
    """All fake tools, and nothing else; units run in this process."""
    folder = fakes.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    in_process(monkeypatch)
    return Fakes(tmp_path, monkeypatch)


def finish(root: Path, extra: str = "") -> Path:
    """A toy study that is run from beginning to end; its file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{fakes.install(root / 'bin')}:/usr/bin:/bin")
        patch.setenv("FAKE_CALLS", str(root / "calls.txt"))
        patch.setattr("pipeline.programs.BESIDE", root)
        in_process(patch)
        project, done = go(study(root, extra))
        assert sorted(done) == sorted(project.units)
        assert undone(project) == {}
    return project.file


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished toy study. Not to be changed."""
    return finish(tmp_path_factory.mktemp("finished")).parent


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Callable[..., Path]:
    """The study file of a copy, without the results of the named stages."""

    def copy(*without: str) -> Path:
        shutil.copytree(finished / "bids", tmp_path / "bids")
        shutil.copytree(finished / "work", tmp_path / "work")
        for stage in without:
            shutil.rmtree(tmp_path / "work" / stage)
        return Path(shutil.copy(finished / "study.toml", tmp_path))

    return copy


@pytest.fixture
def with_gan(copied: Callable[..., Path], tools: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study file of a copy that is to paint with a GAN too, which a fake one does."""
    monkeypatch.setattr("pipeline.rules.gan.ROOT", fakes.install(tmp_path / "root", "train.py", "test.py"))
    path = copied()
    path.write_text(path.read_text().replace("train = 8", 'train = 8\nmethods = ["gmm", "gan"]'))
    return path
