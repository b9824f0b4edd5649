"""The lesion generator: slices with their copies without lesions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config import TestConfig
from dataloaders.io.manifest import Manifest
from dataloaders.lesions.loaders import lesion_loaders, lesion_test_loader
from dataloaders.slices import BatchLoader
from engine.methods.synthesis import SynthesisWorkflow


class LesionWorkflow(SynthesisWorkflow):
    """Scans without lesions and lesion masks to scans with lesions."""

    histograms = True  # they tell which slices show lesions
    source = "scans without lesions and lesion masks"
    usage = ""
    instead_of_labels = "paints lesions into images: python scripts/add_lesions.py --name {name} --input SCANS …"

    def loader(self) -> BatchLoader:
        """Slices, or stacks of them, that show lesions."""
        loader, self.val_loader = lesion_loaders(self.config, self.data)
        return loader

    def test_loader(
        self, root: Path, data: Manifest, config: TestConfig, classes: NDArray[np.int64] | None
    ) -> BatchLoader:
        """All slices of a split, or whole cases for a network of volumes."""
        return lesion_test_loader(self.config.lesion, root, data, config.phase, config.batch_size)
