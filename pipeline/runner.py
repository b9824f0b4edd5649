"""Runs a plan: what is done stays, what changed is done again, and a kill at any moment costs one unit at most."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial

from dataloaders.io.files import whole_folder
from dataloaders.io.locks import lock_folder
from pipeline.context import LOG
from pipeline.programs import die_with_parent
from pipeline.project import Project
from pipeline.records import Output, Record, State, Unit
from pipeline.tools.base import ROOT

_POLL = 0.05  # seconds


def run(
    project: Project, jobs: int = 1, retry: bool = False, only: Sequence[str] = (), say: Callable[[str], None] = print
) -> Counter[State]:
    """Run every unit that is not current, `jobs` at a time, each in a process of its own; counts by state.

    only: patterns of unit ids. retry: run again what has failed. ValueError where another process runs the study, for
    numbers out of range, and where a unit's folder is not ours.
    """
    if jobs < 1:
        raise ValueError(f"--jobs {jobs}: must be at least 1")
    for unit in project.units.values():
        project.refuse_foreign(unit)
    project.study.work.mkdir(parents=True, exist_ok=True)
    waiting = {unit.id: unit for unit in project.chosen(only)}
    named = [*waiting]
    running: dict[str, subprocess.Popen] = {}
    with lock_folder(project.study.work):
        try:
            while waiting or running:
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    say(_finished(project, project.units[name], running.pop(name).returncode).line())
                busy = {*waiting, *running}
                ready = next((unit for unit in waiting.values() if busy.isdisjoint(unit.upstream)), None)
                if ready is None or len(running) >= jobs:
                    time.sleep(_POLL)
                    continue
                del waiting[ready.id]
                if not project.settled(ready, retry):
                    say(f"{ready.id} …")
                    running[ready.id] = start(project, ready)
        finally:
            _end(running.values())
    unreached = [name for name in named if name not in project.records]
    return Counter([record.state for record in project.records.values()] + ["blocked"] * len(unreached))


def start(project: Project, unit: Unit) -> subprocess.Popen:
    """The unit in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.execute", str(project.file.resolve()), unit.id],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the run, which stops its units
        preexec_fn=partial(die_with_parent, signal.SIGTERM),
    )


def _finished(project: Project, unit: Unit, code: int) -> Record:
    """The unit's record; one that says so where its process ended without."""
    record = project.look(unit)
    if record is None or record.key != project.key(unit):
        reason = f"its process was killed by signal {-code}, perhaps for memory" if code < 0 else f"ended with {code}"
        with whole_folder(project.folder(unit), project.key(unit)) as part:
            log = {"log": Output.of(part, LOG)} if (part / LOG).is_file() else {}
            Record(unit.id, project.key(unit), "failed", reason, log).save(part)
        record = project.look(unit)
    assert record is not None
    return record


def _end(processes: Collection[subprocess.Popen]) -> None:
    """Stop what still runs; each ends its own tool."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
