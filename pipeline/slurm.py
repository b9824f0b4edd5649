"""The same plan as Slurm job arrays: one array for each stage, each waiting for the one before, whatever became of it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from dataloaders.io.files import write_text
from pipeline.commands import ToolFailed, ToolMissing, find_program
from pipeline.plan import ORDER
from pipeline.records import Unit
from pipeline.runner import ROOT, Project

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
    for group in ORDER:
        units = [u for u in project.units.values() if u.stage in group and _chosen(u, only)]
        changed = changed or any(not project.current(unit) for unit in units)
        jobs = []
        for stage in group if changed else ():
            chosen = [unit for unit in units if unit.stage == stage]
            if not chosen:
                continue
            script = _write(project, stage, chosen)
            what = f"{stage}: {len(chosen)} tasks"
            if write_only or sbatch is None:
                lines.append(f"{what}, {script}")
                continue
            jobs.append(_sbatch(sbatch, script, previous))
            lines.append(f"{what}, job {jobs[-1]}{' after ' + previous if previous else ''}")
        previous = ":".join(jobs) or previous
    project.hashes.save()
    return lines or ["nothing to do"]


def _chosen(unit: Unit, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch(unit.id, pattern) for pattern in patterns)


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
    text = SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in options),
        root=shlex.quote(str(ROOT)),
        python=shlex.quote(sys.executable),
        study=shlex.quote(str(project.file.resolve())),
        units=shlex.quote(str(listed)),
    )
    write_text(script, text)
    return script


def _sbatch(sbatch: Path, script: Path, previous: str) -> str:
    """The number of the job."""
    command = [str(sbatch), "--parsable"]
    # afterany: a failed case must not stop the others; each unit checks what it needs.
    command += [f"--dependency=afterany:{previous}"] if previous else []
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, check=False)
    number = re.match(r"\d+", done.stdout.strip())
    if done.returncode != 0 or number is None:
        raise ToolFailed(f"sbatch refused {script}: {(done.stderr or done.stdout).strip() or done.returncode}")
    return number[0]
