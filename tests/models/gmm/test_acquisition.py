"""Resolution: thin axes, noise, labels on the same grid; the images themselves are compared in test_reference.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.gmm.intensity import acquire, low_shape, nearest_labels


def test_low_shape_is_what_fits_and_never_more_than_there_is() -> None:
    assert low_shape((160, 160, 160), (1.0, 1.0, 1.0), (1.0, 4.0, 8.0)) == (160, 40, 20)
    assert low_shape((40, 41, 7), (1.0, 1.0, 1.0), (3.0, 3.0, 8.0)) == (13, 13, 1)
    assert low_shape((40, 40), (0.7, 0.7), (0.7, 1.4)) == (40, 20)  # no voxel lost to rounding
    assert low_shape((40, 40), (1.0, 2.0), (0.5, 1.0)) == (40, 40)
    assert low_shape((21,), (0.7,), (2.1,)) == (7,)  # 21 · 0.7 / 2.1 is below 7 in float64
    for mm in np.linspace(0.3, 3, 28):
        for resolution in np.linspace(0.1, 9, 30):
            (count,) = low_shape((37,), (mm,), (resolution,))
            assert 1 <= count <= 37
            assert count == 1 or count * resolution <= 37 * mm * (1 + 1e-5) or count == 37


def test_noise_is_white_on_the_coarse_grid() -> None:
    shape, low = (40, 40, 36), (40, 40, 9)
    noisy = acquire(
        torch.full(shape, 0.5), low, (0.5, 0.5, 3.0), shape, noise=0.1, generator=torch.Generator().manual_seed(0)
    )
    found = noisy - 0.5
    assert float(found.mean()) == pytest.approx(0, abs=0.005)
    line = found - found.mean()
    assert abs(float((line[1:] * line[:-1]).mean() / line.var())) < 0.02  # neighbours in plane share nothing
    assert float((line[..., 1:] * line[..., :-1]).mean() / line.var()) > 0.8  # neighbours across slices nearly all
    alone = acquire(torch.full(low, 0.5), low, (0.0,) * 3, low, noise=0.1, generator=torch.Generator().manual_seed(0))
    assert float(alone.std()) == pytest.approx(0.1, rel=0.02)


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
