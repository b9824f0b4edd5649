"""What SynthSeg published with its label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray


@pytest.fixture
def synthseg(shared_data: Path) -> Path:
    folder = shared_data / "labelmaps" / "synthseg"
    if not folder.is_dir():
        pytest.skip(f"real label maps not found at {folder}")
    return folder


@pytest.fixture
def lists(synthseg: Path) -> dict[str, NDArray]:
    """Its arrays, by their files' names."""
    return {path.stem: np.load(path) for path in synthseg.glob("*.npy")}
