"""From labels to intensities: mixture, texture, partial volume, bias, contrast, noise, the scanner's resolution.

Images are (C, *S) float32, in the acquisition one channel (*S).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from models.gmm.resampling import (
    Shape,
    acquisition_matrix,
    along,
    gaussian_matrix,
    linear_matrix,
    sample_positions,
    slabs,
    upsample,
    upsample_rows,
)

Normalise = Literal["minmax", "window", "max", "quantile"]
FULL_SCALE = 255.0  # intensities of priors are on 0-255, as everywhere in the family
CLIP = 300.0  # lab2im clips here before its min-max
TEXTURE_LEVELS = 4
FWHM_TO_SIGMA = 1 / math.sqrt(8 * math.log(2))


def mixture(labels: Tensor, means: Tensor, stds: Tensor, grain: Tensor) -> Tensor:
    """Gaussian mixture by label: mean[label] + std[label] · grain.

    labels (*S) label indices, or (*(f · S)) for f samples per voxel and axis: then means and stds are averaged over a
    voxel's samples, as in partial volume. means, stds (C, N); grain (C, *S) of unit variance. -> (C, *S)
    """
    shape, image = tuple(grain.shape[1:]), torch.empty_like(grain)
    fine = len(labels) // shape[0]
    for rows in slabs(shape, grain.device):
        part = labels[rows.start * fine : rows.stop * fine]
        index, inner = part.flatten().int(), (rows.stop - rows.start, *shape[1:])
        for c in range(len(means)):
            mean = _average(means[c].index_select(0, index).view(part.shape), inner)
            std = _average(stds[c].index_select(0, index).view(part.shape), inner)
            torch.addcmul(mean, std, grain[c, rows], out=image[c, rows])
    return image


def _average(fine: Tensor, shape: Shape) -> Tensor:
    """Mean over blocks: (*(f · S)) -> (*S); f = 1 returns the input."""
    for axis, size in enumerate(shape):
        factor = fine.shape[axis] // size
        if factor > 1:
            fine = fine.unflatten(axis, (size, factor)).mean(axis + 1)
    return fine


def textured_grain(grain: Tensor, labels: Tensor, fwhm: Tensor) -> Tensor:
    """Grain with a texture of its own in each label, of unit variance whatever its width.

    grain (C, *S) white, unit variance; labels (*S); fwhm (N,) voxels, rounded to TEXTURE_LEVELS widths (and 0).
    cornucopia's texture loses its variance when it is smoothed (down to 2 % of the std at 10 voxels); here every voxel's
    gain undoes the smoothing exactly, at edges too.
    """
    step = float(fwhm.max()) / TEXTURE_LEVELS
    if step <= 0:
        return grain
    level, out = (fwhm / step).round().int().to(labels.device), grain
    for k in range(1, TEXTURE_LEVELS + 1):
        members = level == k  # (N,)
        if members.any():
            inside = members.index_select(0, labels.flatten().int()).view(labels.shape)
            out = torch.where(inside, _smooth_grain(grain, k * step * FWHM_TO_SIGMA), out)
    return out


def _smooth_grain(grain: Tensor, sigma: float) -> Tensor:
    for axis in range(1, grain.ndim):
        matrix = gaussian_matrix(grain.shape[axis], sigma)
        grain = along(grain, matrix / matrix.square().sum(1, keepdim=True).sqrt(), axis)
    return grain


def apply_bias(image: Tensor, nodes: Tensor, order: int = 1) -> Tensor:
    """image (C, *S) times exp(upsampled nodes), a (C, *g) grid of log-factors; slab by slab."""
    shape, out = tuple(image.shape[1:]), torch.empty_like(image)
    field = upsample(nodes, shape[1:], order, first=2)  # all axes but the first
    for rows in slabs(shape, image.device):
        part = upsample_rows(field, shape[0], rows, order)
        torch.mul(image[:, rows], part.exp_(), out=out[:, rows])
    return out


def tone(image: Tensor, gamma: Tensor | None, normalise: Normalise) -> Tensor:
    """Range and gamma. image (C, *S) on 0-255; gamma (C,), the exponent is exp(gamma).

    minmax: clip to [0, 300], then each channel's own minimum and maximum to 0 and 1 (lab2im, SynthSeg). window: 0-255 to
    [0, 1], clipped, so intensities keep their meaning. max, quantile: positive values over 300; `final_range` then
    takes the maximum or the quantiles. Gamma acts on the result, so the ends stay where they are.
    """
    if normalise == "minmax":
        image = image.clamp(0, CLIP)
        low, high = _ends(image)
        image.sub_(low).div_((high - low).clamp(min=1e-7))
    elif normalise == "window":
        image = (image / FULL_SCALE).clamp_(0, 1)
    else:
        image = (image / CLIP).clamp_(min=0)
    if gamma is not None:
        for channel, log_exponent in zip(image, gamma.tolist(), strict=True):
            if log_exponent:
                channel.pow_(math.exp(log_exponent))
    return image


def _ends(image: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each channel, (C, 1, ...)."""
    axes = tuple(range(1, image.ndim))
    return image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)


