"""HD-BET 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pipeline.tools.base import ExternalTool, Job, package_version


class HdBet(ExternalTool):
    """``hd-bet -i head -o brain.nii.gz --save_bet_mask``; the mask stands beside the brain."""

    name = "hdbet"
    kind = "strip"
    programs = ("hd-bet",)
    licence = "Apache-2.0"
    citation = "Isensee et al., Hum. Brain Mapp. 2019, doi 10.1002/hbm.24750"
    get = "pip install hd-bet==2.0.1; its weights (Zenodo 14445620) must lie in ~/hd-bet_params where there is no internet"
    settings: ClassVar[dict[str, Any]] = {"device": "cpu", "tta": False}

    def version(self, found: Path | str) -> str:
        """Of the package where it is in this environment."""
        return package_version("hd-bet") or "unknown"

    def command(self, found: Path, job: Job) -> list[str | Path]:
        """Without mirroring on the CPU."""
        o = job.settings
        words: list[str | Path] = [
            found,
            "-i",
            job.image,
            "-o",
            job.folder / "brain.nii.gz",
            "-device",
            o["device"],
            "--save_bet_mask",
        ]
        return words + ([] if o["tta"] else ["--disable_tta"])

    def output(self, job: Job) -> Path:
        """The brain mask, as HD-BET 2 names it."""
        return job.folder / "brain_bet.nii.gz"
