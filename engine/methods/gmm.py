"""The generator fitted to training slices."""

from __future__ import annotations

from pathlib import Path

from dataloaders.io.files import naming, read_json
from engine.methods.synthesis import SynthesisWorkflow
from models.base import Method
from models.gmm.method import Gmm


class GmmWorkflow(SynthesisWorkflow):
    """Intensities fitted to the slices, drawn at random, or those of a file."""

    def equip(self, method: Method) -> None:
        """Priors of a file instead of fitted or random ones."""
        assert isinstance(method, Gmm)
        path = Path(self.config.gmm.priors)
        if self.config.gmm.priors in ("fit", "random"):
            return
        with naming(path):
            method.load_priors(read_json(path))
