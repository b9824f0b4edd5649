"""SynthSeg in PyTorch, as dipy has it, with a weight file by path: nothing is ever downloaded."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dataloaders.io.nifti import read_volume, write_volume
from pipeline.commands import ToolMissing
from pipeline.tools.base import ExternalTool, Job, package_version

ROOT = Path(__file__).resolve().parents[2]


class SynthSegTorch(ExternalTool):
    """Runs in a process of its own, like a program, so that time and memory are limited and given back."""

    name = "synthseg-torch"
    kind = "segment"
    table = "freesurfer.toml"
    programs = (Path(sys.executable).name,)
    licence = "Apache-2.0"
    citation = "Billot et al., Med. Image Anal. 2023, doi 10.1016/j.media.2023.102789; PyTorch: dipy"
    get = (
        "fetch dipy's synthseg weights (figshare file 60274412) where there is internet, and name the file: "
        '[tools.synthseg-torch] weights = "synthseg.pth"'
    )
    settings: ClassVar[dict[str, Any]] = {"weights": "", "gpu": False}

    def find(self, settings: Mapping[str, Any]) -> Path | None:
        """This Python, where dipy and the weight file are there."""
        weights = str(settings.get("weights", ""))
        ready = package_version("dipy") and weights and Path(weights).is_file()
        return Path(sys.executable).absolute() if ready else None

    def located(self, settings: Mapping[str, Any]) -> Path | str:
        """ToolMissing that names a file that is not there."""
        weights = str(settings.get("weights", ""))
        if weights and not Path(weights).is_file():
            raise ToolMissing(f"synthseg-torch: weights = {weights}: no such file; {self.get}")
        return super().located(settings)

    def version(self, found: Path | str) -> str:
        """Of dipy."""
        return package_version("dipy") or "unknown"

    def command(self, found: Path, job: Job) -> list[str | Path]:
        """This file as a program."""
        words: list[str | Path] = [found, "-m", "pipeline.tools.synthseg_torch", job.image, self.output(job)]
        return [*words, job.settings["weights"], "gpu" if job.settings["gpu"] else "cpu"]

    def environment(self, found: Path, job: Job) -> dict[str, str]:
        """Our packages are found from any folder."""
        return {**super().environment(found, job), "PYTHONPATH": str(ROOT)}

    def output(self, job: Job) -> Path:
        """The labels."""
        return job.folder / "labels.nii.gz"


def segment(image: Path, out: Path, weights: Path, device: str) -> None:
    """Labels of one head, on its own grid."""
    from dipy.nn.torch.synthseg import SynthSeg

    class Offline(SynthSeg):
        """dipy's constructor fetches its weights; this one reads the file that was named."""

        def fetch_default_weights(self) -> None:
            """Read the given file."""
            self.load_model_weights(str(weights))

    head = read_volume(image)
    labels, *_ = Offline(use_cuda=device == "gpu").predict(head.data.astype(np.float32), head.affine)
    write_volume(out, labels.astype(np.int32), head.affine)


if __name__ == "__main__":
    segment(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
