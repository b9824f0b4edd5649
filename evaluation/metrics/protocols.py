"""Evaluation protocols of published challenges, number for number, so that results compare with theirs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

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
    NaN for an empty mask; PSNR is inf for identical volumes. ValueError for a side below 7 or shapes that differ.
    """
    if not np.ndim(real) == 3 or not np.shape(real) == np.shape(fake) == np.shape(mask):
        raise ValueError(
            f"synthrad2023 needs volumes (D, H, W) of one shape, got {np.shape(real)}, {np.shape(fake)} and "
            f"mask {np.shape(mask)}"
        )
    if min(np.shape(real)) < SMALLEST:
        raise ValueError(f"synthrad2023 needs volumes of at least 7×7×7 voxels, got {np.shape(real)}")
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
    box = []
    for axis in range(3):
        where = np.flatnonzero(inner.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(where[0], where[-1] + 1 + 2 * _PAD))  # the windows of those voxels, exactly
    real, fake, body = real[tuple(box)], fake[tuple(box)], body[tuple(box)]
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
