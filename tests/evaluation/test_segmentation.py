"""Dice and HD95 against naive versions and MONAI; labels that are missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from evaluation.metrics.segmentation import dice, hd95
from evaluation.statistics import label_means, nan_mean


def maps(shape: tuple[int, ...], seed: int = 0) -> tuple[NDArray, NDArray]:
    """Two blobby label maps with labels 0..3 that overlap in part."""
    rng = np.random.default_rng(seed)
    base = gaussian_filter(rng.normal(0, 1, shape), 2)
    other = base + 0.5 * base.std() * rng.normal(0, 1, shape)
    cuts = np.quantile(base, [0.4, 0.7, 0.9])
    return np.digitize(base, cuts).astype(np.uint8), np.digitize(other, cuts).astype(np.uint8)


def test_dice_and_hd95_are_monais() -> None:
    monai = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    spacing = (2.0, 1.0, 0.7)
    truth, pred = maps((12, 20, 18), seed=3)
    tensors = [torch.tensor(np.stack([ids == i for i in range(4)])[None].astype(np.float32)) for ids in (pred, truth)]
    reference = monai.compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
    assert list(hd95(truth, pred, range(4), spacing).values()) == pytest.approx(reference[0].tolist(), rel=1e-5)
    reference = monai.compute_dice(*tensors, include_background=True)
    assert list(dice(truth, pred, range(4)).values()) == pytest.approx(reference[0].tolist(), rel=1e-6)


def test_boxes_have_closed_forms() -> None:
    truth, pred = np.zeros((10, 20, 20), np.int16), np.zeros((10, 20, 20), np.int16)
    truth[2:6, 5:15, 5:15] = 7
    pred[2:6, 5:15, 8:18] = 7  # 3 voxels along the last axis
    assert dice(truth, pred, [7])[7] == pytest.approx(0.7)
    assert hd95(truth, pred, [7], (1, 1, 2.5))[7] == pytest.approx(7.5)
    assert hd95(truth, pred, [7], (4, 4, 1))[7] == pytest.approx(3)


def test_missing_labels() -> None:
    truth, pred = np.zeros((4, 5, 6), np.uint8), np.zeros((4, 5, 6), np.uint8)
    truth[1, 2, 3] = 1
    pred[2, 2, 2] = 2
    found, distance = dice(truth, pred, [0, 1, 2, 3]), hd95(truth, pred, [0, 1, 2, 3], (1, 1, 1))
    assert (found[1], found[2]) == (0, 0)
    assert distance[1] == distance[2] == math.inf
    assert math.isnan(found[3])
    assert math.isnan(distance[3])


def test_a_rare_label_weighs_as_much_and_misses_are_not_averaged() -> None:
    found = label_means([(1, 0.8), (2, math.nan), (1, 0.6), (2, 0.1), (1, 0.7), (3, math.inf), (3, math.nan)])
    assert [found[1], found[2]] == pytest.approx([0.7, 0.1])
    assert math.isnan(found[3])
    assert nan_mean(found.values()) == pytest.approx(0.4)
    assert math.isnan(nan_mean([]))
