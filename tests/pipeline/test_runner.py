from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dataloaders.io.files import read_json
from dataloaders.io.nifti import read_volume
from pipeline import runner, stages
from pipeline.commands import ToolFailed
from pipeline.records import RECORD, Record, load_record
from pipeline.runner import Project, RunOptions, run
from pipeline.stages import STAGES, Stage
from tests.pipeline.conftest import Fakes
from tests.pipeline.heads import affine, head, study
from tests.toy import save_nifti

ROOT = Path(__file__).resolve().parents[2]
HERE = RunOptions(own_process=False)
Copied = Callable[..., Path]


def go(path: Path, o: RunOptions = HERE) -> tuple[Project, list[str]]:
    """Run a study; the project and the units that were really run."""
    lines: list[str] = []
    project = Project.load(path)
    run(project, o, lines.append)
    return project, [line.partition(":")[0] for line in lines if not line.endswith("…")]


def results(path: Path, scores: bool = True) -> dict[str, object]:
    """The report's numbers, and every output's hash but for logs."""
    work = path.parent / "work"
    records = {str(f.parent.relative_to(work)): read_json(f) for f in work.rglob(RECORD)}
    sums = {
        f"{unit} {name}": item["sha256"]
        for unit, record in records.items()
        for name, item in record["outputs"].items()
        if name not in ("log", "report", "data")
    }
    return {"sums": sums, "scores": read_json(work / "report" / "report.json")["scores"] if scores else None}


@pytest.fixture(scope="session")
def whole(finished: Path) -> dict[str, object]:
    """What an undisturbed run of the toy study leaves."""
    return results(finished / "study.toml")


def test_a_second_run_does_nothing(copied: Copied, tools: Fakes) -> None:
    """In another folder, too."""
    path = copied()
    project, again = go(path)
    assert again == []
    assert tools.calls == []
    assert set(project.records) == set(project.units)


def test_what_changed_runs_again_with_all_that_depends_on_its_result(copied: Copied, tools: Fakes) -> None:
    path = copied()
    image, _ = head(77)
    save_nifti(path.parent / "bids" / "sub-02" / "anat" / "sub-02_T1w.nii.gz", image, affine(flip=True))
    _, done = go(path)
    assert {name for name in done if name.split("/")[0] in ("harmonise", "strip", "crop", "segment", "tissue")} == {
        "harmonise/sub-02",
        "strip/bet/sub-02",
        "crop/bet/sub-02",
        "segment/hmrf_bet/sub-02",
        "tissue/hmrf_bet/sub-02",
    }
    assert "slices/bet/sub-03" not in done
    path.write_text(path.read_text() + "[quality]\nlargest = 0.96\n")
    _, done = go(path)  # the gate is asked again, but lets the same maps through, so nothing after it runs
    assert {name.split("/")[0] for name in done} == {"tissue"}
    work = path.parent / "work"
    label = next((work / "synthesise" / "hmrf_bet" / "sub-01").rglob("*.png"))
    label.unlink()
    _, done = go(path)  # a result that was deleted is made again, and is the same
    assert done == ["synthesise/hmrf_bet/sub-01"]
    assert label.is_file()
    (work / "tissue" / "hmrf_bet" / "sub-01" / RECORD).write_text("{ damaged")
    _, done = go(path)
    assert done == ["tissue/hmrf_bet/sub-01"]
    path.write_text(path.read_text().replace("epochs = 1", "epochs = 2"))
    _, done = go(path)
    assert {name.split("/")[0] for name in done} <= {"train", "predict", "evaluate", "report"}
    assert "train/hmrf_bet" in done


def times(work: Path) -> dict[Path, int]:
    """When each unit was finished."""
    return {file: file.stat().st_mtime_ns for file in work.rglob(RECORD) if not file.parent.name.endswith(".part")}


