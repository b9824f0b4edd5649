"""Dice tables: networks against a common reference, segmenters against each other, strippers against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.segmentation import dice, hd95
from evaluation.statistics import finite, over_patients
from pipeline.tissue import TISSUES

TissueScores = dict[str, float | None]  # GM, WM, CSF, mean
Score = Callable[[NDArray, NDArray], TissueScores]


def tissue_dice(truth: NDArray, found: NDArray, over: Sequence[str] = tuple(TISSUES)) -> TissueScores:
    """Dice of GM, WM, CSF, and the mean over some of them; None for a tissue that is in neither."""
    return _named(dice(truth, found, TISSUES.values()), over)


def tissue_hd95(
    truth: NDArray, found: NDArray, spacing: Sequence[float], over: Sequence[str] = tuple(TISSUES)
) -> TissueScores:
    """95 % Hausdorff distance in mm; None for a tissue that is missing on one side or both."""
    return _named(hd95(truth, found, TISSUES.values(), spacing), over)


def mask_dice(a: NDArray, b: NDArray) -> TissueScores:
    """Dice of two brain masks, as dice."""
    return {"dice": finite(dice((a > 0).astype(np.uint8), (b > 0).astype(np.uint8), [1])[1])}


def _named(values: Mapping[int, float], over: Sequence[str]) -> TissueScores:
    named = {name: finite(values[i]) for name, i in TISSUES.items()}
    return {**named, "mean": _mean(named[name] for name in over)}


def pooled(
    cases: Mapping[str, TissueScores], patient_of: Mapping[str, str], over: Sequence[str] = tuple(TISSUES)
) -> dict[str, Any]:
    """Mean over patients (each the mean of its scans) of each tissue, then over some; 95 % interval from five on."""
    patients = sorted({patient_of[case] for case in cases})
    table: dict[str, Any] = {}
    for name in TISSUES:
        values = [_mean(cases[c][name] for c in sorted(cases) if patient_of[c] == p) for p in patients]
        of = over_patients(math.nan if value is None else value for value in values)
        table[name] = {"value": of["value"], "ci95": of["ci95"], "patients": of["n_patients"]}
    table["mean"] = {"value": _mean(table[name]["value"] for name in over)}
    table["cases"] = dict(cases)
    return table


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def consensus(maps: Sequence[NDArray[np.uint8]], image: NDArray) -> NDArray[np.uint8]:
    """The label that most maps give each voxel.

    Where several tissues are equally often given, as wherever two maps differ, the scan's intensity decides: the tissue is
    taken that it is likeliest of, with mean and spread where all maps agree. With background among them: that of the
    first map.
    """
    votes = np.stack([sum((m == i).astype(np.uint8) for m in maps) for i in range(len(TISSUES) + 1)])
    most = votes.max(0)
    out = maps[-1]
    for m in reversed(maps):
        out = np.where(np.take_along_axis(votes, m[None].astype(np.int64), 0)[0] == most, m, out)
    tied = ((votes == most).sum(0) > 1) & (votes[0] < most)
    agreed = votes.max(0) == len(maps)
    unlikely = [_unlikely(image, tied, agreed & (maps[0] == i)) for i in TISSUES.values()]
    costs = np.where(votes[1:, tied] == most[tied], np.stack(unlikely), np.inf)
    decided = np.isfinite(costs).any(0)
    out[tied] = np.where(decided, costs.argmin(0) + 1, out[tied])
    return out


def _unlikely(image: NDArray, where: NDArray[np.bool_], sample: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Minus log-likelihood of the intensities `where`, of a Gaussian with the moments of those in the sample."""
    values = image[where].astype(np.float64)
    if not sample.any():
        return np.full(values.shape, np.inf)
    mean, spread = float(image[sample].mean()), max(float(image[sample].std()), 1e-6)
    found: NDArray[np.float64] = ((values - mean) / spread) ** 2 / 2 + np.log(spread)
    return found


def agreement(
    cases: Mapping[str, Set[str]], score: Callable[[str, str, str], TissueScores], columns: Sequence[str]
) -> list[dict[str, Any]]:
    """Mean scores of every pair of names over the cases that both have. cases: of each name. score: (a, b, case)."""
    rows = []
    for a, b in combinations(sorted(cases), 2):
        shared = sorted(cases[a] & cases[b])
        found = [score(a, b, case) for case in shared]
        rows.append({"a": a, "b": b, "cases": len(shared), **{c: _mean(each[c] for each in found) for c in columns}})
    return rows
