"""The four commands of scripts/pipeline.py."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.doctor import examine
from pipeline.plan import ORDER
from pipeline.records import Unit
from pipeline.runner import Project, RunOptions, run
from pipeline.slurm import submit

Study = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class Run:
    """Run a study, or go on with it: what is done and has not changed stays."""

    study: Study
    """Study file."""
    jobs: int = 1
    """Units at a time."""
    retry: bool = False
    """Try again what has failed."""
    only: tuple[str, ...] = ()
    """Patterns of units, such as 'segment/*' or '*/sub-01'; as listed by plan."""
    slurm: bool = False
    """Submit job arrays instead, one for each stage, each waiting for the one before."""
    write_only: bool = False
    """With --slurm: write the job scripts, submit nothing."""


@dataclass(frozen=True)
class Plan:
    """List all units of a study and what run would do with them; runs nothing."""

    study: Study
    """Study file."""


@dataclass(frozen=True)
class Status:
    """Counts by stage, and every unit that is not done, with its reason."""

    study: Study
    """Study file."""


@dataclass(frozen=True)
class Doctor:
    """Which tools are there, in which version, and how to get those that are not."""

    study: Annotated[Path | None, tyro.conf.Positional] = None
    """Study file: also say what this study lacks (exit code 1 if it lacks a tool)."""


def main() -> int:
    """Exit codes: 0 fine, 1 a part of the study could not be done, 2 a fault in the study file."""
    chosen = tyro.cli(
        Annotated[Run, tyro.conf.subcommand("run")]
        | Annotated[Plan, tyro.conf.subcommand("plan")]
        | Annotated[Status, tyro.conf.subcommand("status")]
        | Annotated[Doctor, tyro.conf.subcommand("doctor")],
        prog="pipeline.py",
        description="Raw scans to a tissue-segmentation study.",
    )
    if isinstance(chosen, Doctor):
        lines, lacking = examine(chosen.study)
        print("\n".join(lines))
        return 1 if lacking else 0
    project = Project.load(chosen.study)
    if isinstance(chosen, Run):
        return _run(project, chosen)
    return _plan(project) if isinstance(chosen, Plan) else _status(project)


def _run(project: Project, o: Run) -> int:
    if o.write_only and not o.slurm:
        raise ValueError("--write_only: only with --slurm")
    if o.slurm:
        for line in submit(project, o.only, o.write_only):
            print(line)
        return 0
    counts = run(project, RunOptions(o.jobs, o.retry, o.only), lambda line: print(line, flush=True))
    print(", ".join(f"{n} {state}" for state, n in counts.items() if n))
    for line in problems(project):
        print(line, file=sys.stderr)
    report = project.study.work / "report" / "report.html"
    if report.is_file():
        print(f"report: {report.resolve()}")
    return 1 if any(n for state, n in counts.items() if state != "done") else 0


def problems(project: Project) -> list[str]:
    """A line for every unit that is not done for a reason of its own; those that only wait for these are left out."""
    found = [project.records[name] for name in project.units if name in project.records]
    return [f"{r.unit}: {r.state}: {r.reason}" for r in found if r.state not in ("done", "blocked")]


def _plan(project: Project) -> int:
    """Every unit in order; what its record says, and whether it would run again."""
    counts: Counter[str] = Counter()
    for unit in project.units.values():
        word = plan_word(project, unit)
        counts[word] += 1
        print(f"{word:<9} {unit.id}")
    print(", ".join(f"{n} {word}" for word, n in counts.items()))
    return 0


def plan_word(project: Project, unit: Unit) -> str:
    """``run`` for a unit that is new or changed, else its state. One behind a unit that will run is judged by what is
    on disk now; it runs only if the result of that unit changes.
    """
    return project.records[unit.id].state if project.current(unit) else "run"


def _status(project: Project) -> int:
    """A table of stages, then the reasons."""
    print(f"{project.study.name}: {len(project.cases)} cases, {len(project.units)} units in {project.study.work}")
    for stage in (stage for group in ORDER for stage in group):
        units = [unit for unit in project.units.values() if unit.stage == stage]
        if units:
            words = Counter(project.records[u.id].state if u.id in project.records else "to do" for u in units)
            print(f"  {stage:<11} {', '.join(f'{n} {word}' for word, n in sorted(words.items()))}")
    for line in problems(project):
        print(line)
    return 0
