"""SAMSEG of FreeSurfer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pipeline.tools.base import FreeSurferTool, Job


class Samseg(FreeSurferTool):
    """``run_samseg -i head -o folder``."""

    name = "samseg"
    kind = "segment"
    table = "freesurfer.toml"
    programs = ("run_samseg", "samseg")
    licence = "FreeSurfer licence"
    citation = "Puonti et al., NeuroImage 2016, doi 10.1016/j.neuroimage.2016.09.011"
    settings: ClassVar[dict[str, Any]] = {"lesion": False}

    def command(self, found: Path, job: Job) -> list[str | Path]:
        """lesion: also find white matter lesions (id 99), which need a prior in the atlas."""
        words: list[str | Path] = [found, "-i", job.image, "-o", job.folder, "--threads", str(job.threads)]
        return words + (["--lesion"] if job.settings["lesion"] else [])

    def output(self, job: Job) -> Path:
        """The labels."""
        return job.folder / "seg.mgz"
