from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataloaders.io.files import read_json
from pipeline import runner
from pipeline.project import Project
from pipeline.records import RECORD
from pipeline.rules import RULES, Rule
from tests.pipeline.conftest import Fakes, go
from tests.pipeline.heads import affine, head, study
from tests.toy import save_nifti

ROOT = Path(__file__).resolve().parents[2]
Copied = Callable[..., Path]
pytestmark = [pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"), pytest.mark.slow]


def results(path: Path) -> dict[str, str]:
    """Every output's hash but for logs and the report, which tell times."""
    sums = {}
    for file in (path.parent / "work").rglob(RECORD):
        record = read_json(file)
        named = {name: output for name, output in record["outputs"].items() if name not in ("log", "report", "data")}
        sums |= {f"{record['unit']} {name}": output["sha256"] for name, output in named.items()}
    return sums


def stages(done: list[str]) -> list[str]:
    return [*dict.fromkeys(name.split("/")[0] for name in done)]


def change_scan(path: Path, name: str, seed: int, flip: bool = False) -> None:
    save_nifti(path.parent / "bids" / name / "anat" / f"{name}_T1w.nii.gz", head(seed)[0], affine(flip))


def test_what_changed_runs_again_with_all_that_depends_on_its_result(copied: Copied, tools: Fakes) -> None:
    path = copied()
    project, done = go(path)  # in another folder, too
    assert (done, tools.calls, set(project.records)) == ([], [], set(project.units))
    change_scan(path, "sub-02", 77, flip=True)
    _, done = go(path)
    assert [name for name in done if name.split("/")[0] in ("harmonise", "strip", "crop", "segment", "tissue")] == [
        "harmonise/sub-02",
        "strip/bet/sub-02",
        "crop/bet/sub-02",
        "segment/hmrf_bet/sub-02",
        "tissue/hmrf_bet/sub-02",
    ]
    assert "slices/bet/sub-03" not in done
    path.write_text(path.read_text() + "[quality]\nlargest = 0.96\n")
    # The gate is asked again, but lets the same maps through, so nothing after it runs.
    assert stages(go(path)[1]) == ["tissue"]
    work = path.parent / "work"
    label = next((work / "synthesise" / "hmrf_bet" / "sub-01").rglob("*.png"))
    label.unlink()
    assert go(path)[1] == ["synthesise/hmrf_bet/sub-01"]  # what was deleted is made again, and is the same
    assert label.is_file()
    (work / "tissue" / "hmrf_bet" / "sub-01" / RECORD).write_text("{ damaged")
    assert go(path)[1] == ["tissue/hmrf_bet/sub-01"]
    path.write_text(path.read_text().replace("epochs = 1", "epochs = 2"))
    _, done = go(path)
    assert stages(done)[0] == "train"
    assert set(stages(done)) <= {"train", "predict", "evaluate", "report"}


def in_a_fork_that_is_killed(work: Callable[[], Any]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def killed_in(path: Path, stage: str) -> None:
    """Run the study until the work of a stage's unit is done, and its record not yet written."""

    class Deadly(Rule):
        def run(self, context: Any) -> Any:
            super().run(context)
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        RULES[stage] = Deadly(**vars(RULES[stage]))
        go(path)

    before = {file: file.stat().st_mtime_ns for file in (path.parent / "work").rglob(RECORD)}
    in_a_fork_that_is_killed(work)
    # What was done stays done, and is not done again.
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    left = [*(path.parent / "work").rglob(".tmp-*"), *(path.parent / "work").rglob(".part-*")]
    assert any(stage in (part.parts[-2], part.parts[-3], part.name.removeprefix(".tmp-")) for part in left)


def test_resumes_after_a_kill_in_each_stage(tmp_path: Path, tools: Fakes, finished: Path) -> None:
    """One study, killed in every stage in turn; it ends as if nothing had happened, bit for bit."""
    path = study(tmp_path)
    for stage in stages([*Project.load(path).units]):
        killed_in(path, stage)
    assert go(path)[1] == ["report"]
    assert not [*(tmp_path / "work").rglob(".tmp-*"), *(tmp_path / "work").rglob(".part-*")]
    assert results(path) == results(finished / "study.toml")
    reports = [read_json(root / "work" / "report" / "report.json") for root in (tmp_path, finished)]
    assert reports[0]["scores"] == reports[1]["scores"]


def test_resumes_after_a_kill_in_the_stages_of_the_gan(with_gan: Path) -> None:
    for stage in ("real", "gan", "paint"):
        killed_in(with_gan, stage)
    project, done = go(with_gan, only=("paint/*", "gan/*", "real/*"))
    assert stages(done) == ["paint"]
    assert {r.state for n, r in project.records.items() if n.split("/")[0] in ("real", "gan", "paint")} == {"done"}


def test_training_goes_on_from_its_checkpoint(tmp_path: Path, copied: Copied, tools: Fakes) -> None:
    """The fake hangs half-way like a long training; killed and run again, it is called with --c."""
    path = copied("train", "predict", "evaluate", "report")
    tools.mode("nnUNetv2_train", "hang")
    command = [sys.executable, str(ROOT / "scripts" / "pipeline.py"), "run", str(path), "--jobs", "2"]
    with open(tmp_path / "out.txt", "w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
    checkpoint = tmp_path / "work" / "train" / ".part-hmrf_bet"
    deadline = time.monotonic() + 100
    while not list(checkpoint.rglob("checkpoint_latest.pth")):
        assert process.poll() is None, (tmp_path / "out.txt").read_text()
        assert time.monotonic() < deadline, (tmp_path / "out.txt").read_text()
        time.sleep(0.1)
    with pytest.raises(ValueError, match="is in use by process"):
        go(path)
    process.kill()  # the run alone: what it started must notice
    process.wait()
    fake = Path("/proc") / Path(f"{tools.log}.pid").read_text()
    for _ in range(100):  # nothing is left running: the tool died with the process that waited for it
        if not fake.exists() or " Z " in (fake / "stat").read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("the tool of a killed run is still running")
    tools.mode("nnUNetv2_train", "good")
    assert stages(go(path)[1]) == ["train", "predict", "evaluate", "report"]
    assert [call for call in tools.calls if call[0] == "nnUNetv2_train"][-1][-1] == "--c"


def test_failures_are_data(tmp_path: Path, tools: Fakes) -> None:
    """A tool that fails on one scan costs that scan; it is in the report with its reason, and the rest goes on."""
    path = study(tmp_path, '[segment]\ntools = ["hmrf", "fast"]\n', patients=4)
    save_nifti(tmp_path / "bids" / "sub-02" / "anat" / "sub-02_T1w.nii.gz", head(0)[0] * 0, affine())
    tools.mode("fast", "collapse")  # one class, as FAST did to two subjects of the original study
    project, _ = go(path)
    expected = {
        "harmonise/sub-02": "excluded",
        "tissue/hmrf_bet/sub-02": "blocked",
        "segment/fast_bet/sub-01": "done",
        "tissue/fast_bet/sub-01": "excluded",
        "dataset/fast_bet": "excluded",
        "train/fast_bet": "blocked",
        **dict.fromkeys(("train/hmrf_bet", "evaluate", "report"), "done"),
    }
    assert {name: project.records[name].state for name in expected} == expected
    assert project.records["tissue/fast_bet/sub-01"].reason == "no GM and no WM"
    assert project.records["train/fast_bet"].reason.startswith("plan/fast_bet blocked: no training case is usable")
    # The number of images is the study's all the same: two scans share what three would have had.
    assert project.records["dataset/hmrf_bet"].facts["images"] == 8
    page = (tmp_path / "work" / "report" / "report.html").read_text()
    assert "no GM and no WM" in page
    tools.mode("fast", "fail")
    shutil.rmtree(tmp_path / "work" / "segment" / "fast_bet")
    go(path)
    page = (tmp_path / "work" / "report" / "report.html").read_text()
    assert ">segment/fast_bet/sub-01<" in page  # the tool that failed is named, not only what waits for it
    assert "no space left in the scanner" in page
    assert "has one intensity everywhere" in page


def counts(path: Path, *only: str) -> Any:
    return runner.run(Project.load(path), only=only, say=lambda _: None)


def test_what_failed_or_is_missing_is_tried_again_and_what_it_blocks_is_kept(tmp_path: Path, tools: Fakes) -> None:
    """Failed ones when asked, missing ones always."""
    path = study(tmp_path, patients=2)
    only = ("harmonise/*", "strip/*", "crop/*")
    strips = ["strip/bet/sub-01", "strip/bet/sub-02"]
    go(path, only=only)
    good = path.read_text()
    path.write_text(good + "[tools.bet]\nfraction = 0.5\n")
    tools.mode("brainextractor", "fail")
    project, _ = go(path, only=only)
    assert project.records[strips[0]].state == "failed"
    assert "no space left in the scanner" in project.records[strips[0]].reason
    assert project.records["crop/bet/sub-01"].state == "blocked"
    assert (tmp_path / "work" / strips[0] / "log.txt").is_file()
    tools.mode("brainextractor", "good")
    assert go(path, only=only)[1] == []
    assert go(path, only=only, retry=True)[1][:2] == strips
    program = tmp_path / "bin" / "brainextractor"
    program.rename(program.with_name("elsewhere"))
    path.write_text(good)
    project, _ = go(path, only=only)
    assert project.records[strips[0]].state == "missing"
    assert "pip install numba trimesh" in project.records[strips[0]].reason
    program.with_name("elsewhere").rename(program)
    assert go(path, only=only)[1] == [*strips, "crop/bet/sub-01", "crop/bet/sub-02"]
    assert counts(path, "crop/*") == {"done": 6}
    shutil.rmtree(tmp_path / "work" / "strip")
    assert counts(path, "crop/*")["blocked"] == 0  # as it was; only what is chosen and not there counts
    shutil.rmtree(tmp_path / "work" / "crop")
    assert counts(path, "crop/*") == {"done": 2, "blocked": 2}


@pytest.mark.usefixtures("tools")
def test_jobs_and_own_processes_change_nothing(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit that is killed alone, as by the system when memory is short, is a failure, and the run goes on."""
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{finished / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls.txt"))
    path = study(tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    real = subprocess.Popen

    def deadly(command: list[str], **options: Any) -> subprocess.Popen:
        if command[-1] == "harmonise/sub-02":
            options["env"] = {**options["env"], "PYTHONPATH": str(tmp_path / "site")}
        return real(command, **options)

    monkeypatch.setattr(runner.subprocess, "Popen", deadly)
    project, _ = go(path, jobs=2, only=("harmonise/*",))
    states = {name: project.records[name].state for name in project.units if name.startswith("harmonise/")}
    assert states == {"harmonise/sub-01": "done", "harmonise/sub-02": "failed", "harmonise/sub-03": "done"}
    assert project.records["harmonise/sub-02"].reason == "its process was killed by signal 9, perhaps for memory"
    monkeypatch.setattr(runner.subprocess, "Popen", real)
    go(path, jobs=2, retry=True, only=("harmonise/*", "strip/*"))
    sums, whole = results(path), results(finished / "study.toml")
    assert len(sums) >= 6
    assert sums == {name: value for name, value in whole.items() if name in sums}


def test_a_defect_of_ours_costs_one_unit_and_leaves_its_traceback(
    tmp_path: Path, tools: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("pipeline.rules.images.geometry.bounding_box", broken)
    project, _ = go(study(tmp_path, patients=2), only=("harmonise/*", "strip/*", "crop/*"))
    record = project.records["crop/bet/sub-01"]
    assert (record.state, record.reason) == ("failed", "KeyError: 'oops'")
    assert "bounding_box" in (tmp_path / "work" / "crop" / "bet" / "sub-01" / "traceback.txt").read_text()


def test_folders_that_no_run_made_stay(tmp_path: Path, tools: Fakes) -> None:
    """Even with the study's own folder as work: only what carries a run's marker is removed or replaced."""
    path = study(tmp_path)
    path.write_text('work = "."\n' + path.read_text())
    go(path, only=("harmonise/*",))
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "paper.md").write_text("mine")
    with pytest.raises(ValueError, match="report: holds files that no run of this study wrote"):
        go(path, only=("harmonise/*",))
    assert (folder / "paper.md").read_text() == "mine"
    shutil.rmtree(folder)
    folder.write_text("mine")
    with pytest.raises(ValueError, match="report: is a file where the study wants a folder"):
        go(path, only=("harmonise/*",))
