"""Three Gaussians, no neighbourhood: the plainest tissue classifier, to compare with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dataloaders.nifti import read_volume, write_volume
from pipeline.commands import ToolFailed
from pipeline.tools.base import Job, Outcome, Tool, package_version

SAMPLE = 50_000  # voxels to fit to
PERCENTILES = (0.5, 99.5)


class Mixture(Tool):
    """scikit-learn's GaussianMixture of the brain's intensities; classes in ascending order."""

    name = "mixture"
    kind = "segment"
    wants = "brain"
    table = "ascending.toml"
    licence = "BSD-3-Clause (scikit-learn)"
    citation = "Pedregosa et al., JMLR 2011"
    get = "comes with medsis"

    def find(self, settings: Mapping[str, Any]) -> Path | str | None:
        """Built in."""
        return "scikit-learn" if package_version("scikit-learn") else None

    def version(self, found: Path | str) -> str:
        """Of scikit-learn."""
        return package_version("scikit-learn") or "unknown"

    def run(self, job: Job) -> Outcome:
        """Voxels that are not 0 are brain. ToolFailed where there are too few, or they have one value."""
        from sklearn.mixture import GaussianMixture  # slow to import

        start = time.monotonic()
        brain = read_volume(job.image)
        inside = brain.data > 0
        values = brain.data[inside].astype(np.float64)
        if len(np.unique(values)) < 3:
            raise ToolFailed(f"{job.image.name}: fewer than three intensities, so no three tissues")
        values = np.clip(values, *np.percentile(values, PERCENTILES))
        sample = np.random.default_rng(0).choice(values, min(SAMPLE, len(values)), replace=False)
        # Start from thirds of the intensities, not from random points: the same scan has the same classes.
        centres = np.quantile(sample, [1 / 6, 1 / 2, 5 / 6])[:, None]
        model = GaussianMixture(3, means_init=centres, random_state=0).fit(sample[:, None])
        rank = np.argsort(np.argsort(model.means_[:, 0])) + 1
        labels = np.zeros(brain.data.shape, np.uint8)
        labels[inside] = rank[model.predict(values[:, None])]
        path = job.folder / "labels.nii.gz"
        write_volume(path, labels, brain.affine)
        return Outcome(path, self.version("scikit-learn"), "scikit-learn", time.monotonic() - start)
