from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.programs import ToolFailed, ToolMissing
from pipeline.project import Project
from pipeline.slurm import submit
from scripts.pipeline import run_study
from tests.pipeline.conftest import Fakes, go
from tests.pipeline.heads import study

# Behaves like sbatch --parsable: numbers jobs, refuses dependencies on jobs that it does not know, keeps what it got.
SBATCH = """#!/bin/bash
log="$FAKE_CALLS.sbatch"
[ "$1" = --parsable ] || exit 2
shift
case "$1" in --dependency=afterany:*)
  for job in $(echo "${1#--dependency=afterany:}" | tr : ' '); do
    grep -q "^$job " "$log" || { echo "sbatch: error: Job dependency problem" >&2; exit 1; }
  done; shift ;;
esac
[ -f "$1" ] && head -1 "$1" | grep -q '^#!/bin/bash' || { echo "sbatch: error: no script" >&2; exit 1; }
n=$(( $(cat "$log" 2>/dev/null | wc -l) + 71 ))
echo "$n $1" >> "$log"
echo "$n;cluster"
"""


@pytest.fixture
def sbatch(tools: Fakes, tmp_path: Path) -> Fakes:
    path = tmp_path / "bin" / "sbatch"
    path.write_text(SBATCH)
    path.chmod(0o755)
    return tools


def jobs(tools: Fakes) -> list[Path]:
    return [Path(line.split()[1]) for line in Path(f"{tools.log}.sbatch").read_text().splitlines()]


def test_one_array_for_each_stage_each_after_the_one_before(tmp_path: Path, sbatch: Fakes) -> None:
    extra = '[slurm]\noptions = ["--account=brain"]\narray = 7\n[slurm.stages]\ntrain = ["--gres=gpu:1"]\n'
    project = Project.load(study(tmp_path, extra))
    lines = submit(project)
    stages = list(dict.fromkeys(unit.stage for unit in project.units.values()))
    assert [line.split(":")[0] for line in lines] == stages == [path.stem for path in jobs(sbatch)]
    scripts = {stage: (tmp_path / "work" / ".slurm" / f"{stage}.sh").read_text() for stage in stages}
    for option in ("--array=0-0%7", "--account=brain", "--gres=gpu:1"):
        assert f"#SBATCH {option}\n" in scripts["train"]
    assert "--gres" not in scripts["strip"]
    assert "#SBATCH --array=0-2%7" in scripts["harmonise"]
    after = {line.split(":")[0]: line.rpartition(" ")[2] for line in lines}
    assert [after[stage] for stage in ("strip", "crop", "slices", "segment")] == ["71", "72", "72", "73:74"]


@pytest.mark.slow
def test_the_tasks_do_the_study(tmp_path: Path, sbatch: Fakes) -> None:
    """Run the scripts as Slurm would, in order, task by task; a run afterwards has nothing left to do for these stages."""
    path, only = study(tmp_path, patients=2), ("harmonise/*", "strip/*", "crop/*")
    submit(Project.load(path), only)
    for script in jobs(sbatch):
        for task in ("0", "1"):
            environment = {**os.environ, "SLURM_ARRAY_TASK_ID": task}
            command = ["/bin/bash", str(script)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert ": done" in done.stdout
    project, done_here = go(path, only=only)
    assert done_here == []
    assert submit(project, only) == ["nothing to do"]


def test_write_only_and_refusals(tmp_path: Path, sbatch: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project.load(study(tmp_path))
    assert submit(project, write_only=True)[0].endswith("harmonise.sh")
    assert not Path(f"{sbatch.log}.sbatch").exists()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: Invalid account' >&2\nexit 1\n")
    with pytest.raises(ToolFailed, match=r"sbatch refused .*harmonise\.sh: sbatch: error: Invalid account"):
        submit(project)
    with pytest.raises(ValueError, match="--pdf: not with --slurm"):
        run_study(tmp_path / "study.toml", slurm=True, pdf=True)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ToolMissing, match="sbatch is not on PATH"):
        submit(project)
