"""Requests to stop: acknowledged at once, obeyed once, and a second Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine import signals
from tests.launch import ROOT, start

# One call that lasts for minutes and runs no Python in between, as a backward pass does.
LONG_STEP = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 2_000_000_000)"
PLAIN = {k: v for k, v in os.environ.items() if k not in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID")}


def busy(work: str) -> subprocess.Popen[str]:
    """A process that listens to signals and is in the midst of its work."""
    listen = "from engine.signals import StopRequest; StopRequest().install(); print('ready', flush=True); "
    heard: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": PLAIN}
    process = start("-c", listen + work, start_new_session=True, **heard)
    assert process.stdout.readline() == "ready\n"
    return process


def test_ctrl_c_is_acknowledged_in_the_middle_of_a_step_and_a_second_one_leaves() -> None:
    with busy(LONG_STEP) as process:
        process.send_signal(signal.SIGINT)
        line = process.stderr.readline()
        assert line == "SIGINT: stopping after this step, saving; Ctrl-C again leaves without saving\n"
        assert process.poll() is None
        time.sleep(signals.SAME_PRESS + 0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == signals.EXIT_INTERRUPTED
        assert "left without saving" in process.stderr.read()


@pytest.mark.slow
def test_what_loader_processes_hear_is_no_second_ctrl_c() -> None:
    forked = "import os, time; child = os.fork(); time.sleep(0.5 if child == 0 else 0); " + (
        "os.kill(os.getpid(), 2) if child == 0 else None; time.sleep(60)"
    )
    with busy(forked) as process:
        process.send_signal(signal.SIGINT)
        assert "stopping after this step" in process.stderr.readline()
        time.sleep(1)
        assert process.poll() is None  # the child's came half a second later
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("variable", ["", "TORCHELASTIC_RUN_ID", "SLURM_STEP_ID"])
def test_torchrun_and_srun_may_pass_ctrl_c_on_twice(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    clock = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    left: list[int] = []
    monkeypatch.setattr(signals.os, "_exit", left.append)
    stop = signals.StopRequest()
    stop._answer(signal.SIGINT, True)
    clock[0] += 1
    stop._answer(signal.SIGTERM, True)  # only Ctrl-C leaves like that
    assert not left
    stop._answer(signal.SIGINT, True)
    assert left == ([] if variable else [130])
    clock[0] += 3
    stop._answer(signal.SIGINT, True)
    assert left[-1] == 130
    assert capsys.readouterr().err.count("stopping after this step") == 1


def test_signals_that_come_twice_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """scancel reaches a process from Slurm and through srun; only one that comes later leaves at once."""
    clock = iter([100.0, 100.2, 200.0])
    monkeypatch.setattr(signals.time, "monotonic", lambda: next(clock))
    stop = signals.StopRequest()
    stop._handle(signal.SIGUSR2, None)
    assert stop.exit_code == 85
    stop._handle(signal.SIGTERM, None)
    assert stop.exit_code == 143  # cancelled after the warning: not to be requeued
    with pytest.raises(SystemExit):
        stop._handle(signal.SIGTERM, None)


def test_signals_go_back_to_who_had_them_and_nohup_is_respected() -> None:
    """A study trains and tests in one process: the test must not swallow Ctrl-C."""
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    warning = signal.signal(signal.SIGUSR2, lambda *_: None)  # one that is its owner's goes back as well
    before = {number: signal.getsignal(number) for number in signals._EXIT_CODES}
    stop = signals.StopRequest()
    stop.install()
    assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == stop._handle
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    stop.close()
    after = before | {signal.SIGUSR1: signal.SIG_IGN}
    assert {number: signal.getsignal(number) for number in signals._EXIT_CODES} == after
    assert signal.set_wakeup_fd(-1) == -1
    signal.signal(signal.SIGHUP, hangup)
    signal.signal(signal.SIGUSR2, warning)
    signal.signal(signal.SIGUSR1, before[signal.SIGUSR1])


def test_a_warning_before_the_time_limit_that_comes_after_the_end_fails_no_run() -> None:
    over = "import os; from engine.signals import StopRequest; stop = StopRequest(); stop.install(); stop.close(); "
    for name in ("USR1", "USR2"):
        with start("-c", f"{over}os.kill(os.getpid(), {getattr(signal, f'SIG{name}').value})") as process:
            assert process.wait() == 0


COMMANDS = ["train.py", "test.py", *(f"scripts/{path.name}" for path in sorted((ROOT / "scripts").glob("*.py")))]


@pytest.mark.parametrize("script", COMMANDS)
def test_ctrl_c_while_a_command_is_loaded_is_one_line(script: str, tmp_path: Path) -> None:
    for library in ("numpy", "torch", "tyro"):  # whichever it imports first
        (tmp_path / f"{library}.py").write_text("raise KeyboardInterrupt")
    environment = PLAIN | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, ROOT / script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "interrupted\n")  # 130 to a shell
