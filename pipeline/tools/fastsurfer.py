"""FastSurfer, segmentation only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pipeline.tools.base import ExternalTool, Job


class FastSurfer(ExternalTool):
    """``run_fastsurfer.sh --t1 head --sid case --sd folder --seg_only``: a whole head, as its authors ask for."""

    name = "fastsurfer"
    kind = "segment"
    table = "freesurfer.toml"
    programs = ("run_fastsurfer.sh",)
    homes = ("FASTSURFER_HOME",)
    licence = "Apache-2.0"
    citation = "Henschel et al., NeuroImage 2020, doi 10.1016/j.neuroimage.2020.117012"
    get = "clone https://github.com/Deep-MI/FastSurfer, set FASTSURFER_HOME; weights come with its first run"
    settings: ClassVar[dict[str, Any]] = {"device": "cpu", "license": "", "python": "python3"}

    def command(self, found: Path, job: Job) -> list[str | Path]:
        """Only the network of the whole brain: no cerebellum, hypothalamus, or bias field of its own."""
        o = job.settings
        words: list[str | Path] = [found, "--t1", job.image, "--sid", "case", "--sd", job.folder, "--seg_only"]
        words += ["--no_cereb", "--no_hypothal", "--no_biasfield", "--device", o["device"], "--py", o["python"]]
        words += ["--threads", str(job.threads)]
        return words + (["--fs_license", o["license"]] if o["license"] else [])

    def output(self, job: Job) -> Path:
        """Labels without the corpus callosum, which is white matter in them."""
        return job.folder / "case" / "mri" / "aseg.auto_noCCseg.mgz"
