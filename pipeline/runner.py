"""Runs a plan: what is done stays, what changed is done again, and a kill at any moment costs one unit at most."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from dataloaders.io.files import with_path, write_text
from dataloaders.io.locks import lock_folder
from dataloaders.io.nifti import VolumeError
from pipeline.cases import Case, find_cases
from pipeline.commands import ToolFailed, ToolMissing, die_with_parent
from pipeline.context import Context, Excluded, Made
from pipeline.plan import make_plan
from pipeline.records import (
    BLOCKED,
    STATES,
    FileHashes,
    Record,
    State,
    Unit,
    describe_outputs,
    key_of,
    load_record,
    outputs_intact,
)
from pipeline.stages import STAGES
from pipeline.study import StudyOptions, read_study

ROOT = Path(__file__).resolve().parents[1]
PART, OLD, KEY, LOCKS = ".part", ".old", ".key", ".locks"
_POLL = 0.05  # seconds


@dataclass
class Project:
    """A study with its cases and plan, and what is known of each unit."""

    file: Path
    study: StudyOptions
    cases: dict[str, Case]
    units: dict[str, Unit]
    hashes: FileHashes
    records: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path) -> Project:
        """Of a study file; ValueError for whatever is wrong with it."""
        study = read_study(file)
        try:
            cases = find_cases(study)
            units = {unit.id: unit for unit in make_plan(study, cases)}
        except ValueError as error:
            raise ValueError(with_path(file, error)) from None
        project = cls(file, study, {case.id: case for case in cases}, units, FileHashes(study.work / ".hashes.json"))
        for name in units:
            record = load_record(study.work / name)
            if record is not None:
                project.records[name] = record
        return project

    def folder(self, unit: Unit) -> Path:
        """Where the unit's results are."""
        return self.study.work / unit.id

    def upstream(self, unit: Unit) -> dict[str, Record]:
        """Records of what the unit names, those that there are."""
        names = (*unit.needs, *unit.gathers)
        return {name: self.records[name] for name in names if name in self.records}

    def key(self, unit: Unit) -> str:
        """What the unit's result depends on now."""
        hashes = {f"{i} {path.name}": self.hashes.of(path) for i, path in enumerate(unit.files)}
        return key_of(unit, STAGES[unit.stage].version, self.upstream(unit), hashes)

    def current(self, unit: Unit) -> bool:
        """Whether the record is of the unit as it is now, with all of its files."""
        record = self.records.get(unit.id)
        if record is None or record.key != self.key(unit):
            return False
        return outputs_intact(self.folder(unit), record)

    def reload(self, name: str) -> Record | None:
        """The record as it is on disk now."""
        found = load_record(self.study.work / name)
        if found is None:
            self.records.pop(name, None)
        else:
            self.records[name] = found
        return found


@dataclass(frozen=True)
class RunOptions:
    """How a plan is run. only: patterns of unit ids. retry: run again what has failed."""

    jobs: int = 1
    retry: bool = False
    only: tuple[str, ...] = ()
    own_process: bool = True


def run(project: Project, o: RunOptions, say: Callable[[str], None] = print) -> dict[State, int]:
    """Run every unit that is not current, `jobs` at a time, each in a process of its own; counts by state.

    ValueError where another process runs the study, for numbers out of range, and where a unit's folder is not ours.
    """
    if o.jobs < 1:
        raise ValueError(f"--jobs {o.jobs}: must be at least 1")
    for unit in project.units.values():
        _refuse_foreign(project.folder(unit))
    project.study.work.mkdir(parents=True, exist_ok=True)
    with closing(lock_folder(project.study.work)):
        _sweep(project.study.work)
        waiting = [unit for unit in project.units.values() if _chosen(unit, o.only)]
        running: dict[str, subprocess.Popen] = {}
        over = {name for name in project.units if not _chosen(project.units[name], o.only)}
        try:
            while waiting or running:
                _collect(project, running, over, say)
                started = _start(project, o, waiting, running, over, say)
                if running and not started:
                    time.sleep(_POLL)
        finally:
            _end(running.values())
            project.hashes.save()
    states = [project.records[name].state for name in project.units if name in project.records]
    return {state: states.count(state) for state in STATES}


def _chosen(unit: Unit, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatch(unit.id, pattern) for pattern in patterns)


def _start(
    project: Project,
    o: RunOptions,
    waiting: list[Unit],
    running: dict[str, subprocess.Popen],
    over: set[str],
    say: Callable[[str], None],
) -> bool:
    """Settle or start every waiting unit whose inputs are over; whether there was one."""
    any_started = False
    for unit in list(waiting):
        if not all(name in over for name in (*unit.needs, *unit.gathers) if name in project.units):
            continue
        if len(running) >= o.jobs:
            break
        waiting.remove(unit)
        any_started = True
        if settled(project, unit, o.retry):
            over.add(unit.id)
        elif not o.own_process:
            execute(project, unit)
            _finished(project, unit.id, over, say)
        else:
            say(f"{unit.id} …")
            command = [sys.executable, "-m", "pipeline.execute", str(project.file.resolve()), unit.id]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            running[unit.id] = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the run, which stops its units
                preexec_fn=partial(die_with_parent, signal.SIGTERM),
            )
    return any_started


