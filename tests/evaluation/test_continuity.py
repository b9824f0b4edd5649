"""Continuity from slice to slice: closed forms on arrays, then through a results folder."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dataloaders.io.manifest import Case, Manifest
from dataloaders.io.png import read_png, write_png
from evaluation import evaluate_results, format_table, headline
from evaluation.metrics.continuity import CaseContinuity, Jumps, slice_jumps
from tests.toy_results import WINDOWS, identity, noisy, write_results

METRICS = "slice_jump_ratio,slice_difference_mae"
ALL_BODY = np.ones((6, 5), bool)


def ramp(slices: int, step: float) -> NDArray[np.float64]:
    """(slices, H, W): a volume that changes by `step` from slice to slice, not the same at every pixel."""
    base = np.arange(30, dtype=np.float64).reshape(6, 5)
    return base + step * np.arange(slices)[:, None, None]


def jumps_of(real: NDArray, fake: NDArray, indices: list[int] | None = None) -> Jumps:
    continuity = CaseContinuity()
    for i, index in enumerate(indices or range(len(real))):
        continuity.add(index, real[i], fake[i], ALL_BODY)
    return continuity.jumps


# -- arrays -------------------------------------------------------------------------------------------------------


def test_identical_volumes() -> None:
    jumps = jumps_of(ramp(4, 3.0), ramp(4, 3.0))
    assert (jumps.ratio, jumps.mae, jumps.pairs, jumps.pixels) == (1, 0, 3, 90)


def test_an_offset_of_the_whole_volume_is_no_flicker() -> None:
    jumps = jumps_of(ramp(4, 3.0), ramp(4, 3.0) + 50)
    assert (jumps.ratio, jumps.mae) == (1, 0)


@pytest.mark.parametrize(("step", "d"), [(3.0, 1.0), (3.0, 1.5), (3.0, 10.0)])
def test_alternating_offsets(step: float, d: float) -> None:
    """Offsets ±d make jumps of step + 2d and step - 2d in turn, and an error of 2d everywhere."""
    real = ramp(5, step)  # four pairs, so as many up as down
    fake = real + d * np.array([1, -1, 1, -1, 1])[:, None, None]
    jumps = jumps_of(real, fake)
    assert jumps.ratio == pytest.approx((abs(step - 2 * d) + abs(step + 2 * d)) / 2 / step)
    assert jumps.mae == pytest.approx(2 * d)


def test_a_volume_without_change_has_ratio_zero_and_costs_the_real_jump() -> None:
    jumps = jumps_of(ramp(4, 3.0), np.zeros((4, 6, 5)))
    assert (jumps.ratio, jumps.mae) == (0, 3)


def test_noise_in_the_real_scan_alone_gives_a_ratio_below_one() -> None:
    rng = np.random.default_rng(0)
    clean = np.zeros((60, 6, 5)) + 2 * np.arange(60)[:, None, None]
    first, second = rng.normal(0, 4, (2, *clean.shape))
    assert jumps_of(clean + first, clean).ratio < 0.5
    assert jumps_of(clean + first, clean + second).ratio == pytest.approx(1, abs=0.05)


def test_sums_come_before_the_division() -> None:
    """Jumps of 1 and 9 answered by 3 and 9: (3 + 9) / (1 + 9), not the mean of 3 and 1."""
    real, fake = (np.array(levels, float)[:, None, None] * np.ones((6, 5)) for levels in ([0, 1, 10], [0, 3, 12]))
    assert jumps_of(real, fake).ratio == pytest.approx(1.2)


def test_only_indices_that_differ_by_one_are_neighbours() -> None:
    real = ramp(5, 3.0)
    assert jumps_of(real, real, [0, 2, 4, 6, 8]).pairs == 0
    assert jumps_of(real, real, [0, 1, 5, 6, 7]).pairs == 3
    assert jumps_of(real, real, [4, 3, 2, 1, 0]) == jumps_of(real, real)
    assert jumps_of(real, real, [7, 7, 7, 7, 7]).pairs == 0


def test_nothing_to_compare_is_nan() -> None:
    lone = jumps_of(ramp(1, 3.0), ramp(1, 3.0))
    assert math.isnan(lone.ratio)
    assert math.isnan(lone.mae)
    still = jumps_of(np.zeros((2, 6, 5)), ramp(2, 3.0))  # a ratio to nothing, but an error all the same
    assert math.isnan(still.ratio)
    assert still.mae == 3


def test_slices_of_another_size_are_no_neighbours() -> None:
    continuity = CaseContinuity()
    for index, size in enumerate([(6, 5), (5, 6), (5, 6)]):
        continuity.add(index, np.zeros(size), np.ones(size), np.ones(size, bool))
    assert continuity.jumps.pairs == 1


def test_only_pixels_that_are_body_in_both_count() -> None:
    body = ALL_BODY.copy(), ALL_BODY.copy()
    body[0][:2], body[1][4:] = False, False
    real, fake = np.zeros((2, 6, 5)), np.zeros((2, 6, 5))
    real[1], fake[1] = 2, 3
    real[1, :2], fake[1, 4:] = 900, -900  # outside of one of the two masks
    jumps = slice_jumps((real[0], real[1]), (fake[0], fake[1]), body)
    assert jumps == Jumps(real=20, fake=30, difference=10, pixels=10, pairs=1)
    none = slice_jumps((real[0], real[1]), (fake[0], fake[1]), (ALL_BODY, ~ALL_BODY))
    assert none == Jumps()


# -- results folder -----------------------------------------------------------------------------------------------


def edit_cases(folder: Path, *cases: Case) -> None:
    replace(Manifest.load(folder), cases=cases).save(folder)


def expected(folder: Path, case: Case, channel: int) -> tuple[float, float]:
    """Ratio and error of a whole case at once, in physical units."""
    window = case.windows[channel]
    real, fake = (
        np.stack([window.decode(read_png(folder / getattr(item, kind)[channel])) for item in case.slices]).astype(float)
        for kind in ("images", "generated")
    )
    body = np.stack([read_png(folder / item.label) > 0 for item in case.slices])
    both = body[1:] & body[:-1]
    step_real, step_fake = np.diff(real, axis=0)[both], np.diff(fake, axis=0)[both]
    return np.abs(step_fake).sum() / np.abs(step_real).sum(), np.abs(step_fake - step_real).mean()


def test_a_perfect_method(tmp_path: Path) -> None:
    metrics = evaluate_results(write_results(tmp_path / "r", identity), METRICS)["metrics"]
    for channel, unit in (("T1w", "a.u."), ("CT", "HU")):
        ratio, error = metrics[f"slice_jump_ratio/{channel}"], metrics[f"slice_difference_mae/{channel}"]
        assert (ratio["value"], ratio["better"], ratio["unit"]) == (1, None, "")
        assert (error["value"], error["better"], error["unit"]) == (0, "lower", unit)


def test_two_channels_and_the_whole_volume_at_once_agree(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=2, slices=4)
    result = evaluate_results(folder, METRICS)
    cases = Manifest.load(folder).cases
    assert [row["slice_pairs"] for row in result["per_case"]] == [3] * 4
    for c, channel in enumerate(("T1w", "CT")):
        found = np.array([expected(folder, case, c) for case in cases])
        for k, name in enumerate(METRICS.split(",")):
            key = f"{name}/{channel}"
            assert result["metrics"][key]["value"] == pytest.approx(found[:, k].mean(), rel=1e-6)
            assert result["per_patient"]["sub-01"][key] == pytest.approx(found[1, k], rel=1e-6)


def test_a_flickering_method_in_physical_units(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", identity, patients=1, slices=4, channels=("CT",))
    case = Manifest.load(folder).cases[0]
    for item in case.slices:
        real, body = WINDOWS["CT"].decode(read_png(folder / item.images[0])), read_png(folder / item.label) > 0
        offset = 100 * (-1) ** item.index * body
        write_png(folder / item.generated[0], WINDOWS["CT"].encode(real + offset))
    metrics = evaluate_results(folder, METRICS)["metrics"]
    assert metrics["slice_difference_mae/CT"]["value"] == pytest.approx(200, abs=0.1)
    assert metrics["slice_jump_ratio/CT"]["value"] > 1.2


def test_cases_then_patients(tmp_path: Path) -> None:
    """A patient with two scans weighs as much as one with a single scan, and scans are never joined."""
    folder = write_results(tmp_path / "r", noisy(0.05), patients=3, slices=3, channels=("CT",))
    a, b, c = Manifest.load(folder).cases
    b = replace(b, patient=a.patient, slices=tuple(replace(item, index=item.index + 3) for item in b.slices))
    edit_cases(folder, a, b, c)
    result = evaluate_results(folder, METRICS)
    of = {case.id: expected(folder, case, 0)[0] for case in (a, b, c)}
    mean = ((of[a.id] + of[b.id]) / 2 + of[c.id]) / 2
    assert result["metrics"]["slice_jump_ratio/CT"]["value"] == pytest.approx(mean, rel=1e-6)
    assert [row["slice_pairs"] for row in result["per_case"]] == [2, 2, 2]


def test_interval_from_five_patients_on(tmp_path: Path) -> None:
    entry = evaluate_results(write_results(tmp_path / "r", noisy(0.05), patients=5), METRICS)["metrics"]
    for name in METRICS.split(","):
        low, high = entry[f"{name}/CT"]["ci95"]
        assert low < entry[f"{name}/CT"]["value"] < high


def test_order_in_the_manifest_does_not_matter(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=1, slices=5)
    before = evaluate_results(folder, METRICS)["metrics"]
    case = Manifest.load(folder).cases[0]
    edit_cases(folder, replace(case, slices=tuple(case.slices[i] for i in (3, 0, 4, 2, 1))))
    assert evaluate_results(folder, METRICS)["metrics"] == before


def test_missing_slices_break_the_chain(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=1, slices=5)
    case = Manifest.load(folder).cases[0]
    gap = replace(case.slices[2], images=())  # no real image, so it is nobody's neighbour
    edit_cases(folder, replace(case, slices=(*case.slices[:2], gap, *case.slices[3:])))
    assert {row["slice_pairs"] for row in evaluate_results(folder, METRICS)["per_case"]} == {2}


def test_without_neighbours_the_value_is_missing_and_not_zero(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=2, slices=5)
    first, second = Manifest.load(folder).cases
    edit_cases(folder, *(replace(case, slices=case.slices[::2]) for case in (first, second)))
    result = evaluate_results(folder, METRICS)
    for name in METRICS.split(","):
        entry = result["metrics"][f"{name}/CT"]
        assert (entry["value"], entry["n_patients"]) == (None, 0)
        assert "no adjacent slices" in entry["reason"]
        assert f"{name}/CT" not in headline(result)
    text = (folder / "metrics.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["per_case"][0]["slice_jump_ratio"] is None
    lines = [line for line in format_table(result).splitlines() if "slice_" in line]
    assert len(lines) == 4
    assert all("n/a" in line for line in lines)
    edit_cases(folder, first, replace(second, slices=second.slices[::2]))  # one patient is enough for a value
    assert evaluate_results(folder, METRICS)["metrics"]["slice_jump_ratio/CT"]["n_patients"] == 1


def test_named_and_printed(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=1, channels=("CT",))
    result: dict[str, Any] = evaluate_results(folder, "slice_jump_ratio")
    assert set(result["metrics"]) == {"slice_jump_ratio/CT", "wasserstein"}
    (line,) = (line for line in format_table(result).splitlines() if "slice_jump_ratio/CT" in line)
    assert "better" not in line
    assert "1 is as in the real images" in line
