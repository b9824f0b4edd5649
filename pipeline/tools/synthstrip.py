"""SynthStrip of FreeSurfer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pipeline.tools.base import FreeSurferTool, Job


class SynthStrip(FreeSurferTool):
    """``mri_synthstrip -i head -m mask -b border``."""

    name = "synthstrip"
    kind = "strip"
    programs = ("mri_synthstrip", "nipreps-synthstrip")
    licence = "FreeSurfer licence"
    citation = "Hoopes et al., NeuroImage 2022, doi 10.1016/j.neuroimage.2022.119474"
    settings: ClassVar[dict[str, Any]] = {"border": 1, "gpu": False, "model": ""}

    def command(self, found: Path, job: Job) -> list[str | Path]:
        """model: weights by path, which nipreps-synthstrip needs."""
        o = job.settings
        words: list[str | Path] = [found, "-i", job.image, "-o", job.folder / "brain.nii.gz", "-m", self.output(job)]
        words += ["-b", str(o["border"])]
        words += ["-g"] if o["gpu"] else []
        return words + (["--model", o["model"]] if o["model"] else [])

    def output(self, job: Job) -> Path:
        """The brain mask."""
        return job.folder / "mask.nii.gz"
