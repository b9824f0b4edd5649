"""A generator that is slow and plain on purpose: float64 numpy, full resolution, one formula a line.

Every function states its formula; none calls models/gmm. test_reference.py compares the engine against these functions.
Only the grain and noise are the engine's own draws (`torch.Generator` of the parameters' seed): no formula can repeat them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, map_coordinates
from scipy.spatial.transform import Rotation

from models.gmm.params import Params

Array = NDArray[np.float64]


def control_grid(grid: Array, shape: Sequence[int], order: int = 1) -> Array:
    """Corner-aligned nodes (*g) at every voxel (*S): voxel x stands at node x · (g - 1) / (S - 1)."""
    axes = [np.arange(S) * (g - 1) / max(S - 1, 1) for S, g in zip(shape, grid.shape, strict=True)]
    where = np.stack(np.meshgrid(*axes, indexing="ij"))
    # without the prefilter the nodes are B-spline coefficients; "mirror" reflects about the outer nodes
    return map_coordinates(np.asarray(grid, np.float64), where, order=order, mode="mirror", prefilter=False)


def displacement(velocity: Array, shape: Sequence[int], order: int = 1, squarings: int = 10) -> Array:
    """Displacement (n, *S) of a stationary velocity field at every voxel: u <- u + u(x + u), from u = v / 2^squarings."""
    u = np.stack([control_grid(v, shape, order) for v in velocity]) / 2**squarings
    x = np.indices(shape, dtype=np.float64)
    for _ in range(squarings):
        u = u + np.stack([map_coordinates(part, x + u, order=1, mode="nearest") for part in u])
    return u


def affine(rotation: Array, scaling: Array, shearing: Array, translation: Array) -> Array:
    """(n, n + 1): Scale · Shear · Rotation | t."""
    n = len(scaling)
    angles = rotation if n == 3 else [0, 0, -rotation[0]]
    turn = Rotation.from_euler("XYZ", angles, degrees=True).as_matrix()[:n, :n]  # Rx · Ry · Rz
    shear = np.eye(n)
    shear[shear == 0] = shearing  # row by row
    return np.column_stack([np.diag(scaling) @ shear @ turn, translation])


def coordinates(matrix: Array | None, u: Array | None, shape: Sequence[int], points: Array | None = None) -> Array:
    """Where points (n, ...) read the map: c + A · (x - c + u(x)) + t; default every voxel."""
    n = len(shape)
    x = np.indices(shape, dtype=np.float64) if points is None else points
    c = ((np.asarray(shape) - 1) / 2).reshape(n, *[1] * (x.ndim - 1))
    moved = x - c
    if u is not None:
        moved = moved + np.stack([map_coordinates(part, x, order=1, mode="nearest") for part in u])
    if matrix is None:
        return moved + c
    return np.einsum("ij,j...->i...", matrix[:, :n], moved) + c + matrix[:, n].reshape(c.shape)


def nearest(labels: NDArray, where: Array, fill: int) -> NDArray:
    """Label of the voxel that holds each point, `fill` outside."""
    index = np.floor(where + 0.5).astype(int)
    inside = ((index >= 0) & (index < np.reshape(labels.shape, (-1, *[1] * labels.ndim)))).all(0)
    out = np.full(where.shape[1:], fill, labels.dtype)
    out[inside] = labels[tuple(index[:, inside])]
    return out


def deform(labels: NDArray, params: Params, fine: int = 1, squarings: int = 10) -> NDArray:
    """The label map of `models.gmm.render.deform`, from full-resolution coordinates."""
    matrix = None if params.affine is None else params.affine.double().numpy()
    u = None
    if params.velocity is not None:
        velocity = params.velocity.double().numpy()
        if params.integrate:
            u = displacement(velocity, params.shape, params.spline, squarings)
        else:
            u = np.stack([control_grid(part, params.shape, params.spline) for part in velocity])
    axes = [
        start + (np.arange(size * fine) + 0.5) / fine - 0.5
        for start, size in zip(params.crop_start, params.crop_shape, strict=True)
    ]
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    moved = nearest(labels, coordinates(matrix, u, params.shape, points), params.fill)
    if params.flip:
        moved = moved[::-1]
        if params.partners is not None:
            moved = np.asarray(params.partners, labels.dtype)[moved]
    return moved


def blur(image: Array, sigma: float, axis: int) -> Array:
    """Gaussian blur whose weights inside the image sum to one."""
    if sigma <= 0:
        return image
    blurred, sums = (
        gaussian_filter1d(x, sigma, axis, mode="constant", truncate=8) for x in (image, np.ones_like(image))
    )
    return blurred / sums


def resample(image: Array, count: int, axis: int) -> Array:
    """Linear interpolation at (j + 1/2) · S / n - 1/2, edges replicated."""
    size = image.shape[axis]
    where = (np.arange(count) + 0.5) * size / count - 0.5
    return np.apply_along_axis(lambda line: np.interp(where, np.arange(size), line), axis, image)


def acquire(
    image: Array, low: Sequence[int], sigma: Sequence[float], out: Sequence[int], noise: Sequence[Array] = ()
) -> Array:
    """Blur and sample coarsely, add the noise fields of Gaussian (one) or chi type (2 · coils), interpolate back."""
    for axis in range(image.ndim):
        image = resample(blur(image, sigma[axis], axis), low[axis], axis)
    if len(noise) == 1:
        image = image + noise[0]
    elif noise:
        image = np.sqrt((image + noise[0]) ** 2 + sum(part**2 for part in noise[1:]))
    for axis in range(image.ndim):
        image = resample(image, out[axis], axis)
    return image


def mixture(labels: NDArray, means: Array, stds: Array, grain: Array) -> Array:
    """mean + std · grain, both averaged over the samples of a voxel. labels (*(f · S)), grain (*S)."""
    factor, n = labels.shape[0] // grain.shape[0], labels.ndim
    samples = labels.reshape([part for size in grain.shape for part in (size, factor)])
    mean, std = (table[samples].mean(tuple(range(1, 2 * n, 2))) for table in (means, stds))
    return mean + std * grain


def texture(grain: Array, sigma: float) -> Array:
    """White grain smoothed, each voxel over the standard deviation that the smoothing leaves there."""
    for axis, size in enumerate(grain.shape):
        distance = np.arange(size)[:, None] - np.arange(size)
        weight = np.exp(-(distance**2) / (2 * sigma**2))
        weight = weight / np.sqrt((weight**2).sum(1, keepdims=True))
        grain = np.moveaxis(np.tensordot(weight, grain, (1, axis)), 0, axis)
    return grain


def tone(image: Array, bias: Array | None, gamma: float | None, normalise: str) -> Array:
    """Bias, range and gamma of one channel."""
    image = image if bias is None else image * bias
    if normalise == "minmax":
        image = np.clip(image, 0, 300)
        image = (image - image.min()) / max(image.max() - image.min(), 1e-7)
    elif normalise == "window":
        image = np.clip(image / 255, 0, 1)
    else:
        image = np.maximum(image / 300, 0)
    return image if gamma is None else image ** np.exp(gamma)


def final_range(image: Array, normalise: str) -> Array:
    """The last range of one channel (quantile: see the docstring of the engine's `final_range`)."""
    if normalise in ("minmax", "window"):
        return np.clip(image, 0, 1)
    if normalise == "max":
        return np.maximum(image, 0) / image.max()
    values = image[image != 0]
    values = np.sort(values[:: max(1, len(values) // 10_000)])
    low, high = (values[round(share * (len(values) - 1))] for share in (0.01, 0.99))
    return (image - low) / (high - low)


def draws(params: Params) -> tuple[Array, list[list[Array]]]:
    """Grain (C, *crop) and the noise fields of each channel, as the engine draws them."""
    random = torch.Generator().manual_seed(params.seed)
    channels = len(params.means)
    grain = torch.randn(1, channels, *params.crop_shape, generator=random)[0].double().numpy()
    noise: list[list[Array]] = []
    for c in range(channels):
        count = 0 if params.noise[c] == 0 else max(1, 2 * params.coils[c])
        fields = [torch.randn(params.low_shape[c], generator=random).double().numpy() for _ in range(count)]
        noise.append([params.noise[c] * field for field in fields])
    return grain, noise


def paint(deformed: NDArray, params: Params) -> Array:
    """(C, *out) of deformed labels, without texture, artefacts and gradients."""
    assert params.fwhm is None
    assert not params.artefacts
    assert not params.gradients
    grain, noise = draws(params)
    channels = []
    for c in range(len(grain)):
        stds = params.stds[c].double().numpy() * params.gain[c]
        image = mixture(deformed, params.means[c].double().numpy(), stds, grain[c])
        bias = None
        if params.bias is not None:
            bias = np.exp(control_grid(params.bias[c].double().numpy(), params.crop_shape, params.spline))
        gamma = None if params.gamma is None else float(params.gamma[c])
        image = tone(image, bias, gamma, params.normalise)
        image = acquire(image, params.low_shape[c], params.sigma[c], params.out_shape, noise[c])
        channels.append(final_range(image, params.normalise))
    return np.stack(channels)
