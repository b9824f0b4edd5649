"""The real batch.sh on a real Slurm of two nodes: tests/slurm/local_slurm.sh up, as .ci/run does."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dataloaders.io.runlog import read_log
from engine.checkpoint import list_states, load_state
from tests.dataloaders.test_prepare import three_cts, tree
from tests.launch import ROOT, call
from tests.launch import weights as weights_of
from tests.toy import phantom, prepared_folder, save_nifti
from tests.toy_results import noisy, write_results

LOCAL = ROOT / "tests" / "slurm" / "local_slurm.sh"
CONF = subprocess.run([LOCAL, "conf"], capture_output=True, text=True, check=True).stdout.strip()
SMALL = "--gres=none --cpus-per-task=1 --mem=100M".split()
TINY = """--preset oasis --gpu_ids -1 --batch_size 4 --num_epochs 33 --freq_print 20 --freq_fid 100000
 --freq_preview 100000 --freq_save_latest 20 --eval_slices 2 --metrics mae_body
 --oasis.channels_G 4 --oasis.channels_D 4 --oasis.spade_hidden 4 --oasis.z_dim 4"""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


def slurm(*command: object, check: bool = True, **variables: object) -> str:
    """What a command of Slurm says, called in the repository."""
    given = {"SLURM_CONF": CONF, "OMP_NUM_THREADS": 1} | variables
    environment = {**os.environ, **{name: str(value) for name, value in given.items()}}
    words = [*map(str, command)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=check, timeout=60)
    return done.stdout.strip()


def is_up() -> bool:
    try:
        return Path(CONF).is_file() and bool(slurm("sinfo", "-h"))
    except (OSError, subprocess.SubprocessError):
        return False


pytestmark = [pytest.mark.slurm, pytest.mark.slow]
if not is_up():
    if os.environ.get("MEDSIS_REQUIRE_SLURM") == "1":
        raise RuntimeError("the local Slurm is not up")
    pytestmark.append(pytest.mark.skip(reason="no local Slurm; `tests/slurm/local_slurm.sh up` starts one"))


@dataclass
class Job:
    """A submitted job and what it leaves."""

    number: str
    folder: Path

    def facts(self) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", slurm("scontrol", "show", "job", self.number)))

    def wait(self, seconds: float = 240) -> dict[str, str]:
        """Its end; a requeued job is let go at once instead of after Slurm's two minutes, and has time enough.

        A job that exits with 85 has asked for its requeue, and may show as failed until that has happened.
        """
        end = time.monotonic() + seconds
        while (facts := self.facts())["JobState"] not in ENDED or facts["ExitCode"] == "85:0":
            assert time.monotonic() < end, f"job {self.number} did not end: {facts}\n{self.output}"
            if facts["JobState"] == "PENDING" and facts["Restarts"] != "0":
                slurm("scontrol", "update", f"JobId={self.number}", "TimeLimit=10", "StartTime=now", check=False)
            time.sleep(0.5)
        return facts

    @property
    def output(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob(f"slurm-*-{self.number}.out")))

    def wait_for_state(self, seconds: float = 120) -> None:
        """Until the run has saved something."""
        end = time.monotonic() + seconds
        while not list_states(self.folder / "runs" / self.folder.name):
            assert time.monotonic() < end, self.output
            assert self.facts()["JobState"] not in ENDED, self.output
            time.sleep(0.2)


def python(folder: Path) -> Path:
    """What stands for .venv/bin/python: this one, running train.py at the pace of MEDSIS_STEP_SECONDS."""
    script = folder / "python"
    slow = ROOT / "tests" / "slurm" / "slow_train.py"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {slow} "$@"\n')
    script.chmod(0o755)
    return script


def container(folder: Path) -> dict[str, object]:
    """What stands for Apptainer, which is not here: prints how it was called, then runs the command outside."""
    script = folder / "bin" / "apptainer"
    script.parent.mkdir(parents=True)
    script.write_text(
        f'#!/bin/sh\necho "apptainer $*"\nwhile [ "$1" != python ]; do shift; done; shift\nexec {python(folder)} "$@"\n'
    )
    script.chmod(0o755)
    return {"CONTAINER": folder / "medsis.sif", "PATH": f"{script.parent}:{os.environ['PATH']}", "PYTHON": "nothing"}


def submit(folder: Path, data: Path, *flags: str, pace: float = 0.0, **variables: object) -> Job:
    """`sbatch batch.sh` for the run called as its folder."""
    folder.mkdir(exist_ok=True)
    given = {"NAME": folder.name, "DATA": data, "PYTHON": python(folder), "MEDSIS_STEP_SECONDS": pace, **variables}
    options = [*SMALL, "--time=10", f"--output={folder}/slurm-%x-%j.out", *flags]
    words = ["batch.sh", *TINY.split(), "--checkpoints_dir", folder / "runs"]
    return Job(slurm("sbatch", "--parsable", *options, *words, **given), folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 training slices: 594 images in 33 epochs, so 149 steps of four."""
    return prepared_folder(tmp_path_factory.mktemp("data"), patients=5, slices=6, size=32)


