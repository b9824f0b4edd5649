"""Faults that happen to real runs, each done for real: what must be left, what is said, and the exit code."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataloaders import batches
from dataloaders.io import locks
from dataloaders.io.locks import Holder, lock_folder, lock_place
from dataloaders.io.manifest import Manifest
from dataloaders.io.runlog import RunLog
from dataloaders.slices import SliceDataset, drawn_index
from engine import checkpoint, signals
from engine.checkpoint import list_states, load_state
from engine.command import DEFECT, exit_code
from models.gan.oasis import Oasis
from tests.launch import ENVIRONMENT, ROOT, call, command, start, training, wait_for_state, weights
from tests.toy import prepared_folder

pytestmark = pytest.mark.slow

PERIODS = "--num_epochs 2 --freq_print 4 --freq_fid 1000 --freq_preview 1000 --freq_save_latest 8 --metrics mae_body"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_folder(tmp_path_factory.mktemp("data"), patients=4, slices=6, size=32)


def train(data: Path, runs: Path, name: str = "run", extra: str = "") -> list[object]:
    return training(data, runs, name, *shlex.split(f"{PERIODS} {extra}"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    runs = tmp_path_factory.mktemp("runs")
    call(*train(data, runs, "whole"))
    return runs


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run after its first epoch, to be copied."""
    runs = tmp_path_factory.mktemp("begun")
    call(*train(data, runs, extra="--num_epochs 1"))
    return runs / "run"


# -- files ------------------------------------------------------------------------------------------------------------


def test_killed_while_it_writes(data: Path, begun: Path, tmp_path: Path) -> None:
    """SIGKILL halfway through a state: the old states load, and the next start clears away the half."""
    states = list_states(shutil.copytree(begun, tmp_path / "run"))
    script = f"""
import os, signal, torch
from pathlib import Path
from engine import checkpoint
def half(content, path):
    Path(path).write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
checkpoint.save_state(Path({str(tmp_path / "run")!r}), 999, {{}})
"""
    killed = subprocess.run(command("-c", script), cwd=ROOT, env=ENVIRONMENT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "run").glob(".tmp-*"))) == 1
    assert list_states(tmp_path / "run") == states
    assert "resumed at" in call(*train(data, tmp_path)).stdout
    assert not list((tmp_path / "run").glob(".tmp-*"))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("open('executed', 'w')",))


def test_a_malicious_newest_state_is_passed_over(
    data: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = list_states(shutil.copytree(begun, tmp_path / "run"))[-1]
    in_a_state = {"schema": checkpoint.STATE_SCHEMA, "x": Bomb()}
    monkeypatch.chdir(tmp_path)
    for dump in (lambda: torch.save(in_a_state, path), lambda: path.write_bytes(pickle.dumps(Bomb()))):
        dump()
        done = call(*train(data, tmp_path, extra="--num_epochs 1"))
        assert "damaged state file" in done.stdout
        assert "resumed at" in done.stdout
    assert not Path("executed").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 6 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"mounting is not allowed here: {mount.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("leave", [0, 100_000])
def test_a_full_disk_costs_no_state(leave: int, data: Path, begun: Path, whole: Path, small_disk: Path) -> None:
    """Periodic saves, previews and log lines warn; the final save exits non-zero; with room again the run ends whole."""
    states = list_states(shutil.copytree(begun, small_disk / "run"))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - leave)))
    often = "--freq_save_latest 4 --freq_preview 4 --freq_fid 8"
    done = call(*train(data, small_disk, extra=often), code=2)
    if leave:  # with nothing at all left, not even config.json can be written, and that is said at once
        assert "warning: not saved" in done.stdout
        assert "24/24 images" in done.stdout
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert list_states(small_disk / "run") == states
    assert load_state(states[-1])["images"] == 12
    filler.unlink()
    call(*train(data, small_disk))
    assert weights(small_disk, "run") == weights(whole, "whole")


def test_two_tests_into_one_folder(data: Path, whole: Path, tmp_path: Path) -> None:
    """The second is refused and told by whom; what fails leaves nothing."""
    where = ["--dataroot", data, "--checkpoints_dir", whole, "--results_dir", tmp_path, "--metrics", "none"]
    best = tmp_path / "whole" / "best"
    with lock_place(best):
        done = call("test.py", "--name", "whole", *where, "--gpu_ids", "-1", code=2)
        assert f"{best} is in use by process {os.getpid()}" in done.stderr

    def full(*_: object) -> None:
        raise OSError("disk full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.results.write_png", full)
        call("test.py", "--name", "whole", *where, "--gpu_ids", "-1", code=2)
    assert not list(best.parent.iterdir())
    call("test.py", "--name", "whole", *where, "--gpu_ids", "-1")
    assert [path.name for path in best.parent.iterdir()] == ["best"]


