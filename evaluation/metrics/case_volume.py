"""The slices of one case and channel put behind each other: metrics that need a volume."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.intensity import Window
from evaluation.catalog import SYNTHRAD
from evaluation.metrics.paired import TAPS
from evaluation.metrics.protocols import SMALLEST, synthrad2023
from evaluation.metrics.volumes import ssim3d


class CaseVolume:
    """Metrics of runs of adjacent slices in physical units; memory is that of one run.

    A run ends where indices differ by more than 1 or sizes change; it is measured at once and let go.
    ssim_3d, synthrad: whether they are asked for; without either nothing is kept.
    """

    def __init__(self, window: Window, *, ssim_3d: bool = True, synthrad: bool = True) -> None:
        self.window = window
        self._wants_ssim, self._wants_synthrad = ssim_3d, synthrad
        self._runs = 0
        self._index = 0
        self._real: list[NDArray] = []
        self._fake: list[NDArray] = []
        self._body: list[NDArray[np.bool_]] = []
        self._ssim, self._places = 0.0, 0

    def add(self, index: int, real: NDArray, fake: NDArray, body: NDArray[np.bool_]) -> None:
        """The next slice in order of its index."""
        if self._runs and (index - self._index != 1 or (self._real and self._real[-1].shape != real.shape)):
            self._finish()
            self._runs += 1
        self._runs = max(self._runs, 1)
        self._index = index
        if self._wants_ssim or (self._wants_synthrad and self._runs == 1):
            self._real.append(real)
            self._fake.append(fake)
            self._body.append(body)

    def _finish(self) -> None:
        """Measure the run that has ended, and let it go."""
        if self._wants_ssim and len(self._real) >= TAPS and min(self._real[0].shape) >= TAPS:
            places = len(self._real) - TAPS + 1
            value = ssim3d(np.stack(self._real), np.stack(self._fake), self.window.low, self.window.width)
            self._ssim, self._places = self._ssim + value * places, self._places + places
        self._real, self._fake, self._body = [], [], []

    def results(self) -> dict[str, float]:
        """After the last slice: `ssim_3d`, and the keys of SYNTHRAD; NaN where there is no value.

        ssim_3d: mean of `volumes.ssim3d` over the runs of at least 11 slices, weighted by the window's places along z.
        synthrad2023: of the slices as one volume. None across a gap: what lies there would be made up.
        """
        found = dict.fromkeys(SYNTHRAD, math.nan)
        whole = self._runs == 1 and len(self._real) >= SMALLEST and min(self._real[0].shape) >= SMALLEST
        if self._wants_synthrad and whole:
            values = synthrad2023(np.stack(self._real), np.stack(self._fake), np.stack(self._body))
            found = {f"synthrad2023_{key}": value for key, value in values.items()}
        self._finish()
        return {"ssim_3d": self._ssim / self._places if self._places else math.nan} | found
