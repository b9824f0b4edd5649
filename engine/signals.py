"""Stop requests from Slurm and the keyboard: a handler sets a flag, the loop acts on it between steps."""

from __future__ import annotations

import signal
import sys
from types import FrameType

EXIT_USAGE = 2
EXIT_WEIGHTS_MISSING = 3
EXIT_DIVERGED = 4
EXIT_STALLED = 5
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
EXIT_TIME_LIMIT = 85  # resumable; batch.sh requeues the job

_EXIT_CODES = {signal.SIGUSR2: EXIT_TIME_LIMIT, signal.SIGTERM: EXIT_TERMINATED, signal.SIGINT: EXIT_INTERRUPTED}


class StopRequest:
    """`exit_code` is None until a signal asks to stop; a second signal leaves at once."""

    def __init__(self) -> None:
        self.exit_code: int | None = None

    def install(self) -> None:
        """Listen to USR2 (Slurm's warning before the time limit), TERM and INT."""
        for number in _EXIT_CODES:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        code = _EXIT_CODES[signal.Signals(number)]
        if self.exit_code is not None:
            sys.exit(code)
        self.exit_code = code
