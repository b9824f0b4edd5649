"""Real images through the generator: everything that happens to a synthetic image but the mixture.

As FetalSynthSeg's real_train, which scales the image to 0-255 and puts it where the mixture would be (gmm.md, 2.3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.gmm.intensity import FULL_SCALE, apply_bias, final_range, gradient_magnitude, tone
from models.gmm.labels import LabelScheme
from models.gmm.params import Params
from models.gmm.render import acquire_channels, backward_coordinates, deform, output_labels
from models.gmm.resampling import interpolate_axis
from models.gmm.spatial import window_taps


def repaint(image: Tensor, labels: Tensor, params: Params, scheme: LabelScheme) -> tuple[Tensor, Tensor]:
    """Image (C, *S) in [0, 1] and label indices (*S) under one draw -> (C, *out) and output values (*out) int32.

    Deformation, crop, mirror, bias field, range, gamma and acquisition are those of `render_pair`; means, standard
    deviations, texture and artefacts, which belong to the mixture or to its labels, are not used. Outside the map: 0.
    """
    random = torch.Generator(image.device).manual_seed(params.seed)
    moved = deform_image(image, params)[None] * FULL_SCALE
    if params.bias is not None:
        moved = apply_bias(moved, [params.bias.to(image.device)], params.spline)
    moved = tone(moved, None if params.gamma is None else params.gamma[None], params.normalise)
    out = final_range(acquire_channels(moved, params, random), params.normalise)
    out = gradient_magnitude(out) if params.gradients else out
    return out[0], output_labels(deform(labels, params, params.out_shape), scheme)


def deform_image(image: Tensor, params: Params) -> Tensor:
    """(C, *S) -> (C, *crop), moved as `render.deform` moves the labels, linearly; 0 outside the map."""
    n, shape = len(params.shape), params.shape
    assert tuple(image.shape[1:]) == shape, (tuple(image.shape), shape)
    low = [max(0, start) for start in params.crop_start]
    high = [min(s, start + size) for s, start, size in zip(shape, params.crop_start, params.crop_shape, strict=True)]
    if params.affine is None and params.velocity is None:
        inner = image[(slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))]
    else:
        where = backward_coordinates(params, image.device)
        for axis in range(n, 0, -1):  # to the window's voxels only
            size = high[axis - 1] - low[axis - 1]
            taps = window_taps(where.shape[axis], shape[axis - 1], low[axis - 1], size, size)
            where = interpolate_axis(where, axis, taps)
        unit = torch.tensor([2 / max(size - 1, 1) for size in shape], device=image.device).view(n, *[1] * n)
        grid = (where * unit - 1).flip(0).movedim(0, -1)
        inner = torch.nn.functional.grid_sample(image[None], grid[None].to(image), align_corners=True)[0]
    margins = []
    for start, size, a, b in reversed(list(zip(params.crop_start, params.crop_shape, low, high, strict=True))):
        margins += [a - start, start + size - b]
    window = torch.nn.functional.pad(inner, margins)
    return window.flip(1) if params.flip else window
