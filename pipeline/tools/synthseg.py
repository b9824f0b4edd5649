"""SynthSeg of FreeSurfer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pipeline.tools.base import FreeSurferTool, Job


class SynthSeg(FreeSurferTool):
    """``mri_synthseg --i head --o labels``; labels come at 1 mm and are brought to the scan's grid by us."""

    name = "synthseg"
    kind = "segment"
    table = "freesurfer.toml"
    programs = ("mri_synthseg",)
    licence = "FreeSurfer licence (SynthSeg itself: Apache-2.0)"
    citation = "Billot et al., Med. Image Anal. 2023, doi 10.1016/j.media.2023.102789"
    settings: ClassVar[dict[str, Any]] = {"robust": False, "gpu": False}

    def command(self, found: Path, job: Job) -> list[str | Path]:
        """robust: for clinical scans, slower."""
        o = job.settings
        words: list[str | Path] = [found, "--i", job.image, "--o", self.output(job), "--threads", str(job.threads)]
        return words + ([] if o["gpu"] else ["--cpu"]) + (["--robust"] if o["robust"] else [])

    def output(self, job: Job) -> Path:
        """The labels."""
        return job.folder / "labels.nii.gz"
