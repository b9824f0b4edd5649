"""Raw scans to a tissue-segmentation study: ``python scripts/pipeline.py run|plan|status|doctor study.toml``."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip
import tyro

from dataloaders.io.schema import refused_in_one_line
from engine.command import exit_code
from evaluation.report.pdf import print_pdf
from pipeline.doctor import examine
from pipeline.project import Project
from pipeline.records import STATES
from pipeline.rules import RULES
from pipeline.runner import run
from pipeline.slurm import submit

StudyFile = Annotated[Path, tyro.conf.Positional]


def run_study(
    study: StudyFile,
    jobs: int = 1,
    retry: bool = False,
    only: tuple[str, ...] = (),
    slurm: bool = False,
    write_only: bool = False,
    pdf: bool = False,
) -> int:
    """Run a study, or go on with it: what is done and has not changed stays.

    Args:
        study: Study file.
        jobs: Units at a time.
        retry: Try again what has failed.
        only: Patterns of units, such as 'segment/*' or '*/sub-01'; as listed by plan.
        slurm: Submit job arrays instead, one for each stage, each waiting for the one before.
        write_only: With --slurm: write the job scripts, submit nothing.
        pdf: Also write the report as PDF, by the Chromium or Chrome that is installed.
    """
    if write_only and not slurm:
        raise ValueError("--write_only: only with --slurm")
    if pdf and slurm:
        raise ValueError("--pdf: not with --slurm; run again without it when the jobs are done")
    project = Project.load(study)
    if slurm:
        print("\n".join(submit(project, only, write_only)))
        return 0
    counts = run(project, jobs, retry, only, lambda line: print(line, flush=True))
    print(", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))
    print("".join(f"{line}\n" for line in problems(project)), end="", file=sys.stderr)
    report = project.study.work / "report" / "report.html"
    if report.is_file():
        print(f"report: {report.resolve()}")
        if pdf:
            print(print_pdf(report))
    return int(counts["done"] < counts.total())


def show_plan(study: StudyFile) -> int:
    """List all units of a study and what run would do with them; runs nothing.

    ``run`` stands before a unit that is new or changed, else its state. One behind a unit that will run is judged by what
    is on disk now; it runs only if the result of that unit changes.

    Args:
        study: Study file.
    """
    project = Project.load(study)
    words = [project.records[name].state if project.current(unit) else "run" for name, unit in project.units.items()]
    for word, name in zip(words, project.units, strict=True):
        print(f"{word:<9} {name}")
    print(", ".join(f"{n} {word}" for word, n in Counter(words).items()))
    return 0


def show_status(study: StudyFile) -> int:
    """Counts by stage, and every unit that is not done, with its reason.

    Args:
        study: Study file.
    """
    project = Project.load(study)
    print(f"{project.study.name}: {len(project.cases)} cases, {len(project.units)} units in {project.study.work}")
    for stage in RULES:
        names = [unit.id for unit in project.units.values() if unit.stage == stage]
        words = Counter(project.records[name].state if name in project.records else "to do" for name in names)
        if names:
            print(f"  {stage:<11} {', '.join(f'{n} {word}' for word, n in sorted(words.items()))}")
    print("".join(f"{line}\n" for line in problems(project)), end="")
    return 0


def show_doctor(study: Annotated[Path | None, tyro.conf.Positional] = None) -> int:
    """Which tools are there, in which version, and how to get those that are not.

    Args:
        study: Study file: what it lacks.
    """
    lines, lacking = examine(study)
    print("\n".join(lines))
    return int(bool(lacking))


def problems(project: Project) -> list[str]:
    """A line for every unit that is not done for a reason of its own; those that only wait for these are left out."""
    found = [project.records[name] for name in project.units if name in project.records]
    return [f"{r.unit}: {r.state}: {r.reason}" for r in found if r.state not in ("done", "blocked")]


def main() -> int:
    """Exit code: 0 all done, 1 something could not be done, 2 a fault in the study file."""
    commands = {"run": run_study, "plan": show_plan, "status": show_status, "doctor": show_doctor}
    with refused_in_one_line():
        command: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
            {name: _read_first(command) for name, command in commands.items()},
            prog="pipeline.py",
            description="Raw scans to a tissue-segmentation study.",
            use_underscores=True,
        )
    return command()


def _read_first(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """The command with its options, to be called when all of them are read."""

    @functools.wraps(command)
    def read(*given: Any, **named: Any) -> Callable[[], int]:
        return functools.partial(command, *given, **named)

    return read


if __name__ == "__main__":
    sys.exit(exit_code(main))