def _killed_in(path: Path, stage: str) -> None:
    """Run the study in a fork that is killed when the work of a stage's unit is done, and its record not yet written."""
    pid = os.fork()
    if pid == 0:
        try:
            inner = STAGES[stage].run

            class Deadly(Stage):
                @property
                def run(self):  # type: ignore[no-untyped-def,override]
                    def work(context):  # type: ignore[no-untyped-def]
                        inner(context)
                        os.kill(os.getpid(), signal.SIGKILL)

                    return work

            stages.STAGES[stage] = Deadly(STAGES[stage].function, STAGES[stage].version, STAGES[stage].resumable)
            run(Project.load(path), HERE, lambda line: None)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), stage
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_resumes_after_a_kill_in_each_stage(tmp_path: Path, tools: Fakes, whole: dict[str, object]) -> None:
    """One study, killed in every stage in turn; it ends as if nothing had happened, bit for bit."""
    path = study(tmp_path)
    tried = [unit.stage for unit in Project.load(path).units.values()]
    for stage in dict.fromkeys(tried):
        before = times(tmp_path / "work")
        _killed_in(path, stage)
        after = times(tmp_path / "work")
        assert before.items() <= after.items()  # what was done stays done, and is not done again
        assert list((tmp_path / "work").rglob("*.part")), stage
    _, done = go(path)
    assert done == ["report"]
    assert not list((tmp_path / "work").rglob("*.part"))
    found = results(path)
    assert found["sums"] == whole["sums"]
    assert found["scores"] == whole["scores"]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_resumes_after_a_kill_in_the_stages_of_the_gan(tmp_path: Path, with_gan: Path) -> None:
    for stage in ("real", "gan", "paint"):
        before = times(tmp_path / "work")
        _killed_in(with_gan, stage)
        assert before.items() <= times(tmp_path / "work").items()
        assert [part.relative_to(tmp_path / "work").parts[0] for part in (tmp_path / "work").rglob("*.part")] == [stage]
    project, done = go(with_gan, RunOptions(own_process=False, only=("paint/*", "gan/*", "real/*")))
    assert {name.split("/")[0] for name in done} == {"paint"}
    assert {r.state for n, r in project.records.items() if n.split("/")[0] in ("real", "gan", "paint")} == {"done"}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("when", [1, 2])
def test_a_kill_while_folders_are_swapped(tmp_path: Path, tools: Fakes, when: int) -> None:
    path = study(tmp_path)
    only = RunOptions(own_process=False, only=("harmonise/*",))
    go(path, only)
    image, _ = head(55)
    save_nifti(tmp_path / "bids" / "sub-01" / "anat" / "sub-01_T1w.nii.gz", image, affine())
    pid = os.fork()
    if pid == 0:
        try:
            real, count = os.replace, 0

            def deadly(a: Path, b: Path) -> None:
                nonlocal count
                if Path(a).is_dir():
                    count += 1
                    if count == when:
                        os.kill(os.getpid(), signal.SIGKILL)
                real(a, b)

            runner.os.replace = deadly  # type: ignore[attr-defined]
            run(Project.load(path), only, lambda line: None)
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    _, done = go(path, only)
    assert done == ["harmonise/sub-01"]
    assert not [*(tmp_path / "work").rglob("*.old"), *(tmp_path / "work").rglob("*.part")]
    found = read_volume(tmp_path / "work" / "harmonise" / "sub-01" / "image.nii.gz")
    assert abs(found.data.mean() - image.mean()) < 0.01 * image.mean()


