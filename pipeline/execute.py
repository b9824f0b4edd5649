"""One unit in a process of its own: ``python -m pipeline.execute study.toml UNIT``; UNIT may be @list:number (Slurm)."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

from engine.signals import EXIT_USAGE
from pipeline.runner import Project, execute, settled


def main() -> int:
    """0 where the unit is over, whatever its state: states are in records."""
    study, name = sys.argv[1:3]
    signal.signal(signal.SIGTERM, _terminate)
    project = Project.load(Path(study))
    from_array = name.startswith("@")
    if from_array:
        listed, _, number = name[1:].rpartition(":")
        name = Path(listed).read_text(encoding="utf-8").splitlines()[int(number)]
    if name not in project.units:
        raise ValueError(f"{name}: no such unit of {study}; pipeline.py plan {study} lists them")
    unit = project.units[name]
    if not settled(project, unit, retry=True):
        record = execute(project, unit)
        if from_array:  # otherwise the runner says it
            print(f"{name}: {record.state}{': ' + record.reason if record.reason else ''}", flush=True)
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    """As an exception, so that a tool that runs is stopped on the way out."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as problem:  # as engine.command does it, which imports torch
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
