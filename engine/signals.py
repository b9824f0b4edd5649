"""Stop requests from Slurm and the keyboard: a handler sets a flag, the loop acts on it between steps.

Python runs its handlers between two of its own instructions, and a backward pass on a CPU can be a single one of half a
minute. So a thread beside answers at once, and obeys a second Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from dataloaders.io.console import say

EXIT_USAGE = 2
EXIT_WEIGHTS_MISSING = 3
EXIT_DIVERGED = 4
EXIT_STALLED = 5
EXIT_MEMORY = 6
EXIT_LOST_RANK = 7
EXIT_HANGUP = 129
EXIT_INTERRUPTED = 130
EXIT_QUIT = 131
EXIT_TERMINATED = 143
EXIT_CPU_TIME = 152
EXIT_TIME_LIMIT = 85  # resumable; batch.sh requeues the job

_EXIT_CODES = {
    signal.SIGUSR1: EXIT_TIME_LIMIT,
    signal.SIGUSR2: EXIT_TIME_LIMIT,
    signal.SIGTERM: EXIT_TERMINATED,
    signal.SIGINT: EXIT_INTERRUPTED,
    signal.SIGHUP: EXIT_HANGUP,
    signal.SIGQUIT: EXIT_QUIT,
    signal.SIGXCPU: EXIT_CPU_TIME,
}

PATIENCE = 3.0  # seconds
SAME_PRESS = 0.2  # seconds in which nobody presses Ctrl-C twice


def _interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _interrupted  # every command imports this file first, as its other imports take seconds


class Stopped(BaseException):  # no Exception, which what waits may catch
    """A signal asks to stop while nothing but waiting is done."""


class StopRequest:
    """`exit_code` is None until a signal asks to stop; another one some seconds later leaves at once.

    Not right away: scancel reaches a process twice, from Slurm itself and through srun, and Ctrl-C under torchrun too. At a
    terminal a second Ctrl-C is meant, and leaves at once.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._asked_at: float | None = None  # of this process; `exit_code` may come from another rank
        self._answered_at: float | None = None
        self._waiting = False
        self._before: dict[int, Any] = {}
        self._ear = -1  # where the signals' numbers are written to

    def install(self, answer: bool = True) -> None:
        """Listen to USR1, USR2 (Slurm's warning before the time limit), TERM, INT, QUIT, XCPU, and HUP without nohup.

        answer: say so when one comes.
        """
        for number in _EXIT_CODES:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        mouth, self._ear = os.pipe()
        os.set_blocking(self._ear, False)
        signal.set_wakeup_fd(self._ear, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(mouth, answer), daemon=True).start()

    def close(self) -> None:
        """Give the signals back to who had them before; a warning before the time limit no longer kills.

        Left to its default, one that comes while a process whose run is over ends would turn its success into a failure.
        """
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:
                late = _EXIT_CODES[signal.Signals(number)] == EXIT_TIME_LIMIT and handler == signal.SIG_DFL
                signal.signal(number, signal.SIG_IGN if late else handler)
        self._before = {}
        if self._ear >= 0:
            signal.set_wakeup_fd(-1)
            os.close(self._ear)  # ends the thread
            self._ear = -1

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is done inside may be broken off: a signal that comes meanwhile raises Stopped."""
        self._waiting = True
        try:
            if self.exit_code is not None:
                raise Stopped
            yield
        finally:
            self._waiting = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        code = _EXIT_CODES[signal.Signals(number)]
        now = time.monotonic()  # not the wall clock, which may be set back
        if self._asked_at is None:
            self._asked_at = now
        elif now - self._asked_at > PATIENCE and number != signal.SIGXCPU:  # which comes every second
            sys.exit(code)
        self.exit_code = max(code, self.exit_code or 0)  # TERM after USR2: the job was cancelled, not to be requeued
        # Not while a loader starts its processes and holds signals back, which another thread may have taken.
        if self._waiting and number not in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
            self._waiting = False
            raise Stopped

    def _listen(self, mouth: int, answer: bool) -> None:
        while heard := os.read(mouth, 1):
            if heard[0] in _EXIT_CODES:
                self._answer(heard[0], answer)
        os.close(mouth)

    def _answer(self, number: int, answer: bool) -> None:
        """Say that the request was heard; leave where Ctrl-C was pressed again."""
        now, pressed = time.monotonic(), number == signal.SIGINT
        launched = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_STEP_ID" in os.environ  # who passes signals on
        patience = PATIENCE if launched else SAME_PRESS
        if self._answered_at is None:
            self._answered_at = now
            again = "; Ctrl-C again leaves without saving" if pressed else ""
            if answer:
                say(f"{signal.Signals(number).name}: stopping after this step, saving{again}")
        elif pressed and now - self._answered_at > patience:
            if answer:
                say("left without saving; the same command resumes from the newest state saved before, if there is one")
            os._exit(EXIT_INTERRUPTED)


# Loader processes are forks of the training and hear the same Ctrl-C; theirs is not a second one.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