def test_object_arrays_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.array([Bomb(), 1], dtype=object), allow_pickle=True)
    (tmp_path / "maps").mkdir()
    arguments = ["--labels", tmp_path / "maps", "--out", tmp_path / "out", "--subjects_prob", tmp_path / "p.npy"]
    done = call("scripts/generate.py", *arguments, "--n", 1, code=2)
    assert done.stderr.startswith("error: ")
    assert not Path("executed").exists()


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "stops"),
    [
        (6, {"--num_workers 0 --freq_save_latest 1000": 4, "--num_workers 1 --freq_save_latest 1000": 4}),
        # Of the third batch: the statistics for weights look at slices that training has not come to yet.
        (11, {"--freq_save_latest 4": 4, "--freq_preview 4 --freq_save_latest 1000": 8}),
    ],
)
def test_a_missing_slice_stops_the_run_and_loses_nothing(
    position: int, stops: dict[str, int], data: Path, whole: Path, tmp_path: Path
) -> None:
    """The file is named, what was learned is saved, and with the file back the run ends as if nothing had been."""
    copy = shutil.copytree(data, tmp_path / "data")
    index = drawn_index(12, 42, "order", position)
    victim = copy / SliceDataset(copy, Manifest.load(copy), "train").entries[index][1].label
    content = victim.read_bytes()
    victim.unlink()
    for extra, images in stops.items():
        done = call(*train(copy, tmp_path, extra=f"{extra} --cache_gb 0"), code=2)
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {victim}")
        assert f"stopped at {images} images, state saved: {victim}" in done.stdout
        assert load_state(list_states(tmp_path / "run")[-1])["images"] == images
    victim.write_bytes(content)
    assert f"resumed at {images} of 24" in call(*train(copy, tmp_path)).stdout
    assert weights(tmp_path, "run") == weights(whole, "whole")


