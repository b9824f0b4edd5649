"""train.py at a pace that a test can follow: MEDSIS_STEP_SECONDS of sleep after each step, in a job's first life only."""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.run import Run
from models.base import Batch

SECONDS = float(os.environ.get("MEDSIS_STEP_SECONDS", 0)) if not int(os.environ.get("SLURM_RESTART_COUNT", 0)) else 0.0
report = Run.report


def slow_report(self: Run, batch: Batch) -> None:
    time.sleep(SECONDS)
    report(self, batch)


if __name__ == "__main__":
    Run.report = slow_report  # type: ignore[method-assign]
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
