"""The table of tissue classifiers and its picture; the classifiers themselves are tested where they are."""

from __future__ import annotations

import numpy as np

from benchmarks.tissue_table import COLORS, METHODS, PARTS, as_markdown, picture
from dataloaders.io.nifti import Volume


def test_planes_of_a_scan_and_of_maps_stand_side_by_side() -> None:
    """An axial and a coronal plane, cut to the brain: rows of 20 and 16 voxels high, 12 wide, with gaps of 2 pixels."""
    scan = np.zeros((16, 24, 20), np.float32)
    scan[2:14, 2:22, 2:18] = 100
    tissue = np.where(scan > 0, 3, 0).astype(np.uint8)
    shown = picture(Volume(scan, np.eye(4)), [tissue, tissue])
    assert shown.shape == (20 + 2 + 16, 12 + 2 + 12 + 2 + 12, 3)
    assert (shown[3, 3] == 255).all()
    assert (shown[3, 14 + 3] == COLORS[3]).all()


def test_rows_are_methods_and_groups_of_people() -> None:
    columns = ("grey", "white", "csf", *PARTS, "seconds")
    values = {f"p{i}": {method: dict.fromkeys(columns, i / 10) for method in METHODS} for i in range(1, 4)}
    text = as_markdown(values, {"sub-1": {"atlas": {"white": 0.75}}}, unseen=["p3"])
    assert "| `atlas` | 3 all | 0.200 |" in text
    assert "| `hmrf` | 2 others | 0.150 |" in text
    assert "| `atlas` | 1 unseen | 0.300 |" in text
    assert "lesion voxels of sub-1 called white matter: atlas 0.75" in text
