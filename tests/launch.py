"""Commands as users type them, in this process or in their own; several that train together; and dead ones."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from dataloaders.io import files
from dataloaders.io.manifest import Manifest
from dataloaders.io.runlog import read_log
from dataloaders.prepare.options import PrepareOptions
from dataloaders.prepare.prepare import prepare
from engine.checkpoint import list_states
from tests.toy import LAS, phantom, published, save_nifti

ROOT = Path(__file__).resolve().parents[1]
# One thread: on two cores with parallel tests more threads only wait for each other.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
TINY = "--oasis.channels_G 4 --oasis.channels_D 4 --oasis.spade_hidden 4 --oasis.z_dim 4 --batch_size 4".split()
PERIODS = "--freq_print 16 --freq_preview 1000 --freq_fid 64 --freq_save_latest 32 --gpu_ids -1".split()


@dataclass
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


def call(script: object, *arguments: object, code: int = 0) -> Done:
    """A command inside this process: the same code without the seconds that importing torch takes."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [script, *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        runpy.run_path(str(ROOT / str(script)), run_name="__main__")
    assert stop.value.code == code, out.getvalue() + err.getvalue()
    return Done(out.getvalue(), err.getvalue())


def command(*arguments: object) -> list[str]:
    """The words of a process of its own."""
    return [sys.executable, *map(str, arguments)]


def run(*arguments: object, code: int = 0) -> Done:
    """A command as a process of its own."""
    done = subprocess.run(command(*arguments), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.stdout, done.stderr)


def start(*arguments: object, **how: Any) -> subprocess.Popen:
    """A command as a process of its own that goes on by itself, unheard unless `how` says otherwise."""
    quiet: dict[str, Any] = {"env": ENVIRONMENT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command(*arguments), cwd=ROOT, **quiet | how)


def wait_for(done: Callable[[], object], seconds: float = 200) -> None:
    """Until something is true."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def wait_for_state(process: subprocess.Popen, folder: Path) -> None:
    """Until a training has saved a state."""
    wait_for(lambda: list_states(folder) or process.poll() is not None)
    assert list_states(folder), "no state was saved before the run ended"


def running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def weights(runs: Path, name: str, which: str = "latest") -> bytes:
    """The tensors of a run's weights: the header holds the run's name, which differs."""
    content = (runs / name / f"weights-{which}.safetensors").read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def lasting(record: dict[str, Any]) -> dict[str, Any]:
    """What a record of the log says beside times and memory."""
    return {k: v for k, v in record.items() if k not in ("images_per_second", "peak_memory_gb", "loader_wait")}


def training(data: Path, runs: Path, name: str = "run", *flags: object) -> list[object]:
    """Words of train.py on a CPU: a tiny OASIS of the published preset, unless flags say otherwise."""
    where = ["--name", name, "--dataroot", data, "--checkpoints_dir", runs, "--gpu_ids", -1]
    return ["train.py", *published(*where, *TINY, *flags)]


def prepared_scans(home: Path, seeds: range = range(3), channel: str = "T1w") -> Path:
    """Phantoms `home/images/p*.nii.gz` with `home/labels`, and `home/data` that is prepared of them: one a split."""
    for i in seeds:
        label, image = phantom(i)
        image = np.where(label > 0, 300 - image, 0).astype(np.float32) if channel == "T2w" else image  # looks different
        save_nifti(home / "images" / f"p{i}.nii.gz", image, LAS)
        save_nifti(home / "labels" / f"p{i}.nii.gz", label.astype(np.uint8), LAS)
    arguments = ["--format", "pairs", "--images", home / "images", "--labels", home / "labels", "--channel", channel]
    call("scripts/prepare_data.py", *arguments, "--size", 64, "--split", 0.4, 0.3, 0.3, "--out", home / "data")
    return home


def prepared(kind: str, out: Path, **options: Any) -> Manifest:
    """What prepare_data.py makes of a data set of this --format, by default slices of 64² in this process."""
    manifest = prepare(PrepareOptions(format=kind, out=out, **{"size": (64,), "workers": 1} | options))  # type: ignore[arg-type]
    assert manifest is not None
    return manifest


def assert_killed_run_goes_on(runs: Path, *arguments: object, apart: tuple[object, ...] = ()) -> None:
    """The training `killed` of the same options as `whole`, killed with its workers once it has saved a state.

    Resumed, it ends with the same weights, bit for bit, and the same log. apart: options of the killed process alone.
    """
    process = start(*arguments, *apart, start_new_session=True)
    wait_for_state(process, runs / "killed")
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert "resumed at" in call(*arguments).stdout
    for which in ("latest", "best"):
        assert weights(runs, "killed", which) == weights(runs, "whole", which), which
    mine, whole = (read_log(runs / name / "metrics.jsonl") for name in ("killed", "whole"))
    assert [lasting(r) for r in mine] == [lasting(r) for r in whole]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(count: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """The command as `count` processes that meet on a free port."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    heard: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [start(*arguments, env={**ENVIRONMENT, **meeting, **place}, **heard) for place in places]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=200)
        ended.append((process.returncode, out, err))
    return ended


def left_by_the_dead(path: Path) -> Path:
    """Where a process of this machine that was killed while it wrote `path` has left the half; not swept up yet."""
    files._sweep.cache_clear()
    nobody = 2**22 + 1  # no process has such a number
    return path.with_name(f"{files.TEMPORARY}{files._machine()}-{nobody}-{path.name}")
