"""FSL FAST."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.tools.base import ExternalTool, Job


class Fast(ExternalTool):
    """``fast -t 1 -n 3 -o prefix brain``. The hard labels are used: a PVE file is no label map."""

    name = "fast"
    kind = "segment"
    wants = "brain"
    table = "fast.toml"
    programs = ("fast", "fsl-fast")
    homes = ("FSLDIR",)
    licence = "FSL licence, non-commercial"
    citation = "Zhang et al., IEEE TMI 2001, doi 10.1109/42.906424"
    get = "install FSL (https://fsl.fmrib.ox.ac.uk) and set FSLDIR"

    def version(self, found: Path | str) -> str:
        """Of FSL."""
        path = Path(os.environ.get("FSLDIR", Path(found).parent.parent)) / "etc" / "fslversion"
        return path.read_text(encoding="utf-8").strip() if path.is_file() else "unknown"

    def command(self, found: Path, job: Job) -> list[str | Path]:
        """Three classes of a T1w image."""
        return [found, "-t", "1", "-n", "3", "-o", job.folder / "fast", job.image]

    def output(self, job: Job) -> Path:
        """Hard labels 1, 2, 3."""
        return job.folder / "fast_seg.nii.gz"

    def environment(self, found: Path, job: Job) -> dict[str, str]:
        """FSL has to be told to write .nii.gz."""
        home = {} if os.environ.get("FSLDIR") else {"FSLDIR": str(found.parent.parent)}
        return {**super().environment(found, job), "FSLOUTPUTTYPE": "NIFTI_GZ", **home}