def test_nan_in_an_image_is_told_from_divergence(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = SliceDataset._image

    def broken(self: SliceDataset, names: tuple[str, ...]) -> np.ndarray | None:
        pixels = image(self, names)
        if pixels is not None and names == self.entries[7][1].images:
            pixels = pixels.copy()
            pixels[0, 3, 3] = np.nan
        return pixels

    monkeypatch.setattr(SliceDataset, "_image", broken)
    done = call(*train(data, tmp_path), code=4)
    case, item = SliceDataset(data, Manifest.load(data), "train").entries[7]
    assert f"NaN or infinity in the image of {case.id} z{item.index}" in done.stdout
    (crash,) = (tmp_path / "run").glob("crash-*.pt")
    assert f"{case.id} z{item.index}" in torch.load(crash, weights_only=True)["slices"]


def in_a_worker(monkeypatch: pytest.MonkeyPatch, fault: Callable[[], object]) -> None:
    """Let a fault happen in the loader process that reads training image number 9, of the third batch."""
    image, parent = SliceDataset._image, os.getpid()
    index = drawn_index(12, 42, "order", 9)

    def faulty(self: SliceDataset, names: tuple[str, ...]) -> np.ndarray | None:
        if names == self.entries[index][1].images and os.getpid() != parent:
            time.sleep(0.2)  # until the batches before have been delivered
            fault()
        return image(self, names)

    monkeypatch.setattr(SliceDataset, "_image", faulty)


KILLED = "killed (SIGKILL), as a system short of memory does; lower --num_workers or --cache_gb"
STAYS = "warning: weights-latest stays as it was: the loader processes delivered nothing"


def killed_by(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def hanging(stop: bool = False) -> None:
    if stop:
        os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(1000)


@pytest.mark.parametrize(
    ("fault", "code", "told", "more"),
    [
        (partial(killed_by, signal.SIGKILL), 6, f"error: a loader process was {KILLED}", ""),
        (partial(killed_by, signal.SIGBUS), 6, "no shared memory (SIGBUS); a larger /dev/shm or --num_workers 0", ""),
        (hanging, 6, "delivered nothing for 2 seconds: they hang", ""),
        # Obeyed at once; only the weights, whose batch statistics need the data, wait for the loader once more.
        (partial(hanging, stop=True), 143, STAYS, "--freq_save_latest 1000"),
    ],
)
def test_a_loader_process_that_dies_or_hangs_costs_nothing(
    fault: Callable[[], None],
    code: int,
    told: str,
    more: str,
    data: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cause is told in one line, the state is saved, and the run ends as if nothing had been."""
    monkeypatch.setattr(batches, "POLL", 0.5)
    monkeypatch.setattr(batches, "PATIENCE", 2.0)
    with monkeypatch.context() as patch:
        in_a_worker(patch, fault)
        done = call(*train(data, tmp_path, extra=f"--num_workers 1 --cache_gb 0 {more}"), code=code)
    assert told in done.stdout + done.stderr
    stopped = re.search(
        r"stopped at ([48]) images, state saved", done.stdout
    )  # what was read but not delivered is lost
    if code == 6:
        (line,) = done.stderr.splitlines()
        assert f"{stopped[0]}: {line.removeprefix('error: ')}" in done.stdout
        assert "batch_size" not in line
    assert not multiprocessing.active_children()
    assert f"resumed at {stopped[1]} of 24" in call(*train(data, tmp_path)).stdout
    assert weights(tmp_path, "run") == weights(whole, "whole")


def test_out_of_memory_says_what_to_lower(data: Path, tmp_path: Path) -> None:
    """Real: the process may have 6 GB of addresses and is asked for a network that needs more."""
    how: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True}
    how["preexec_fn"] = lambda: resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
    process = start(*train(data, tmp_path, extra="--oasis.channels_G 4096"), **how)
    _, said = process.communicate()
    assert process.returncode == 6, said
    assert said.startswith("error: out of memory")
    assert "--batch_size" in said
    assert "Traceback" not in said


# -- runs -------------------------------------------------------------------------------------------------------------


def test_two_runs_of_one_name_at_once(data: Path, tmp_path: Path) -> None:
    arguments = train(data, tmp_path, extra="--num_epochs 1000")
    first = start(*arguments)
    try:
        wait_for_state(first, tmp_path / "run")
        done = call(*arguments, code=2)
        assert f"is in use by process {first.pid} on {socket.gethostname()}" in done.stderr
    finally:
        first.kill()
        first.wait()
    assert "resumed at" in call(*train(data, tmp_path, extra="--num_epochs 1 --which_iter 8")).stdout  # no stale lock


class FakeLocks:
    """fcntl of a file system without locks, or of one whose lock is held by a node that died."""

    LOCK_EX = LOCK_NB = 0

    def __init__(self, error: OSError) -> None:
        self.error = error

    def flock(self, handle: object, how: int) -> None:
        raise self.error


@pytest.mark.parametrize("error", [OSError("no locks here"), BlockingIOError()])
def test_locks_that_nobody_holds_any_more(error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead process of this machine where there are no locks; an earlier life of this Slurm job, wherever it was."""
    monkeypatch.setattr(locks, "fcntl", FakeLocks(error))
    here = Holder.this()

    def held_by(**changes: object) -> None:
        values = {**here.__dict__, **changes}
        (tmp_path / ".lock").write_text(locks.json.dumps(values) + "\n")

    no_locks = not isinstance(error, BlockingIOError)
    elsewhere = {"host": "node7", "pid": 5, "started": 9}
    cases: list[tuple[dict[str, object], dict[str, str], bool]] = [
        ({}, {}, False),  # this very process
        ({"started": here.started - 1}, {}, no_locks),  # its number was given anew
        (elsewhere, {}, False),
        ({**elsewhere, "job": "41"}, {"SLURM_JOB_ID": "41"}, False),  # two steps of one job
        ({**elsewhere, "job": "41"}, {"SLURM_JOB_ID": "41", "SLURM_RESTART_COUNT": "1"}, True),
        ({**elsewhere, "job": "40"}, {"SLURM_JOB_ID": "41", "SLURM_RESTART_COUNT": "1"}, False),
    ]
    for holder, environment, free in cases:
        for key in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
            monkeypatch.delenv(key, raising=False)
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        held_by(**holder)
        if free:
            lock_folder(tmp_path).close()
            assert (tmp_path / ".lock").read_text() == ""
        else:
            with pytest.raises(ValueError, match="in use by process"):
                lock_folder(tmp_path)


def test_changed_data_and_options_are_all_listed(data: Path, begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "run")
    other = shutil.copytree(data, tmp_path / "data")
    manifest = Manifest.load(other)
    Manifest(manifest.spec, manifest.cases[1:], manifest.provenance).save(other)
    done = call(*train(other, tmp_path, extra="--beta1 0.25 --seed 3"), code=2)
    for text in ("--beta1: was 0.0, now 0.25", "--seed: was 42, now 3", "its manifest is not that of the data"):
        assert text in done.stderr
    assert "resumed at" in call(*train(data, tmp_path, extra="--freq_print 8")).stdout


def test_missing_weights_are_said_before_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a node without network: the weights are what is missed, although the data folder is not even there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("MEDSIS_WEIGHTS", raising=False)
    for extra, key in (("--model spade --spade.lambda_vgg 10", "vgg19"), ("--metrics fid", "inception")):
        done = call(*train(tmp_path / "nothing", tmp_path / "runs", extra=extra), code=3)
        assert f"download_weights.py --keys {key}" in done.stderr
        assert not (tmp_path / "runs").exists()


# -- signals and exit codes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("INT", 130), ("USR1", 85)])
def test_a_signal_to_all_processes_of_a_run_saves_it(
    name: str, code: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a terminal, `timeout`, `kill -- -PGID` and Slurm send it: also to the loader processes."""

    def signalled(self: RunLog, record: object) -> None:
        for process in [child.pid for child in multiprocessing.active_children()] + [os.getpid()]:
            os.kill(process, getattr(signal, f"SIG{name}"))

    monkeypatch.setattr(RunLog, "record", signalled)
    done = call(*train(data, tmp_path, extra="--num_workers 2"), code=code)
    assert "stopped at 4 images, state saved" in done.stdout
    assert "error" not in done.stderr
    assert load_state(list_states(tmp_path / "run")[-1])["images"] == 4


def test_a_run_whose_output_nobody_takes_goes_on(data: Path, tmp_path: Path) -> None:
    """`| head`, a full disk under a redirection, a terminal that is gone: log.txt has it all."""
    with open("/dev/full", "w") as full:
        process = start(*train(data, tmp_path), stdout=subprocess.PIPE, stderr=full, text=True)
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait() == 0
    assert "finished: 24 images" in (tmp_path / "run" / "log.txt").read_text()


def test_what_a_full_disk_or_an_encoding_does_not_take_is_no_error(tmp_path: Path) -> None:
    for path, encoding in (("/dev/full", "utf-8"), (tmp_path / "out", "ascii")):
        with open(path, "w", encoding=encoding) as stream, contextlib.redirect_stdout(stream):
            assert exit_code(lambda: print("é\udcff" * 10_000) or 0) == 0
            assert sys.stdout is stream
    assert (tmp_path / "out").read_text().startswith("\\xe9\\udcff")


def test_any_error_between_steps_is_saved(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of ours, which keeps its traceback; the resumed run ends as if nothing had been."""

    def broken(self: RunLog) -> None:
        raise RuntimeError("of ours")

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "plot", broken)
        with pytest.raises(RuntimeError, match="of ours"):
            call(*train(data, tmp_path, extra="--freq_preview 12 --freq_save_latest 1000"))
    assert "stopped at 12 images, state saved: RuntimeError: of ours" in (tmp_path / "run" / "log.txt").read_text()
    assert "resumed at 12 of 24" in call(*train(data, tmp_path)).stdout
    assert weights(tmp_path, "run") == weights(whole, "whole")


def test_an_error_in_the_midst_of_a_step_keeps_the_state_before(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(100))

    def short_of_memory(self: Oasis, step: int) -> None:
        if next(steps) == 3:
            raise MemoryError("no more")

    monkeypatch.setattr(Oasis, "after_step", short_of_memory)
    done = call(*train(data, tmp_path), code=6)
    assert "out of memory (no more)" in done.stderr
    (state,) = list_states(tmp_path / "run")
    assert f"stopped at 12 images, in the midst of a step; {state.name} is kept: out of memory" in done.stdout
    assert load_state(state)["images"] == 8


def test_weights_that_are_no_numbers_are_not_saved(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after_step, steps = Oasis.after_step, iter(range(100))

    def overflow(self: Oasis, step: int) -> None:
        after_step(self, step)
        if next(steps) == 1:
            next(self.parameters()).data.fill_(torch.inf)

    with monkeypatch.context() as patch:
        patch.setattr(Oasis, "after_step", overflow)
        done = call(*train(data, tmp_path, extra="--freq_save_latest 4"), code=4)
    assert "weights are no numbers any more after 8 images" in done.stdout
    assert [load_state(state)["images"] for state in list_states(tmp_path / "run")] == [4]
    assert "resumed at 4 of 24" in call(*train(data, tmp_path)).stdout


def test_every_exit_code_is_documented() -> None:
    text = (ROOT / "docs" / "slurm.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE)
    documented = {int(code) for row in rows for code in row.split(",")}
    ours = {value for name, value in vars(signals).items() if name.startswith("EXIT_")} | {0, 1, 143}
    assert documented == ours
    assert DEFECT == 1
