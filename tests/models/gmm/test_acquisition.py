"""Resolution: thin axes, noise, labels on the same grid; the images themselves are compared in test_reference.py."""

from __future__ import annotations

import pytest
import torch

from models.gmm.intensity import acquire, low_shape, nearest_labels


def test_low_shape_is_what_fits_and_never_more_than_there_is() -> None:
    assert low_shape((160, 160, 160), (1.0, 1.0, 1.0), (1.0, 4.0, 8.0)) == (160, 40, 20)
    assert low_shape((40, 41, 7), (1.0, 1.0, 1.0), (3.0, 3.0, 8.0)) == (13, 13, 1)
    assert low_shape((40, 40), (0.7, 0.7), (0.7, 1.4)) == (40, 20)  # no voxel lost to rounding
    assert low_shape((40, 40), (1.0, 2.0), (0.5, 1.0)) == (40, 40)
    assert low_shape((21,), (0.7,), (2.1,)) == (7,)  # 21 · 0.7 / 2.1 is below 7 in float64


@pytest.mark.parametrize(("size", "out"), [(30, 10), (35, 7), (30, 30), (31, 30), (45, 9), (10, 30)])
def test_labels_lie_where_their_image_does(size: int, out: int) -> None:
    """Odd factors have a voxel at each centre: an image of the label numbers, resampled, is the resampled label map."""
    labels = torch.arange(size).int()
    kept = nearest_labels(labels, (out,))
    where = (torch.arange(out, dtype=torch.float64) + 0.5) * size / out - 0.5
    assert ((kept - where).abs() <= 0.5 + 1e-9).all()
    if size % out == 0 and size // out % 2 == 1:
        assert torch.equal(kept.double(), where)
        image = acquire(labels.double(), (out,), (0.0,), (out,))
        assert torch.allclose(image, kept.double())