@pytest.fixture(scope="module")
def jobs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Job]]:
    """All jobs at once, since most of their time is waiting."""
    home = tmp_path_factory.mktemp("jobs")
    two = ("--nodes=2", "--ntasks-per-node=1")
    jobs = {
        "limit": submit(home / "limit", data, "--signal=USR2@1", pace=2),
        "cancelled": submit(home / "cancelled", data, pace=2),
        "requeued": submit(home / "requeued", data, pace=2),
        "killed": submit(home / "killed", data, *two, "--cpus-per-task=2", pace=2),
        "one": submit(home / "one", data, STAGE=home / "stage"),
        "two": submit(home / "two", data, *two, **container(home / "two")),
    }
    jobs["limit"].wait_for_state()  # however slow the machine is
    _, minutes, seconds = map(int, jobs["limit"].facts()["RunTime"].split(":"))
    minutes += 1 if seconds < 15 else 2  # USR2 comes up to half a minute early, and needs time to come at all
    slurm("scontrol", "update", f"JobId={jobs['limit'].number}", f"TimeLimit={minutes}")
    yield jobs
    slurm("scancel", "-u", "root")


def run_folder(job: Job) -> Path:
    return job.folder / "runs" / job.folder.name


def weights(job: Job) -> bytes:
    return weights_of(run_folder(job).parent, run_folder(job).name)


def losses(job: Job) -> list[dict[str, float]]:
    return [record["losses"] for record in read_log(run_folder(job) / "metrics.jsonl") if record["kind"] == "train"]


def test_scancel_saves_and_does_not_requeue(jobs: dict[str, Job]) -> None:
    job = jobs["cancelled"]
    job.wait_for_state()
    slurm("scancel", job.number)
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0")
    saved = int(re.findall(r"stopped at ([\d,]+) images, state saved", job.output)[0].replace(",", ""))
    assert load_state(list_states(run_folder(job))[-1])["images"] == saved


def environment_of(process: int) -> list[str]:
    return Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")


