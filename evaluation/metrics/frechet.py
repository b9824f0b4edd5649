"""Fréchet distance between two sets of features, without a matrix square root."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def frechet_distance(real: NDArray, fake: NDArray) -> float:
    """|mu_x - mu_y|² + tr(C_x) + tr(C_y) - 2 tr((C_x C_y)^½) of Gaussians fitted to features (n, d) and (m, d).

    With centred features X, Y scaled by 1/sqrt(n-1), 1/sqrt(m-1), the last trace is the nuclear norm of X Yᵀ: exact
    for n < d, where eigenvalue and square-root formulas suffer from the rank deficiency of C. Heusel et al., NeurIPS
    2017, eq. 6. Needs at least two samples on each side.
    """
    if len(real) < 2 or len(fake) < 2:
        raise ValueError(f"the Fréchet distance needs two samples a side, got {len(real)} and {len(fake)}")
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    x = (real - real.mean(0)) / np.sqrt(len(real) - 1)
    y = (fake - fake.mean(0)) / np.sqrt(len(fake) - 1)
    mean_term = float(((real.mean(0) - fake.mean(0)) ** 2).sum())
    if min(len(x), len(y)) > x.shape[1]:
        # More samples than features: X Yᵀ has the singular values of R_x R_yᵀ, which is only d × d.
        x, y = np.linalg.qr(x, mode="r"), np.linalg.qr(y, mode="r")
    trace_root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return max(0.0, mean_term + float((x**2).sum() + (y**2).sum() - 2 * trace_root))


def frechet_of_moments(mean: NDArray, covariance: NDArray, fake: NDArray) -> float:
    """As `frechet_distance`, with the real set given by mean (d,) and covariance (d, d), as pytorch-fid saves them."""
    fake = np.asarray(fake, np.float64)
    if mean.shape != fake.shape[1:] or covariance.shape != (fake.shape[1],) * 2:
        raise ValueError(f"moments {mean.shape} and {covariance.shape} do not fit features {fake.shape}")
    if len(fake) < 2:
        raise ValueError(f"the Fréchet distance needs two samples, got {len(fake)}")
    y = (fake - fake.mean(0)) / np.sqrt(len(fake) - 1)
    scales, axes = np.linalg.eigh(np.asarray(covariance, np.float64))
    root = axes * np.sqrt(np.clip(scales, 0, None))  # covariance = root rootᵀ, so the trace is a nuclear norm again
    trace_root = np.linalg.svd(root.T @ y.T, compute_uv=False).sum()
    mean_term = float(((mean - fake.mean(0)) ** 2).sum())
    return max(0.0, mean_term + float(np.trace(covariance) + (y**2).sum() - 2 * trace_root))
