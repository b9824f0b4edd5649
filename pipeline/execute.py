"""One unit in a process of its own: ``python -m pipeline.execute study.toml UNIT``; UNIT may be @list:number (Slurm)."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path

from dataloaders.io.files import whole_folder, write_text
from engine.signals import EXIT_USAGE
from pipeline.context import LOG, Context, Excluded, Made
from pipeline.programs import ToolMissing
from pipeline.project import Project
from pipeline.records import Output, Record, State, Unit
from pipeline.rules import RULES


def execute(project: Project, unit: Unit) -> Record:
    """Do a unit in this process and leave its record. Every end is a record: nothing but a kill goes past it."""
    target, key, rule = project.folder(unit), project.key(unit), RULES[unit.stage]
    project.refuse_foreign(unit)
    with whole_folder(target, key if rule.resumable else "") as part:
        context = Context(project.study, project.cases, unit, part, project.upstream(unit))
        start, before = time.monotonic(), _cpu_seconds()
        made, state, reason = _attempt(context)
        spent = round(time.monotonic() - start, 2), round(_cpu_seconds() - before, 2)
        outputs = {name: Output.of(part, file) for name, file in made.outputs.items()}
        reason = reason.replace(str(part), str(target))
        Record(unit.id, key, state, reason, outputs, made.facts, made.tool, *spent).save(part)
    record = project.look(unit)
    assert record is not None
    return record


def _attempt(context: Context) -> tuple[Made, State, str]:
    """What came of it: outputs, state, reason."""
    try:
        return RULES[context.unit.stage].run(context), "done", ""
    except Excluded as found:
        return found.made, "excluded", found.reason
    except ToolMissing as error:
        return Made({}), "missing", str(error)
    except (ValueError, OSError, MemoryError) as error:
        log = {"log": LOG} if (context.folder / LOG).is_file() else {}
        return Made(log), "failed", str(error) or type(error).__name__
    except Exception as error:  # a defect of ours: the rest of the study goes on, the traceback is kept
        write_text(context.folder / "traceback.txt", traceback.format_exc())
        return Made({"traceback": "traceback.txt"}), "failed", f"{type(error).__name__}: {error}"


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def main() -> int:
    """0 where the unit is over, whatever its state: states are in records."""
    study, name = sys.argv[1:3]
    # As an exception, so that a tool that runs is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    project = Project.load(Path(study))
    from_array = name.startswith("@")
    if from_array:
        listed, _, number = name[1:].rpartition(":")
        name = Path(listed).read_text(encoding="utf-8").splitlines()[int(number)]
    if name not in project.units:
        raise ValueError(f"{name}: no such unit of {study}; pipeline.py plan {study} lists them")
    if not project.settled(project.units[name], retry=True):
        record = execute(project, project.units[name])
        if from_array:  # otherwise the runner says it
            print(record.line(), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as problem:  # as engine.command does it, which imports torch
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
