"""Metrics of a case's slices taken as a volume."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dataloaders.io.intensity import Window
from evaluation.catalog import SYNTHRAD
from evaluation.metrics.case_volume import CaseVolume
from evaluation.metrics.protocols import synthrad2023
from evaluation.metrics.volumes import ssim3d

WINDOW = Window(-1024.0, 3071.0)


def filled(indices: list[int], seed: int = 0) -> tuple[CaseVolume, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    real = rng.uniform(-1000, 2000, (len(indices), 16, 14)).astype(np.float32)
    fake = real + rng.normal(0, 100, real.shape).astype(np.float32)
    body = np.zeros(real.shape, bool)
    body[:, 3:13, 2:12] = True
    volume = CaseVolume(WINDOW)
    for i, index in enumerate(indices):
        volume.add(index, real[i], fake[i], body[i])
    return volume, real, fake, body


def test_one_run_is_the_volume() -> None:
    volume, real, fake, body = filled(list(range(20, 33)))
    expected = {f"synthrad2023_{key}": value for key, value in synthrad2023(real, fake, body).items()}
    expected["ssim_3d"] = ssim3d(real, fake, WINDOW.low, WINDOW.width)
    assert volume.results() == pytest.approx(expected, rel=1e-12)


def test_a_gap_makes_two_volumes() -> None:
    """Slices on both sides of a gap are no neighbours; each run counts by the places of the window."""
    volume, real, fake, _ = filled([*range(11), *range(12, 25)])
    parts = [ssim3d(real[part], fake[part], WINDOW.low, WINDOW.width) for part in (slice(0, 11), slice(11, 24))]
    found = volume.results()
    assert found["ssim_3d"] == pytest.approx((parts[0] + 3 * parts[1]) / 4, rel=1e-12)
    assert all(math.isnan(found[key]) for key in SYNTHRAD)  # the volume is not whole


@pytest.mark.parametrize("indices", [list(range(10)), list(range(0, 40, 2)), []])
def test_too_few_adjacent_slices(indices: list[int]) -> None:
    assert math.isnan(filled(indices)[0].results()["ssim_3d"])


def test_slices_of_another_size_are_another_run() -> None:
    volume, real, fake, body = filled(list(range(12)))
    volume.add(12, real[0, :12], fake[0, :12], body[0, :12])
    found = volume.results()
    assert found["ssim_3d"] == ssim3d(real, fake, WINDOW.low, WINDOW.width)
    assert math.isnan(found["synthrad2023_mae"])


def test_without_a_body_there_is_no_synthrad_value() -> None:
    volume = CaseVolume(WINDOW)
    for index in range(9):
        volume.add(index, np.zeros((9, 9)), np.ones((9, 9)), np.zeros((9, 9), bool))
    assert all(math.isnan(value) for value in volume.results().values())


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_what_is_asked_for_is_kept(wanted: tuple[bool, bool]) -> None:
    volume = CaseVolume(WINDOW, ssim_3d=wanted[0], synthrad=wanted[1])
    kept = 0
    for index in [*range(12), *range(100, 1000, 2)]:
        volume.add(index, np.zeros((12, 12)), np.ones((12, 12)), np.ones((12, 12), bool))
        kept = max(kept, len(volume._real))
    assert kept == (12 if any(wanted) else 0)
    found = volume.results()
    assert math.isfinite(found["ssim_3d"]) == wanted[0]


def test_a_broken_run_is_let_go() -> None:
    """Unrelated images of one patient are runs of a single slice."""
    volume = CaseVolume(WINDOW)
    for index in range(0, 400, 2):
        volume.add(index, np.zeros((12, 12)), np.ones((12, 12)), np.ones((12, 12), bool))
        assert len(volume._real) <= 1
