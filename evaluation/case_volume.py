"""The slices of one case and channel put behind each other: metrics that need a volume."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dataloaders.intensity import Window
from evaluation.paired import TAPS
from evaluation.protocols import SMALLEST, synthrad2023
from evaluation.volumes import ssim3d

_NONE = {"synthrad2023_mae": math.nan, "synthrad2023_psnr": math.nan, "synthrad2023_ssim": math.nan}


class CaseVolume:
    """Real and generated slices in physical units, and the body; memory is that of one case."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.real: list[NDArray] = []
        self.fake: list[NDArray] = []
        self.body: list[NDArray[np.bool_]] = []

    def add(self, index: int, real: NDArray, fake: NDArray, body: NDArray[np.bool_]) -> None:
        """The next slice in order of its index."""
        self.indices.append(index)
        self.real.append(real)
        self.fake.append(fake)
        self.body.append(body)

    def runs(self, shortest: int) -> list[slice]:
        """Runs of at least `shortest` slices whose indices differ by 1 and whose sizes are the same."""
        starts = [0] + [
            i
            for i in range(1, len(self.indices))
            if self.indices[i] - self.indices[i - 1] != 1 or self.real[i].shape != self.real[i - 1].shape
        ]
        runs = [slice(a, b) for a, b in zip(starts, [*starts[1:], len(self.indices)], strict=True)]
        return [run for run in runs if run.stop - run.start >= shortest]

    def ssim_3d(self, window: Window) -> float:
        """Mean of `volumes.ssim3d` over the runs, weighted by the places of the window along z; NaN without a run."""

        def one(real: NDArray, fake: NDArray, _: NDArray) -> dict[str, float]:
            return {"ssim": ssim3d(real, fake, window.low, window.width)}

        return self._over_runs(one, TAPS).get("ssim", math.nan)

    def synthrad(self) -> dict[str, float]:
        """`protocols.synthrad2023` over the runs, weighted by their body voxels."""
        return _NONE | {f"synthrad2023_{key}": value for key, value in self._over_runs(synthrad2023, SMALLEST).items()}

    def _over_runs(
        self, metric: Callable[[NDArray, NDArray, NDArray], dict[str, float]], side: int
    ) -> dict[str, float]:
        values: list[dict[str, float]] = []
        weights: list[float] = []
        for run in self.runs(side):
            if min(self.real[run.start].shape) < side:
                continue
            body = np.stack(self.body[run])
            values.append(metric(np.stack(self.real[run]), np.stack(self.fake[run]), body))
            weights.append(float(body.sum()) if metric is synthrad2023 else run.stop - run.start - side + 1)
        known = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight > 0]
        total = sum(weight for _, weight in known)
        return {key: sum(v[key] * w for v, w in known) / total for key in known[0][0]} if known else {}
