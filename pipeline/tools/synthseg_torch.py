"""SynthSeg in PyTorch, as dipy has it, as a program: image, labels, weight file by path (nothing is downloaded), gpu."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from dipy.nn.torch.synthseg import SynthSeg

from dataloaders.io.nifti import read_volume, write_volume


class OfflineSynthSeg(SynthSeg):
    """dipy's constructor fetches its weights; this one reads the file that was named."""

    def fetch_default_weights(self) -> None:
        """Read the given file."""
        self.load_model_weights(sys.argv[3])


if __name__ == "__main__":
    head = read_volume(Path(sys.argv[1]))
    labels, *_ = OfflineSynthSeg(use_cuda="gpu" in sys.argv[4:]).predict(head.data.astype(np.float32), head.affine)
    write_volume(Path(sys.argv[2]), labels.astype(np.int32), head.affine)
