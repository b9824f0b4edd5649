"""From labels to intensities: mixture, texture, partial volume, bias, contrast, noise, the scanner's resolution.

Images are (B, C, *S) float32, in the acquisition one channel (*S).
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

    labels (B, *S) label indices, or (B, *(f · S)) for f samples per voxel and axis: then means and stds are averaged over a
    voxel's samples, as in partial volume. means, stds (B, C, N); grain (B, C, *S) of unit variance. -> (B, C, *S)
    """
    shape = tuple(grain.shape[2:])
    images = torch.empty_like(grain)
    fine = labels.shape[1] // shape[0]
    for b, label in enumerate(labels):
        for rows in slabs(shape, grain.device):
            part = label[rows.start * fine : rows.stop * fine]
            index, inner = part.flatten().int(), (rows.stop - rows.start, *shape[1:])
            for c in range(means.shape[1]):
                mean = _average(means[b, c].index_select(0, index).view(part.shape), inner)
                std = _average(stds[b, c].index_select(0, index).view(part.shape), inner)
                torch.addcmul(mean, std, grain[b, c, rows], out=images[b, c, rows])
    return images


def _average(fine: Tensor, shape: Shape) -> Tensor:
    """Mean over blocks: (*(f · S)) -> (*S); f = 1 returns the input."""
    for axis, size in enumerate(shape):
        factor = fine.shape[axis] // size
        if factor > 1:
            fine = fine.unflatten(axis, (size, factor)).mean(axis + 1)
    return fine


def textured_grain(grain: Tensor, labels: Tensor, fwhm: Tensor) -> Tensor:
    """Grain with a texture of its own in each label, of unit variance whatever its width.

    grain (B, C, *S) white, unit variance; labels (B, *S); fwhm (B, N) voxels, rounded to TEXTURE_LEVELS widths (and 0).
    cornucopia's texture loses its variance when it is smoothed (down to 2 % of the std at 10 voxels); here every voxel's
    gain undoes the smoothing exactly, at edges too.
    """
    step = float(fwhm.max()) / TEXTURE_LEVELS
    if step <= 0:
        return grain
    level = (fwhm / step).round().int()
    out = grain.clone()
    for k in range(1, TEXTURE_LEVELS + 1):
        members = level == k  # (B, N)
        if members.any():
            smooth = _smooth_grain(grain, k * step * FWHM_TO_SIGMA)
            for b in range(len(grain)):
                inside = members[b].to(labels.device).index_select(0, labels[b].flatten().int()).view(labels[b].shape)
                out[b] = torch.where(inside, smooth[b], out[b])
    return out


def _smooth_grain(grain: Tensor, sigma: float) -> Tensor:
    for axis in range(2, grain.ndim):
        matrix = gaussian_matrix(grain.shape[axis], sigma)
        grain = along(grain, matrix / matrix.square().sum(1, keepdim=True).sqrt(), axis)
    return grain


def apply_bias(image: Tensor, nodes: Sequence[Tensor], order: int = 1) -> Tensor:
    """image (B, C, *S) times exp(upsampled nodes), one (C, *g) grid of log-factors per sample; slab by slab."""
    shape = tuple(image.shape[2:])
    out = torch.empty_like(image)
    for b, grid in enumerate(nodes):
        field = upsample(grid, shape[1:], order, first=2)  # all axes but the first
        for rows in slabs(shape, image.device):
            part = upsample_rows(field, shape[0], rows, order)
            torch.mul(image[b, :, rows], part.exp_(), out=out[b, :, rows])
    return out


def tone(image: Tensor, gamma: Tensor | None, normalise: Normalise) -> Tensor:
    """Range and gamma. image (B, C, *S) on 0-255; gamma (B, C), the exponent is exp(gamma).

    minmax: clip to [0, 300], then each image's own minimum and maximum to 0 and 1 (lab2im, SynthSeg). window: 0-255 to
    [0, 1], clipped, so intensities keep their meaning. max, quantile: positive values over 300; `final_range` then
    takes the maximum or the quantiles. Gamma acts on the result, so the ends stay where they are.
    """
    shape = (*image.shape[:2], *[1] * (image.ndim - 2))
    if normalise == "minmax":
        image = image.clamp(0, CLIP)
        flat = image.flatten(2)
        low, high = flat.amin(-1).view(shape), flat.amax(-1).view(shape)
        image.sub_(low).div_((high - low).clamp(min=1e-7))
    elif normalise == "window":
        image = (image / FULL_SCALE).clamp_(0, 1)
    else:
        image = (image / CLIP).clamp_(min=0)
    if gamma is not None:
        for b in range(len(image)):
            for c in range(image.shape[1]):
                exponent = math.exp(float(gamma[b, c]))
                if exponent != 1:
                    image[b, c].pow_(exponent)
    return image


def final_range(image: Tensor, normalise: Normalise) -> Tensor:
    """The last step's range, since noise and blur may have left it.

    max: negative noise cut, then over the maximum of each image, to [0, 1]; quantile: 1 and 99 % of the non-zero voxels to
    0 and 1, unclipped (cornucopia); minmax, window: clipped to [0, 1].
    """
    if normalise in ("minmax", "window"):
        return image.clamp(0, 1)
    out = torch.empty_like(image)
    for source, target in zip(image.flatten(0, 1), out.flatten(0, 1), strict=True):
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
    """Magnitude of the Sobel gradient, clipped at ten and scaled by each image's own minimum and maximum to [0, 1].

    image (B, C, *S) -> the same; SynthSeg's `return_gradients`, which trains on edges instead of intensities.
    """
    total = torch.zeros_like(image)
    for axis in range(2, image.ndim):
        part = image
        for other in range(2, image.ndim):
            taps = (-1.0, 0.0, 1.0) if other == axis else (1.0, 2.0, 1.0)
            part = _three_taps(part, other, taps)
        total.add_(part.square())
    magnitude = total.sqrt_().clamp_(max=10)
    flat = magnitude.flatten(2)
    shape = (*image.shape[:2], *[1] * (image.ndim - 2))
    low, high = flat.amin(-1).view(shape), flat.amax(-1).view(shape)
    return (magnitude - low) / (high - low).clamp(min=1e-7)


def _three_taps(image: Tensor, axis: int, taps: tuple[float, float, float]) -> Tensor:
    """Convolution with three taps along one axis, edges replicated."""
    size = image.shape[axis]
    index = torch.arange(size, device=image.device)
    before = image.index_select(axis, (index - 1).clamp(min=0))
    after = image.index_select(axis, (index + 1).clamp(max=size - 1))
    return taps[0] * before + taps[1] * image + taps[2] * after
