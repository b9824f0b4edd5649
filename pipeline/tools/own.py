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
    """``python scripts/segment.py --name NAME --images brain --out folder``."""

    name = "own"
    kind = "segment"
    wants = "brain"
    table = "tissue.toml"
    programs = (Path(sys.executable).name,)
    licence = "Apache-2.0"
    citation = "medsis (CITATION.cff)"
    get = 'train one with `python train.py --model segmenter --name NAME …`, then [tools.own] name = "NAME"'
    settings: ClassVar[dict[str, Any]] = {"name": "", "checkpoints_dir": str(ROOT / "checkpoints")}

    def find(self, settings: Mapping[str, Any]) -> Path | None:
        """This Python, where the script and the run folder are there."""
        name = str(settings.get("name", ""))
        folder = Path(str(settings.get("checkpoints_dir", self.settings["checkpoints_dir"]))) / name
        return Path(sys.executable).absolute() if SCRIPT.is_file() and name and folder.is_dir() else None

    def located(self, settings: Mapping[str, Any]) -> Path | str:
        """ToolMissing that names a run that is not there."""
        found = self.find(settings)
        if found is None and settings.get("name"):
            raise ToolMissing(f"own: no run {settings['name']!r} in {settings['checkpoints_dir']}; {self.get}")
        return super().located(settings)

    def version(self, found: Path | str) -> str:
        """Of medsis."""
        return package_version("medsis") or "unknown"

    def command(self, found: Path, job: Job) -> list[str | Path]:
        """The network of the run."""
        o = job.settings
        words: list[str | Path] = [found, SCRIPT, "--name", o["name"], "--checkpoints_dir", o["checkpoints_dir"]]
        return [*words, "--images", job.image, "--out", self.output(job).parent]

    def output(self, job: Job) -> Path:
        """The labels, under the name of the image."""
        return job.folder / "segmented" / job.image.name
