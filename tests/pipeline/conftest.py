"""Fake tools on PATH."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.runner import Project, RunOptions, run
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


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a toy study that was run from beginning to end. Not to be changed."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{fakes.install(root / 'bin')}:/usr/bin:/bin")
        patch.setenv("FAKE_CALLS", str(root / "calls.txt"))
        patch.setattr("pipeline.commands.BESIDE", root)
        done: list[str] = []
        project = Project.load(study(root))
        run(project, RunOptions(own_process=False), done.append)
        assert len(done) == len(project.units)
        assert {record.state for record in project.records.values()} == {"done"}
    return root


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
    monkeypatch.setattr("pipeline.stages.gan.ROOT", fakes.install_gan(tmp_path / "root"))
    path = copied()
    path.write_text(path.read_text().replace("train = 8", 'train = 8\nmethods = ["gmm", "gan"]'))
    return path