def test_training_goes_on_from_its_checkpoint(tmp_path: Path, copied: Copied, tools: Fakes) -> None:
    """The fake hangs half-way like a long training; killed and run again, it is called with --c."""
    path = copied("train", "predict", "evaluate", "report")
    tools.mode("nnUNetv2_train", "hang")
    command = [sys.executable, str(ROOT / "scripts" / "pipeline.py"), "run", str(path), "--jobs", "2"]
    with open(tmp_path / "out.txt", "w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
        checkpoint = tmp_path / "work" / "train" / "hmrf_bet.part"
        deadline = time.monotonic() + 100
        while not list(checkpoint.rglob("checkpoint_latest.pth")):
            assert process.poll() is None, (tmp_path / "out.txt").read_text()
            assert time.monotonic() < deadline, (tmp_path / "out.txt").read_text()
            time.sleep(0.1)
        with pytest.raises(ValueError, match="is in use by process"):
            go(path)
        process.kill()  # the run alone: what it started must notice
        process.wait()
    fake = int(Path(f"{tools.log}.pid").read_text())
    for _ in range(100):  # nothing is left running: the tool died with the process that waited for it
        if not Path(f"/proc/{fake}").exists() or " Z " in Path(f"/proc/{fake}/stat").read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("the tool of a killed run is still running")
    tools.mode("nnUNetv2_train", "good")
    _, done = go(path)
    assert [name.split("/")[0] for name in done] == ["train", "predict", "evaluate", "report"]
    assert [call for call in tools.calls if call[0] == "nnUNetv2_train"][-1][-1] == "--c"


def test_failures_are_data(tmp_path: Path, tools: Fakes) -> None:
    """A tool that fails on one scan costs that scan; it is in the report with its reason, and the rest goes on."""
    path = study(tmp_path, '[segment]\ntools = ["hmrf", "fast"]\n', patients=4)
    save_nifti(tmp_path / "bids" / "sub-02" / "anat" / "sub-02_T1w.nii.gz", head(0)[0] * 0, affine())
    tools.mode("fast", "collapse")  # one class, as FAST did to two subjects of the original study
    project, _ = go(path)
    states = {name: record.state for name, record in project.records.items()}
    assert states["harmonise/sub-02"] == "excluded"
    assert states["tissue/hmrf_bet/sub-02"] == "blocked"
    assert states["segment/fast_bet/sub-01"] == "done"
    assert states["tissue/fast_bet/sub-01"] == "excluded"
    assert project.records["tissue/fast_bet/sub-01"].reason == "no GM and no WM"
    assert states["dataset/fast_bet"] == "excluded"
    assert states["train/fast_bet"] == "blocked"
    assert project.records["train/fast_bet"].reason.startswith("plan/fast_bet blocked: no training case is usable")
    assert states["train/hmrf_bet"] == states["evaluate"] == states["report"] == "done"
    # The number of images is the study's all the same: two scans share what three would have had.
    assert project.records["dataset/hmrf_bet"].facts["images"] == 8
    page = (tmp_path / "work" / "report" / "report.html").read_text()
    assert "no GM and no WM" in page
    tools.mode("fast", "fail")
    shutil.rmtree(tmp_path / "work" / "segment" / "fast_bet")
    go(path)
    page = (tmp_path / "work" / "report" / "report.html").read_text()
    assert "segment/fast_bet/sub-01</td>" in page  # the tool that failed is named, not only what waits for it
    assert "no space left in the scanner" in page
    assert "has one intensity everywhere" in page


def test_failed_tools_are_tried_again_when_asked_and_missing_ones_always(tmp_path: Path, tools: Fakes) -> None:
    path = study(tmp_path, patients=2)
    only = RunOptions(own_process=False, only=("harmonise/*", "strip/*"))
    tools.mode("brainextractor", "fail")
    project, _ = go(path, only)
    assert project.records["strip/bet/sub-01"].state == "failed"
    assert "no space left in the scanner" in project.records["strip/bet/sub-01"].reason
    assert (tmp_path / "work" / "strip" / "bet" / "sub-01" / "log.txt").is_file()
    tools.mode("brainextractor", "good")
    assert go(path, only)[1] == []
    project, done = go(path, RunOptions(own_process=False, only=only.only, retry=True))
    assert len(done) == 2
    assert project.records["strip/bet/sub-01"].state == "done"
    program = tmp_path / "bin" / "brainextractor"
    shutil.rmtree(tmp_path / "work" / "strip")
    program.rename(program.with_name("elsewhere"))
    project, _ = go(path, only)
    assert project.records["strip/bet/sub-01"].state == "missing"
    assert "pip install numba trimesh" in project.records["strip/bet/sub-01"].reason
    program.with_name("elsewhere").rename(program)
    project, done = go(path, only)
    assert project.records["strip/bet/sub-01"].state == "done"


def test_results_behind_a_failure_are_kept_until_they_are_current_again(tmp_path: Path, tools: Fakes) -> None:
    path = study(tmp_path, patients=2)
    upto = RunOptions(own_process=False, only=("harmonise/*", "strip/*", "crop/*"))
    go(path, upto)
    good = path.read_text()
    tools.mode("brainextractor", "fail")
    path.write_text(good + "[tools.bet]\nfraction = 0.5\n")
    project, _ = go(path, upto)
    assert project.records["crop/bet/sub-01"].state == "blocked"
    path.write_text(good)
    tools.mode("brainextractor", "good")
    _, done = go(path, upto)
    assert {name.split("/")[0] for name in done} == {"strip"}  # the crops are as they were


def test_jobs_and_own_processes_change_nothing(tmp_path: Path, tools: Fakes, whole: dict[str, object]) -> None:
    path = study(tmp_path)
    upto = ("harmonise/*", "strip/*", "crop/*")
    go(path, RunOptions(jobs=2, only=upto))
    sums = results(path, scores=False)["sums"]
    assert isinstance(sums, dict)
    assert isinstance(whole["sums"], dict)
    assert len(sums) >= 9
    assert sums == {name: value for name, value in whole["sums"].items() if name in sums}


def test_a_defect_of_ours_costs_one_unit_and_leaves_its_traceback(
    tmp_path: Path, tools: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("pipeline.stages.images.bounding_box", broken)
    path = study(tmp_path, patients=2)
    project, _ = go(path, RunOptions(own_process=False, only=("harmonise/*", "strip/*", "crop/*")))
    record = project.records["crop/bet/sub-01"]
    assert (record.state, record.reason) == ("failed", "KeyError: 'oops'")
    assert "bounding_box" in (tmp_path / "work" / "crop" / "bet" / "sub-01" / "traceback.txt").read_text()


def test_a_unit_that_is_killed_alone_is_a_failure(
    tmp_path: Path, tools: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the system when memory is short: the run goes on."""
    path = study(tmp_path)
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(code)
    real = subprocess.Popen

    def deadly(command: list[str], **options: object) -> subprocess.Popen:
        if command[-1] == "harmonise/sub-02":
            options["env"] = {**options["env"], "PYTHONPATH": str(tmp_path / "site")}  # type: ignore[dict-item]
        return real(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("pipeline.runner.subprocess.Popen", deadly)
    project, _ = go(path, RunOptions(jobs=2, only=("harmonise/*",)))
    states = {name: project.records[name].state for name in project.units if name.startswith("harmonise/")}
    assert states.pop("harmonise/sub-02") == "failed"
    assert set(states.values()) == {"done"}
    assert project.records["harmonise/sub-02"].reason == "its process was killed by signal 9, perhaps for memory"


def test_records_that_nobody_can_read_count_as_none(tmp_path: Path) -> None:
    assert load_record(tmp_path) is None
    for text in ("{", "[]", '{"schema": "other"}', '{"schema": "medsis-unit/1", "what": 1}'):
        (tmp_path / RECORD).write_text(text)
        assert load_record(tmp_path) is None
    record = Record("a", "k", "done")
    record.save(tmp_path)
    assert load_record(tmp_path) == record


def test_tool_failures_are_user_errors() -> None:
    assert issubclass(ToolFailed, ValueError)


def test_folders_that_no_run_made_stay(tmp_path: Path, tools: Fakes) -> None:
    """Even with the study's own folder as work: only what carries a run's marker is removed or replaced."""
    path = study(tmp_path)
    path.write_text('work = "."\n' + path.read_text())
    some = RunOptions(own_process=False, only=("harmonise/*",))
    mine = [tmp_path / "notes.old" / "a.txt", tmp_path / "harmonise" / "kept.old" / "b.txt"]
    for file in mine:
        file.parent.mkdir(parents=True)
        file.write_text("mine")
    go(path, some)
    killed = tmp_path / "harmonise" / "sub-02.old"  # what a kill between the two renames leaves
    shutil.copytree(tmp_path / "harmonise" / "sub-02", killed)
    go(path, some)
    assert not killed.exists()
    assert [file.read_text() for file in mine] == ["mine", "mine"]
    for name in ("report", "report.old", "evaluate.part"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "paper.md").write_text("mine")
        with pytest.raises(ValueError, match=f"{name}: holds files that no run of this study wrote"):
            go(path, some)
        assert (folder / "paper.md").read_text() == "mine"
        shutil.rmtree(folder)
    (tmp_path / "report").write_text("mine")
    with pytest.raises(ValueError, match="report: is a file where the study wants a folder"):
        go(path, some)