def processes_of(job: Job, rank: int) -> list[int]:
    """Python processes of one task."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = environment_of(int(folder.name))
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except (OSError, UnicodeDecodeError):
            continue
        mine = {f"SLURM_JOB_ID={job.number}", f"SLURM_PROCID={rank}", "SLURM_STEP_ID=0"}
        if mine <= set(environment) and b"train.py" in words and b"srun" not in words[0]:
            found.append(int(folder.name))
    return found


def test_a_killed_rank_fails_the_job_and_the_last_state_loads(jobs: dict[str, Job]) -> None:
    job = jobs["killed"]
    job.wait_for_state()
    victims = processes_of(job, rank=1)
    assert victims
    # Without it srun binds each task to one processor; this Slurm binds none, so only the order can be looked at.
    assert "SRUN_CPUS_PER_TASK=2" in environment_of(victims[0])
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "0"), job.output
    assert not facts["ExitCode"].startswith("0:")
    assert "another process of this training has ended" in job.output
    assert "Traceback" not in job.output
    assert load_state(list_states(run_folder(job))[-1])["images"] >= 20


def test_requeue_in_the_middle_of_a_step_changes_nothing(jobs: dict[str, Job]) -> None:
    job = jobs["requeued"]
    job.wait_for_state()
    slurm("scontrol", "requeue", job.number)
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), job.output
    assert "resumed at" in job.output
    jobs["one"].wait()
    assert weights(job) == weights(jobs["one"])


def test_one_task_from_a_staged_copy(jobs: dict[str, Job]) -> None:
    job = jobs["one"]
    facts = job.wait()
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), job.output
    (copy,) = (job.folder.parent / "stage").iterdir()
    assert (copy / "manifest.json").is_file()
    assert f'"dataroot": "{copy}"' in (run_folder(job) / "config.json").read_text()


def test_two_nodes_train_one_model_in_containers(jobs: dict[str, Job], data: Path) -> None:
    job = jobs["two"]
    facts = job.wait()
    assert (facts["JobState"], facts["NumNodes"]) == ("COMPLETED", "2"), job.output
    assert "2 processes" in job.output
    called = f"exec --nv --bind {ROOT} --bind {data} --pwd {ROOT} {job.folder}/medsis.sif python train.py --name two"
    assert job.output.count(called) == 2  # each task in a container of its own
    assert job.output.count("finished: 596 images") == 1
    jobs["one"].wait()
    first, alone = losses(job)[0], losses(jobs["one"])[0]
    assert first.keys() == alone.keys()
    assert all(first[name] == pytest.approx(alone[name], rel=0.05, abs=1e-3) for name in alone)


def test_the_time_limit_requeues_and_ends_bit_for_bit_as_an_uninterrupted_run(jobs: dict[str, Job]) -> None:
    job = jobs["limit"]
    facts = job.wait()
    assert facts["JobState"] == "COMPLETED", job.output
    assert facts["Restarts"] == "1", job.output
    assert "state saved; the same command resumes" in job.output
    assert "resumed at" in job.output
    jobs["one"].wait()
    assert weights(job) == weights(jobs["one"])
    facts = jobs["cancelled"].facts()  # more than a minute later, still not risen again
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0")


def submit_array(folder: Path, count: int, *command: object) -> str:
    """`sbatch --array batch_array.sh`; the number of the job."""
    options = [*SMALL[1:], f"--array=0-{count - 1}", f"--output={folder}/slurm-%A_%a.out", "--time=10"]
    return slurm("sbatch", "--parsable", *options, "batch_array.sh", *command, PYTHON=sys.executable)


def wait_for_array(number: str, count: int) -> list[str]:
    """How its jobs ended."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        states = re.findall(r"JobState=(\S*)", slurm("scontrol", "show", "job", number))
        if len(states) == count and all(state in ENDED for state in states):
            return states
        time.sleep(0.5)
    raise AssertionError("the array did not end")


def commands_of_arrays(home: Path) -> dict[str, list[object]]:
    """The three commands that work in shards, with little to do."""
    source = three_cts(home / "source")
    words = shlex.split("--format pairs --channel CT --clean none --size 64 --workers 1")
    words += ["--images", str(source / "*_ct.nii.gz"), "--labels", str(source / "*_seg.nii.gz")]
    label, _ = phantom(1, (24, 24, 12))
    save_nifti(home / "maps" / "a.nii.gz", label.astype(np.uint8))
    results = write_results(home / "results", noisy(0.05), patients=4, slices=5)
    return {
        "prepare": ["scripts/prepare_data.py", *words],
        "generate": ["scripts/generate.py", "--labels", home / "maps", "--n", 4, "--size", 16, "--slices", "axial"],
        "evaluate": ["scripts/evaluate.py", "--results", results, "--metrics", "mae,ssim,psnr,wasserstein"],
    }


def test_arrays_make_what_one_command_does(tmp_path: Path) -> None:
    """prepare_data.py, generate.py and evaluate.py over cases, all arrays at once: byte for byte."""
    commands, arrays = commands_of_arrays(tmp_path), {}
    for name, command in commands.items():
        arrays[name] = submit_array(tmp_path, 2, *command, "--out", tmp_path / f"{name}-array" / "out")
    for name, command in commands.items():
        call(*command, "--out", tmp_path / f"{name}-one" / "out")
        states = wait_for_array(arrays[name], 2)
        assert states == ["COMPLETED"] * 2, [path.read_text() for path in tmp_path.glob("*.out")]
        whole, shards = (tree(tmp_path / f"{name}-{how}") for how in ("one", "array"))
        assert len(whole) >= 3
        assert shards == whole
