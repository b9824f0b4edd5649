"""SynthSR of FreeSurfer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pipeline.tools.base import FreeSurferTool, Job


class SynthSR(FreeSurferTool):
    """``mri_synthsr --i head --o out``. It ends with 0 even where it could not read its image."""

    name = "synthsr"
    kind = "harmonise"
    programs = ("mri_synthsr",)
    licence = "FreeSurfer licence"
    citation = "Iglesias et al., Sci. Adv. 2023, doi 10.1126/sciadv.add3607"
    settings: ClassVar[dict[str, Any]] = {"gpu": False, "lowfield": False}

    def command(self, found: Path, job: Job) -> list[str | Path]:
        """A synthetic 1 mm MP-RAGE."""
        o = job.settings
        words: list[str | Path] = [found, "--i", job.image, "--o", self.output(job), "--threads", str(job.threads)]
        return words + ([] if o["gpu"] else ["--cpu"]) + (["--lowfield"] if o["lowfield"] else [])

    def output(self, job: Job) -> Path:
        """The image."""
        return job.folder / "synthsr.nii.gz"
