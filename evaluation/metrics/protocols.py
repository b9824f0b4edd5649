"""Evaluation protocols of published challenges, number for number, so that results compare with theirs."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from evaluation.metrics.metric import CaseSlices, Metric, stacked

SYNTHRAD_LOW, SYNTHRAD_HIGH = -1024.0, 3000.0  # HU
_PAD = 3  # half of scikit-image's default window of 7
SMALLEST = 2 * _PAD + 1  # voxels along any side
_SLAB = 32  # slices at a time, for memory


def synthrad2023(real: NDArray, fake: NDArray, mask: NDArray) -> dict[str, float]:
    """MAE (HU), PSNR (dB) and SSIM of a synthetic CT as SynthRAD2023 ranked them (Huijben et al., MedIA 2024).

    real, fake: volumes (D, H, W) in HU. mask: not 0 inside the body outline. MAE: over the mask, of the values as they
    are. PSNR and SSIM: clipped to [-1024, 3000] HU, range 4024. PSNR: over the mask. SSIM: scikit-image's default
    settings in 3-D (uniform window of 7, sample covariance) with -1024 HU outside of the mask and all values
    moved up by 1024; mean of the map over the mask without the outermost 3 voxels of the volume.
    NaN for an empty mask; PSNR is inf for identical volumes. From 7×7×7 voxels on.
    """
    body = np.asarray(mask) > 0
    if not body.any():
        return {"mae": math.nan, "psnr": math.nan, "ssim": math.nan}
    inside = [np.asarray(image)[body].astype(np.float64) for image in (real, fake)]
    clipped = [np.clip(values, SYNTHRAD_LOW, SYNTHRAD_HIGH) for values in inside]
    identical = np.array_equal(clipped[0], clipped[1])  # scikit-image would divide by zero
    return {
        "mae": float(np.abs(inside[1] - inside[0]).mean()),
        "psnr": math.inf
        if identical
        else float(peak_signal_noise_ratio(*clipped, data_range=SYNTHRAD_HIGH - SYNTHRAD_LOW)),
        "ssim": _synthrad_ssim(np.asarray(real), np.asarray(fake), body),
    }


def _synthrad_ssim(real: NDArray, fake: NDArray, body: NDArray[np.bool_]) -> float:
    """Mean of the SSIM map over the body. Only the box around it is computed, slab by slab: the map is local."""
    inner = body[_PAD:-_PAD, _PAD:-_PAD, _PAD:-_PAD]
    if not inner.any():
        return math.nan
    found = ndimage.find_objects(inner.astype(np.uint8))[0]
    box = tuple(slice(s.start, s.stop + 2 * _PAD) for s in found)  # the windows of those voxels, exactly
    real, fake, body = real[box], fake[box], body[box]
    total, count = 0.0, 0
    for start in range(0, len(body) - 2 * _PAD, _SLAB):
        part = slice(start, start + _SLAB + 2 * _PAD)
        images = [
            np.where(body[part], np.clip(image[part].astype(np.float64), SYNTHRAD_LOW, SYNTHRAD_HIGH), SYNTHRAD_LOW)
            - SYNTHRAD_LOW
            for image in (real, fake)
        ]
        _, ssim_map = structural_similarity(*images, data_range=SYNTHRAD_HIGH - SYNTHRAD_LOW, full=True)
        inside = (slice(_PAD, -_PAD),) * 3
        chosen = ssim_map[inside][body[part][inside]]
        total, count = total + float(chosen.sum()), count + chosen.size
    return total / count


def _of_case(case: CaseSlices) -> dict[str, float]:
    """Of the slices as one volume. None across a gap: what lies there would be made up."""
    run = case.runs[0]
    if len(case.runs) > 1 or min(len(run), *run[0].real.shape) < SMALLEST:
        return {}
    return {f"synthrad2023_{key}": value for key, value in synthrad2023(*stacked(run)).items()}


def _metric(key: str, better: Literal["higher", "lower"], unit: str | None, reason: str) -> Metric:
    return Metric(
        *(f"synthrad2023_{key}", f"SynthRAD2023 {key.upper()}", "Protocol synthrad2023", "case", better, unit),
        asked=("synthrad2023",),
        reason=reason,
        setting="SynthRAD2023: body mask, [-1024, 3000] HU; all slices of a case as one volume",
        of=_of_case,
    )


METRICS = (
    _metric("mae", "lower", None, "needs 7 slices or more without a gap, and a body mask"),
    _metric("psnr", "higher", "dB", "identical volumes everywhere, or no body mask, or gaps between the slices"),
    _metric("ssim", "higher", "", "needs 7 slices or more without a gap, and a body mask"),
)
