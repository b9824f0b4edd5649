from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.doctor import examine
from tests.launch import call
from tests.pipeline.conftest import Fakes
from tests.pipeline.heads import study

pytestmark = pytest.mark.slow


def states(lines: list[str]) -> dict[str, bool]:
    """Tool -> there."""
    rows = lines[1 : lines.index("machine:")]
    return {row[4:].split()[0]: "missing:" not in row for row in rows}


@pytest.mark.usefixtures("bare")
def test_a_bare_machine() -> None:
    """Only what comes with medsis is there; every other tool has one line that says how to get it."""
    lines, lacking = examine(None)
    found = states(lines)
    assert {name for name, there in found.items() if there} == {"hmrf", "atlas", "labels"}
    assert (len(found), lacking) == (15, [])
    assert not any("\n" in line for line in lines)
    for get in ("install FSL", "brainextractor==0.3.0", "deepbet==1.0.2", "pip install nnunetv2==2.8.1"):
        assert get in "".join(lines)


def test_what_a_study_lacks(tmp_path: Path, tools: Fakes) -> None:
    extra = (
        '[strip]\ntools = ["bet", "bet-wide"]\n[segment]\ntools = ["hmrf", "fast"]\n[tools.bet-wide]\ntool = "bet"\n'
    )
    path = study(tmp_path, extra)
    assert examine(path)[1] == []
    (tmp_path / "bin" / "fast").unlink()
    (tmp_path / "bin" / "nnUNetv2_train").unlink()
    lines, lacking = examine(path)
    assert lacking == ["fast", "nnunetv2"]
    assert "missing for this study: fast, nnunetv2" in lines
    assert any(line.startswith("  * bet-wide (bet)") for line in lines)
    assert any(line.startswith("    hdbet") for line in lines)


def test_the_command_checks_the_study(tmp_path: Path) -> None:
    path = study(tmp_path, "[slurm]\narray = 0\n")
    said = call("scripts/pipeline.py", "doctor", path, code=2).stderr
    assert said.strip() == f"error: {path}: slurm.array: found 0, must be at least 1"