def final_range(image: Tensor, normalise: Normalise) -> Tensor:
    """The last step's range, since noise and blur may have left it.

    max: negative noise cut, then over the maximum of each channel, to [0, 1]; quantile: 1 and 99 % of the non-zero voxels to
    0 and 1, unclipped (cornucopia); minmax, window: clipped to [0, 1].
    """
    if normalise in ("minmax", "window"):
        return image.clamp(0, 1)
    out = torch.empty_like(image)
    for source, target in zip(image, out, strict=True):
        if normalise == "max":
            torch.div(source.clamp(min=0), source.amax().clamp(min=1e-7), out=target)
        else:
            low, high = _quantiles(source)
            torch.div(source - low, (high - low).clamp(min=1e-7), out=target)
    return out


def _quantiles(image: Tensor) -> tuple[Tensor, Tensor]:
    """1 and 99 % of at most 10,000 evenly spaced non-zero voxels."""
    values = image[image != 0]
    if len(values) == 0:
        return image.new_zeros(()), image.new_ones(())
    values = values[:: max(1, len(values) // 10_000)].sort().values
    last = len(values) - 1
    return values[round(0.01 * last)], values[round(0.99 * last)]


def add_noise(image: Tensor, std: float, generator: torch.Generator, coils: int = 0) -> Tensor:
    """Receiver noise on a magnitude image (*S): Gaussian (coils 0), Rician (1) or non-central chi of so many coils.

    std in the image's units, of each coil's real and imaginary part. Chi as a sum of squares: the signal stands in the
    first coil, all others and the imaginary parts hold noise alone (Constantinides et al., MRM 1997).
    """

    def draw() -> Tensor:
        return torch.randn(image.shape, generator=generator, device=image.device).mul_(std)

    if coils == 0:
        return image + draw()
    power = (image + draw()).square_()
    for _ in range(2 * coils - 1):
        power.add_(draw().square_())
    return power.sqrt_()


def low_shape(shape: Shape, spacing: Sequence[float], resolution: Sequence[float]) -> Shape:
    """Voxels of the coarse grid: as many whole ones of `resolution` (mm) as the field of view holds; never finer."""
    return tuple(
        max(1, min(size, math.floor(size * mm / r + 1e-6)))
        for size, mm, r in zip(shape, spacing, resolution, strict=True)
    )


def acquire(
    image: Tensor,
    low: Shape,
    sigma: Sequence[float],
    out: Shape,
    *,
    noise: float = 0.0,
    coils: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One channel through the scanner: image (*S) -> (*out).

    low: shape of the coarse grid (`low_shape`); sigma: blur before sampling, voxels of S per axis; noise: its
    standard deviation on the coarse grid, in the image's units; coils: see `add_noise`. All grids share their centre, so
    the image does not move against its labels; constants stay constants up to the edge.
    """
    for axis, (count, s) in enumerate(zip(low, sigma, strict=True)):
        if count != image.shape[axis] or s > 0:
            image = along(image, acquisition_matrix(image.shape[axis], count, s), axis)
    if noise > 0:
        assert generator is not None
        image = add_noise(image, noise, generator, coils)
    for axis, count in enumerate(out):
        if count != image.shape[axis]:
            image = along(image, linear_matrix(count, image.shape[axis]), axis)
    return image


def nearest_labels(labels: Tensor, out: Shape) -> Tensor:
    """Labels (..., *S) on the grid that `acquire` gives the image: the nearest voxel to each centre, (..., *out)."""
    first = labels.ndim - len(out)
    for axis, count in enumerate(out, first):
        size = labels.shape[axis]
        if count != size:
            index = sample_positions(count, size).add(0.5).floor().long().to(labels.device)
            labels = labels.index_select(axis, index)
    return labels


def gradient_magnitude(image: Tensor) -> Tensor:
    """Magnitude of the Sobel gradient, clipped at ten and scaled by each channel's own minimum and maximum to [0, 1].

    image (C, *S) -> the same; SynthSeg's `return_gradients`, which trains on edges instead of intensities.
    """
    total = torch.zeros_like(image)
    for axis in range(1, image.ndim):
        part = image
        for other in range(1, image.ndim):
            taps = (-1.0, 0.0, 1.0) if other == axis else (1.0, 2.0, 1.0)
            part = _three_taps(part, other, taps)
        total.add_(part.square())
    magnitude = total.sqrt_().clamp_(max=10)
    low, high = _ends(magnitude)
    return (magnitude - low) / (high - low).clamp(min=1e-7)


def _three_taps(image: Tensor, axis: int, taps: tuple[float, float, float]) -> Tensor:
    """Convolution with three taps along one axis, edges replicated."""
    size = image.shape[axis]
    index = torch.arange(size, device=image.device)
    before = image.index_select(axis, (index - 1).clamp(min=0))
    after = image.index_select(axis, (index + 1).clamp(max=size - 1))
    return taps[0] * before + taps[1] * image + taps[2] * after
