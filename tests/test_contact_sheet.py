"""The contact sheet shows voxels in their proportions."""

from __future__ import annotations

import numpy as np

from scripts.contact_sheet import square_planes


def test_planes_have_the_proportions_of_the_voxels() -> None:
    volume = np.arange(4 * 5 * 3, dtype=np.float32).reshape(4, 5, 3)
    axial, coronal, sagittal = square_planes(volume, (1.0, 1.0, 3.0))
    assert [picture.shape for picture in (axial, coronal, sagittal)] == [(5, 4), (9, 4), (9, 5)]
    assert np.array_equal(coronal[::3], volume[::-1, 2, :].T[::-1])
    assert np.array_equal(coronal[2::3], coronal[::3])
    assert np.array_equal(sagittal[::3], volume[2].T[::-1, ::-1])  # the face to the left, as everywhere
    assert square_planes(volume[0], (2.0, 1.0))[0].shape == (3, 10)
