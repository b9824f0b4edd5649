from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.commands import ToolFailed, ToolMissing
from pipeline.runner import Project, RunOptions, run
from pipeline.slurm import submit
from tests.pipeline.conftest import Fakes
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
    assert [line.split(":")[0] for line in lines] == stages
    assert [path.stem for path in jobs(sbatch)] == stages
    assert lines[1].endswith("after 71")
    script = (tmp_path / "work" / ".slurm" / "train.sh").read_text()
    assert "#SBATCH --array=0-0%7" in script
    assert "#SBATCH --account=brain" in script
    assert "#SBATCH --gres=gpu:1" in script
    assert "--gres" not in (tmp_path / "work" / ".slurm" / "strip.sh").read_text()
    assert "#SBATCH --array=0-2%7" in (tmp_path / "work" / ".slurm" / "harmonise.sh").read_text()
    group = [line for line in lines if line.startswith(("crop", "slices"))]  # side by side, both after strip
    assert [line.rpartition(" ")[2] for line in group] == ["72", "72"]
    after = next(line for line in lines if line.startswith("segment"))
    assert after.endswith("after 73:74")


def test_the_tasks_do_the_study(tmp_path: Path, sbatch: Fakes) -> None:
    """Run the scripts as Slurm would, in order, task by task; a run afterwards has nothing left to do for these stages."""
    path = study(tmp_path, patients=2)
    submit(Project.load(path), only=("harmonise/*", "strip/*", "crop/*"))
    for script in jobs(sbatch):
        for task in range(2):
            environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}
            done = subprocess.run(
                ["/bin/bash", str(script)], env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert ": done" in done.stdout
    project = Project.load(path)
    lines: list[str] = []
    run(project, RunOptions(own_process=False, only=("harmonise/*", "strip/*", "crop/*")), lines.append)
    assert lines == []
    assert submit(project, only=("harmonise/*", "strip/*", "crop/*")) == ["nothing to do"]


def test_write_only_and_refusals(tmp_path: Path, sbatch: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project.load(study(tmp_path))
    lines = submit(project, write_only=True)
    assert lines[0].endswith("harmonise.sh")
    assert not Path(f"{sbatch.log}.sbatch").exists()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: Invalid account' >&2\nexit 1\n")
    with pytest.raises(ToolFailed, match=r"sbatch refused .*harmonise\.sh: sbatch: error: Invalid account"):
        submit(project)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ToolMissing, match="sbatch is not on PATH"):
        submit(project)
