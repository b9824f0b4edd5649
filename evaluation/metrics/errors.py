"""Errors of a generated image against the real image of the same label map, in physical units."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.metric import AGREEMENT, Metric
from evaluation.pairs import Item


def mae(real: NDArray, fake: NDArray, mask: NDArray[np.bool_] | None = None) -> float:
    """Mean absolute error in the images' unit, over all pixels or those of `mask`; NaN for an empty mask."""
    return _mean(np.abs(_difference(real, fake)), mask)


def rmse(real: NDArray, fake: NDArray, mask: NDArray[np.bool_] | None = None) -> float:
    """Root mean square error in the images' unit, over all pixels or those of `mask`; NaN for an empty mask."""
    return math.sqrt(_mean(_difference(real, fake) ** 2, mask))


def psnr(real: NDArray, fake: NDArray, data_range: float) -> float:
    """10·log10(data_range² / MSE) in dB of one image; data_range: the window's width. inf for identical images."""
    mse = _mean(_difference(real, fake) ** 2, None)
    return math.inf if mse == 0 else 10 * math.log10(data_range**2 / mse)


def _difference(real: NDArray, fake: NDArray) -> NDArray[np.float64]:
    return np.asarray(fake, np.float64) - np.asarray(real, np.float64)


def _mean(values: NDArray, mask: NDArray[np.bool_] | None) -> float:
    chosen = values if mask is None else values[mask]
    return float(chosen.mean()) if chosen.size else math.nan


def _of(key: str, error: Callable[..., float]) -> Callable[[Item], dict[str, float]]:
    return lambda item: {key: error(*item.physical, *([item.body] if key.endswith("_body") else []))}


_OUTSIDE = "no pixel with a label other than 0"
METRICS = (
    Metric("mae", "MAE", AGREEMENT, "slice", "lower", of=_of("mae", mae)),
    Metric("rmse", "RMSE", AGREEMENT, "slice", "lower", of=_of("rmse", rmse)),
    Metric("mae_body", "MAE in the body", AGREEMENT, "slice", "lower", reason=_OUTSIDE, of=_of("mae_body", mae)),
    Metric("rmse_body", "RMSE in the body", AGREEMENT, "slice", "lower", reason=_OUTSIDE, of=_of("rmse_body", rmse)),
    Metric(
        *("psnr", "PSNR", AGREEMENT, "slice", "higher", "dB"),
        windowed=True,
        reason="identical images everywhere",
        setting="data range = window width; per image, then mean; identical images counted, not averaged",
        of=lambda item: {"psnr": psnr(item.physical[0], item.physical[1], item.window.width)},
    ),
)
