"""Stop requests from Slurm and the keyboard: a handler sets a flag, the loop acts on it between steps."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

EXIT_USAGE = 2
EXIT_WEIGHTS_MISSING = 3
EXIT_DIVERGED = 4
EXIT_STALLED = 5
EXIT_MEMORY = 6
EXIT_LOST_RANK = 7
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
EXIT_TIME_LIMIT = 85  # resumable; batch.sh requeues the job

_EXIT_CODES = {signal.SIGUSR2: EXIT_TIME_LIMIT, signal.SIGTERM: EXIT_TERMINATED, signal.SIGINT: EXIT_INTERRUPTED}


PATIENCE = 3.0  # seconds


class StopRequest:
    """`exit_code` is None until a signal asks to stop; another one some seconds later leaves at once.

    Not right away: scancel reaches a process twice, from Slurm itself and through srun, and Ctrl-C under torchrun too.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._asked_at: float | None = None  # of this process; `exit_code` may come from another rank

    def install(self) -> None:
        """Listen to USR2 (Slurm's warning before the time limit), TERM and INT."""
        for number in _EXIT_CODES:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        code = _EXIT_CODES[signal.Signals(number)]
        now = time.monotonic()  # not the wall clock, which may be set back
        if self._asked_at is None:
            self._asked_at = now
        elif now - self._asked_at > PATIENCE:
            sys.exit(code)
        self.exit_code = max(code, self.exit_code or 0)  # TERM after USR2: the job was cancelled, not to be requeued
