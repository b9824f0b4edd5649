"""The same plan as Slurm job arrays: one array for each stage, each waiting for the one before, whatever became of it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from dataloaders.io.files import write_text
from pipeline.programs import ToolFailed, ToolMissing, find_program
from pipeline.project import Project
from pipeline.records import Unit
from pipeline.rules import RULES
from pipeline.tools.base import ROOT

FOLDER = ".slurm"

# The task number picks a line of the list; the unit itself finds out whether there is anything to do.
SCRIPT = """#!/bin/bash
{options}
export PYTHONPATH={root}
exec {python} -m pipeline.execute {study} @{units}:$SLURM_ARRAY_TASK_ID
"""


def submit(project: Project, only: Sequence[str] = (), write_only: bool = False) -> list[str]:
    """Write a list of units and a job script for every stage that has something to do, and submit them; lines to print.

    A stage counts as having something to do where a unit is not current now, and every stage after it, because its
    inputs may change. ToolMissing without sbatch, ToolFailed where it refuses.
    """
    sbatch = find_program(["sbatch"])
    if sbatch is None and not write_only:
        raise ToolMissing("sbatch is not on PATH: submit from a login node of a cluster, or give --write_only")
    lines: list[str] = []
    previous, changed = "", False
    for _, stages in groupby(RULES, lambda stage: RULES[stage].rank):
        units = {stage: [unit for unit in project.chosen(only) if unit.stage == stage] for stage in stages}
        changed = changed or any(not project.current(unit) for some in units.values() for unit in some)
        jobs = []
        for stage, some in units.items() if changed else ():
            if not some:
                continue
            script = _write(project, stage, some)
            what = f"{stage}: {len(some)} tasks"
            if write_only or sbatch is None:
                lines.append(f"{what}, {script}")
                continue
            jobs.append(_sbatch(sbatch, script, previous))
            lines.append(f"{what}, job {jobs[-1]}{' after ' + previous if previous else ''}")
        previous = ":".join(jobs) or previous
    return lines or ["nothing to do"]


def _write(project: Project, stage: str, units: Sequence[Unit]) -> Path:
    folder = (project.study.work / FOLDER).resolve()
    listed, script = folder / f"{stage}.txt", folder / f"{stage}.sh"
    write_text(listed, "".join(f"{unit.id}\n" for unit in units))
    o = project.study.slurm
    options = [
        f"--job-name={project.study.name}-{stage}",
        f"--array=0-{len(units) - 1}%{o.array}",
        f"--output={folder}/{stage}-%a.out",
        *o.options,
        *o.stages.get(stage, ()),
    ]
    paths = {"root": ROOT, "python": sys.executable, "study": project.file.resolve(), "units": listed}
    quoted = {name: shlex.quote(str(path)) for name, path in paths.items()}
    write_text(script, SCRIPT.format(options="\n".join(f"#SBATCH {option}" for option in options), **quoted))
    return script


def _sbatch(sbatch: Path, script: Path, previous: str) -> str:
    """The number of the job."""
    # afterany: a failed case must not stop the others; each unit checks what it needs.
    after = [f"--dependency=afterany:{previous}"] if previous else []
    done = subprocess.run([sbatch, "--parsable", *after, script], capture_output=True, text=True, check=False)
    number = re.match(r"\d+", done.stdout.strip())
    if done.returncode != 0 or number is None:
        raise ToolFailed(f"sbatch refused {script}: {(done.stderr or done.stdout).strip() or done.returncode}")
    return number[0]
