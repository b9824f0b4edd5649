"""From parameters to images. Nothing is drawn here but grain and noise, from the parameters' seed.

Samples are rendered one by one: an image cannot depend on its batch, and on a CPU a volume gains nothing from company.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.gmm.artefacts.fields import Masks
from models.gmm.intensity import (
    FULL_SCALE,
    acquire,
    apply_bias,
    final_range,
    gradient_magnitude,
    mixture,
    nearest_labels,
    textured_grain,
    tone,
)
from models.gmm.params import Params
from models.gmm.resampling import Shape, interpolate_axis
from models.gmm.scheme import LabelScheme
from models.gmm.spatial import integrate_velocity, look_up, source_coordinates, window_taps

FINE = 2  # samples per voxel and axis for partial volume


def deform(labels: Tensor, params: Params, counts: Shape | None = None) -> Tensor:
    """The label map moved, cropped and mirrored: (*S) label indices -> (*counts), same type and device.

    counts: samples per axis over the crop, default one per voxel. Labels beyond the map are background.
    """
    assert tuple(labels.shape) == params.shape, (tuple(labels.shape), params.shape)
    counts = params.crop_shape if counts is None else counts
    whole = params.crop_start == (0,) * labels.ndim and counts == params.crop_shape == params.shape
    if params.affine is None and params.velocity is None and whole:
        moved = labels.flip(0) if params.flip else labels
    else:
        where = backward_coordinates(params, labels.device)
        window = (params.crop_start, params.crop_shape, counts)
        moved = look_up(labels, where, *window, flip=params.flip, fill=params.fill)
    if params.flip and params.partners is not None:
        table = torch.tensor(params.partners, dtype=labels.dtype, device=labels.device)
        moved = table.index_select(0, moved.flatten().int()).view(moved.shape)
    return moved


def backward_coordinates(params: Params, device: torch.device | str = "cpu") -> Tensor:
    """Where the voxels of the undisplaced map read it, (n, *m) at corner-aligned nodes (see `source_coordinates`)."""
    n = len(params.shape)
    affine = params.affine if params.affine is not None else torch.eye(n, n + 1, dtype=torch.float64)
    displacement = None
    if params.velocity is not None:
        steps = None if params.integrate else 0
        displacement = integrate_velocity(
            params.velocity, params.shape, order=params.spline, steps=steps, device=device
        )
    return source_coordinates(affine.float().to(device), displacement, params.shape)


def paint(deformed: Tensor, params: Params) -> Tensor:
    """Intensities for deformed labels: (*crop), or (*(crop · f)) for partial volume -> (C, *out) float32 in [0, 1].

    Order as in SynthSeg: mixture, bias field, range, gamma, then the acquisition per channel with its noise, at last the
    artefacts, which need the final grid.
    """
    device, channels = deformed.device, len(params.means)
    random = torch.Generator(device).manual_seed(params.seed)
    grain = torch.randn(channels, *params.crop_shape, generator=random, device=device)
    voxels = nearest_labels(deformed, params.crop_shape)
    if params.fwhm is not None:
        grain = textured_grain(grain, voxels, params.fwhm)
    stds = params.stds * torch.tensor(params.gain)[:, None]
    image = mixture(deformed, params.means.to(device), stds.to(device), grain)
    del grain
    if params.bias is not None:
        image = apply_bias(image, params.bias.to(device), params.spline)
    image = tone(image, params.gamma, params.normalise)
    image = acquire_channels(image, params, random)
    image = final_range(image, params.normalise)
    if params.artefacts:
        masks = _masks(nearest_labels(voxels, params.out_shape), params)
        for artefact in params.artefacts:
            image = artefact(image, masks)
        image = image.clamp(0, 1) if params.normalise != "quantile" else image
    return gradient_magnitude(image) if params.gradients else image


def acquire_channels(image: Tensor, params: Params, random: torch.Generator) -> Tensor:
    """Every channel through its own acquisition: (C, *crop) -> (C, *out)."""
    own = zip(image, params.low_shape, params.sigma, params.noise, params.coils, strict=True)
    channels = [
        acquire(channel, low, sigma, params.out_shape, noise=noise, coils=coils, generator=random)
        for channel, low, sigma, noise, coils in own
    ]
    return torch.stack(channels)


def _masks(labels: Tensor, params: Params) -> Masks:
    def region(name: str) -> Tensor:
        table = torch.zeros(params.means.shape[1], dtype=torch.bool, device=labels.device)
        table[list(params.roles.get(name, ()))] = True
        return table.index_select(0, labels.flatten().int()).view(labels.shape)

    return Masks(cortex=region("cortex"), white_matter=region("white_matter"), brain=region("brain"))


def render(labels: Tensor, params: Params) -> Tensor:
    """Image (C, *out) of a label map (*S).

    Same parameters, same image, bit for bit, on one device with one number of threads (with another one labels are the
    same and intensities within 2e-7).
    """
    return paint(deform(labels, params, _samples(params)), params)


def _samples(params: Params) -> Shape | None:
    """Samples that the mixture needs per axis."""
    return tuple(FINE * size for size in params.crop_shape) if params.partial_volume else None


def render_pair(labels: Tensor, params: Params, scheme: LabelScheme) -> tuple[Tensor, Tensor]:
    """Image (C, *out) and its label map (*out) of the scheme's output values, int32."""
    deformed = deform(labels, params, _samples(params))
    image = paint(deformed, params)
    if params.partial_volume or params.out_shape != params.crop_shape:
        deformed = deform(labels, params, params.out_shape)  # looked up at the image's own voxels
    return image, output_labels(deformed, scheme)


