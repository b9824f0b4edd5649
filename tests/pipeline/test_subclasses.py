from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataloaders.io.files import read_json
from dataloaders.io.manifest import Manifest
from dataloaders.io.png import read_png
from pipeline.rules.slices import FLOOR
from pipeline.rules.synthesis import divide, scheme

pytestmark = pytest.mark.slow

MM = np.array([1.0, 1.0, 3.0])


def test_subclasses_belong_to_their_tissue() -> None:
    three = scheme(3)
    assert three.names == ("background", *(f"{t} {k}" for t in ("GM", "WM", "CSF") for k in (1, 2, 3)))
    assert three.outputs == (0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
    assert scheme(1).names == ("background", "GM", "WM", "CSF")


def test_a_tissue_is_divided_by_intensity_into_equal_parts() -> None:
    """White matter with a gradient: three bands from dark to bright, whatever its neighbour's intensity."""
    tissue = np.zeros((30, 12, 4), np.uint8)
    tissue[:, :6], tissue[:, 6:] = 2, 3
    image = np.where(tissue == 2, 100.0 + np.arange(30)[:, None, None], 1000.0)
    image += np.random.default_rng(0).normal(0, 0.5, image.shape)
    parts = divide(image, tissue, 3, MM)
    lookup = np.array(scheme(3).outputs)
    np.testing.assert_array_equal(lookup[parts], tissue)
    white = parts[:, :6]
    assert [int((white == i).sum()) for i in (4, 5, 6)] == [240, 240, 240]
    assert (np.diff(np.median(white, (1, 2))) >= 0).all()
    assert (white[:8] == 4).all()
    assert (white[12:18] == 5).mean() > 0.95
    assert (white[22:] == 6).all()
    np.testing.assert_array_equal(divide(image, tissue, 1, MM), tissue)


def test_slices_show_exactly_the_brain(finished: Path) -> None:
    """Synthetic and real ones: a border that blur spills over makes networks call dark CSF background."""
    work = finished / "work"
    folders = [work / "synthesise" / "hmrf_bet" / "sub-01", work / "slices" / "bet" / "sub-03"]
    for folder in folders:
        items = Manifest.load(folder).cases[0].slices
        for item in items:
            shown, label = read_png(folder / item.images[0]), read_png(folder / item.label)
            np.testing.assert_array_equal(shown > 0, label > 0)
            assert shown[label > 0].min() >= int(FLOOR * 65535)
    priors = read_json(work / "priors" / "hmrf_bet" / "priors.json")
    assert priors["names"] == list(scheme(3).class_names)
    means = np.array(priors["mean_center"][0])
    for tissue in (slice(1, 4), slice(4, 7), slice(7, 10)):
        assert (np.diff(means[tissue]) > 0).all()
