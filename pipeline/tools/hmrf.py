"""dipy's hidden Markov random field: FSL FAST's algorithm, built in."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataloaders.io.nifti import read_volume, write_volume
from dataloaders.prepare.tissue import TissueError, hmrf_tissue
from pipeline.commands import ToolFailed
from pipeline.tools.base import Job, Outcome, Tool, package_version


class Hmrf(Tool):
    """Beta 0.1 on the cropped brain, intensities clipped at the 0.5th and 99.5th percentile: without it classes collapse."""

    name = "hmrf"
    kind = "segment"
    wants = "brain"
    table = "ascending.toml"
    licence = "BSD-3-Clause (dipy)"
    citation = "Zhang et al., IEEE TMI 2001, doi 10.1109/42.906424; Garyfallidis et al., Front. Neuroinform. 2014"
    get = "comes with medsis"

    def find(self, settings: Mapping[str, Any]) -> Path | str | None:
        """Built in."""
        return "dipy" if package_version("dipy") else None

    def version(self, found: Path | str) -> str:
        """Of dipy."""
        return package_version("dipy") or "unknown"

    def run(self, job: Job) -> Outcome:
        """Voxels that are not 0 are brain. ToolFailed where classes collapse."""
        start = time.monotonic()
        found = self.located(job.settings)
        brain = read_volume(job.image)
        try:
            labels = hmrf_tissue(brain.data, brain.data > 0)
        except TissueError as error:
            raise ToolFailed(str(error)) from None
        path = job.folder / "labels.nii.gz"
        write_volume(path, labels, brain.affine)
        return Outcome(path, self.version(found), str(found), time.monotonic() - start)
