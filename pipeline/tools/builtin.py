"""Segmenters that come with medsis: dipy's HMRF, and intensities with places of the MNI152 template."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.nifti import Volume, read_volume, write_volume
from dataloaders.prepare.atlas import atlas_tissue
from dataloaders.prepare.tissue import TissueError, hmrf_tissue
from pipeline.commands import ToolFailed
from pipeline.tools.base import Tool, ToolCall, package_version


class BuiltIn(Tool):
    """A segmenter that needs no program."""

    @abstractmethod
    def labels(self, brain: Volume) -> NDArray[np.uint8]:
        """CSF 1, grey 2, white matter 3, where voxels that are not 0 are brain. ToolFailed."""

    def find(self, settings: Mapping[str, Any]) -> str | None:
        """The package."""
        return self.package if package_version(self.package) else None

    def run(self, call: ToolCall) -> tuple[Path, dict[str, str]]:
        """In this process."""
        brain = read_volume(call.image)
        labels = self.labels(brain)
        write_volume(call.folder / self.output, labels, brain.affine)
        return call.folder / self.output, self.about(self.located(call.settings))


class Hmrf(BuiltIn):
    """FSL FAST's algorithm, beta 0.1, on intensities clipped at the 0.5th and 99.5th percentile."""

    def labels(self, brain: Volume) -> NDArray[np.uint8]:
        """By dipy."""
        try:
            return hmrf_tissue(brain.data, brain.data > 0)
        except TissueError as error:
            raise ToolFailed(str(error)) from None


class Atlas(BuiltIn):
    """Intensities, and the places of deep structures in the MNI152 template that is laid over the brain."""

    def labels(self, brain: Volume) -> NDArray[np.uint8]:
        """By our own code; one thread."""
        try:
            return atlas_tissue(brain.data, brain.affine, brain.data > 0)
        except TissueError as error:
            raise ToolFailed(str(error)) from None