def output_labels(deformed: Tensor, scheme: LabelScheme) -> Tensor:
    """Label indices (*S) as the scheme's output values, int32."""
    return scheme.output_table().to(deformed.device).index_select(0, deformed.flatten().int()).view(deformed.shape)


def repaint(image: Tensor, labels: Tensor, params: Params, scheme: LabelScheme) -> tuple[Tensor, Tensor]:
    """Image (C, *S) in [0, 1] and label indices (*S) under one draw -> (C, *out) and output values (*out) int32.

    As FetalSynthSeg's real_train, which scales the image to 0-255 and puts it where the mixture would be (gmm.md, 2.3).
    Deformation, crop, mirror, bias field, range, gamma and acquisition are those of `render_pair`; means, standard
    deviations, texture and artefacts, which belong to the mixture or to its labels, are not used. Outside the map: 0.
    """
    random = torch.Generator(image.device).manual_seed(params.seed)
    moved = deform_image(image, params) * FULL_SCALE
    if params.bias is not None:
        moved = apply_bias(moved, params.bias.to(image.device), params.spline)
    moved = tone(moved, params.gamma, params.normalise)
    out = final_range(acquire_channels(moved, params, random), params.normalise)
    out = gradient_magnitude(out) if params.gradients else out
    return out, output_labels(deform(labels, params, params.out_shape), scheme)


def deform_image(image: Tensor, params: Params) -> Tensor:
    """(C, *S) -> (C, *crop), moved as `render.deform` moves the labels, linearly; 0 outside the map."""
    n, shape = len(params.shape), params.shape
    assert tuple(image.shape[1:]) == shape, (tuple(image.shape), shape)
    where = backward_coordinates(params, image.device)
    for axis, start, size in zip(range(n, 0, -1), params.crop_start[::-1], params.crop_shape[::-1], strict=True):
        taps = window_taps(where.shape[axis], shape[axis - 1], start, size, size)
        where = interpolate_axis(where, axis, taps)
    unit = torch.tensor([2 / max(size - 1, 1) for size in shape], device=image.device).view(n, *[1] * n)
    grid = (where * unit - 1).flip(0).movedim(0, -1)
    window = F.grid_sample(image[None], grid[None].to(image), align_corners=True)[0]
    return window.flip(1) if params.flip else window