def settled(project: Project, unit: Unit, retry: bool = False) -> bool:
    """Whether nothing has to be run: the unit is current, or it cannot run because of what it needs (a record says so).

    A tool that was missing is looked for again; a tool that failed is tried again with `retry`.
    """
    blockers = [name for name in unit.needs if (r := project.records.get(name)) is None or r.state != "done"]
    if blockers:
        first = project.records.get(blockers[0])
        reason = f"{blockers[0]} {first.state}: {_root_reason(first)}" if first else f"{blockers[0]} was not run"
        record = Record(unit.id, project.key(unit), "blocked", reason)
        if record != project.records.get(unit.id):
            record.save(project.folder(unit))
        project.records[unit.id] = record
        return True
    blocked = project.folder(unit) / BLOCKED
    if blocked.is_file():
        blocked.unlink()
        project.reload(unit.id)
    if not project.current(unit):
        return False
    state = project.records[unit.id].state
    return state in ("done", "excluded") or (state == "failed" and not retry)


def _root_reason(record: Record) -> str:
    """Of a blocked unit the reason of what blocked it in the first place."""
    return record.reason.partition(": ")[2] if record.state == "blocked" else record.reason


def _collect(
    project: Project, running: dict[str, subprocess.Popen], over: set[str], say: Callable[[str], None]
) -> None:
    for name, process in list(running.items()):
        code = process.poll()
        if code is None:
            continue
        del running[name]
        unit = project.units[name]
        record = load_record(project.folder(unit))
        if record is None or record.key != project.key(unit):
            killed = (
                f"its process was killed by signal {-code}, perhaps for memory" if code < 0 else f"ended with {code}"
            )
            _leave(project, unit, "failed", killed)
        _finished(project, name, over, say)


def _finished(project: Project, name: str, over: set[str], say: Callable[[str], None]) -> None:
    record = project.reload(name)
    assert record is not None
    over.add(name)
    took = f" ({record.seconds:.0f} s)" if record.seconds >= 1 else ""
    say(f"{name}: {record.state}{took}{': ' + record.reason if record.reason else ''}")


def _end(processes: Iterable[subprocess.Popen]) -> None:
    """Stop what still runs; each ends its own tool."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _sweep(work: Path) -> None:
    """Remove what a killed run left half-swapped; unfinished units keep their folder, for those that can go on in it."""
    for pattern in (f"*{OLD}", f"*/*{OLD}", f"*/*/*{OLD}"):
        for path in work.glob(pattern):
            if _is_ours(path):
                shutil.rmtree(path)


def _is_ours(folder: Path) -> bool:
    """Whether a run made the folder: every unit begins with its key and ends with its record."""
    return (folder / KEY).is_file() or load_record(folder) is not None


def _refuse_foreign(target: Path) -> None:
    """ValueError where the unit's folder, or one that it is swapped through, exists and holds files of somebody else."""
    for folder in (target, *(target.with_name(target.name + ending) for ending in (PART, OLD))):
        if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder):
            raise ValueError(f"{folder}: holds files that no run of this study wrote; move it, or choose another work")
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: is a file where the study wants a folder; move it, or choose another work")


def execute(project: Project, unit: Unit) -> Record:
    """Do a unit in this process and leave its record. Every end is a record: nothing but a kill goes past it."""
    target = project.folder(unit)
    part = target.with_name(f"{target.name}{PART}")
    key = project.key(unit)
    stage = STAGES[unit.stage]
    _refuse_foreign(target)
    with _held(project, unit):
        resumed = stage.resumable and (part / KEY).is_file() and (part / KEY).read_text(encoding="ascii") == key
        if not resumed:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            write_text(part / KEY, key)
        context = Context(project.study, project.cases, unit, part, project.upstream(unit))
        start, before = time.monotonic(), _cpu_seconds()
        try:
            made, state, reason = stage.run(context), "done", ""
        except Excluded as found:
            made, state, reason = found.made, "excluded", found.reason
        except ToolMissing as error:
            made, state, reason = Made({}), "missing", str(error)
        except (ToolFailed, VolumeError, ValueError, OSError, MemoryError) as error:
            made, state, reason = _kept_log(part), "failed", str(error) or type(error).__name__
        except Exception as error:  # a defect of ours: the rest of the study goes on, the traceback is kept
            write_text(part / "traceback.txt", traceback.format_exc())
            made, state, reason = Made({"traceback": "traceback.txt"}), "failed", f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - start
        reason = reason.replace(str(part), str(target))
        outputs = describe_outputs(part, made.outputs)
        spent = round(seconds, 2), round(_cpu_seconds() - before, 2)
        record = Record(unit.id, key, state, reason, outputs, made.facts, made.tool, *spent)  # type: ignore[arg-type]
        record.save(part)
        _swap(part, target)
    project.records[unit.id] = record
    return record


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _kept_log(part: Path) -> Made:
    return Made({"log": "log.txt"} if (part / "log.txt").is_file() else {})


def _leave(project: Project, unit: Unit, state: State, reason: str) -> None:
    """A record in the place of one that could not be written."""
    target = project.folder(unit)
    part = target.with_name(f"{target.name}{PART}")
    part.mkdir(parents=True, exist_ok=True)
    record = Record(unit.id, project.key(unit), state, reason, describe_outputs(part, _kept_log(part).outputs))
    record.save(part)
    _swap(part, target)


def _swap(part: Path, target: Path) -> None:
    """Put the finished folder in its place. Killed in between, the unit is run again."""
    old = target.with_name(f"{target.name}{OLD}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(part, target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _held(project: Project, unit: Unit) -> Iterator[None]:
    """Nobody else does the same unit at the same time, e.g. another array of the same study."""
    folder = project.study.work / LOCKS / unit.id
    folder.mkdir(parents=True, exist_ok=True)
    with closing(lock_folder(folder)):
        yield
