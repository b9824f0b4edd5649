"""The segmenter of this repository: a network trained with train.py --model segmenter."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pipeline.commands import ToolMissing
from pipeline.tools.base import ExternalTool, Job, package_version

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "segment.py"


class Own(ExternalTool):
    """``python scripts/segment.py --input scan --output labels.nii.gz --checkpoint RUN``.

    Its labels are those that it was trained with: GM 1, WM 2, CSF 3 by default; tissue.tables names another table.
    """

    name = "own"
    kind = "segment"
    wants = "brain"
    table = "tissue.toml"
    programs = (Path(sys.executable).name,)
    licence = "Apache-2.0"
    citation = "medsis (CITATION.cff)"
    get = 'train one (`python train.py --model segmenter --name NAME …`), then [tools.own] checkpoint = "checkpoints/NAME"'
    settings: ClassVar[dict[str, Any]] = {"checkpoint": "", "input": "brain", "device": "cpu"}

    def check(self, settings: Mapping[str, Any], where: str) -> None:
        """What it was trained on decides what it gets."""
        if settings["input"] not in ("brain", "head"):
            raise ValueError(f"{where} input = {settings['input']!r}: must be brain or head")

    def find(self, settings: Mapping[str, Any]) -> Path | None:
        """This Python, where the script and the run folder or weight file are there."""
        checkpoint = str(settings.get("checkpoint", ""))
        ready = SCRIPT.is_file() and checkpoint and Path(checkpoint).exists()
        return Path(sys.executable).absolute() if ready else None

    def located(self, settings: Mapping[str, Any]) -> Path | str:
        """ToolMissing that names a run that is not there."""
        checkpoint = str(settings.get("checkpoint", ""))
        if checkpoint and not Path(checkpoint).exists():
            raise ToolMissing(f"own: checkpoint = {checkpoint}: no such run or weight file; {self.get}")
        return super().located(settings)

    def version(self, found: Path | str) -> str:
        """Of medsis."""
        return package_version("medsis") or "unknown"

    def command(self, found: Path, job: Job) -> list[str | Path]:
        """One scan, no picture."""
        o = job.settings
        words: list[str | Path] = [found, SCRIPT, "--input", job.image, "--output", self.output(job)]
        words += ["--checkpoint", o["checkpoint"], "--device", o["device"], "--threads", str(job.threads)]
        return [*words, "--no-qc"]

    def output(self, job: Job) -> Path:
        """The labels, on the scan's grid."""
        return job.folder / "labels.nii.gz"
