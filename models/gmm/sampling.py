"""Drawing the parameters of a sample from the options. What is drawn is in `Params`; nothing is drawn elsewhere.

Every stage has its own stream, split off the sample's seed: turning one stage off, or giving its values, leaves the draws
of all others as they were. All draws are on the CPU, so they do not depend on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.base import integer, seeded_generator, uniform
from models.gmm.artefacts import ARTEFACTS
from models.gmm.intensity import low_shape
from models.gmm.options import GmmConfig
from models.gmm.params import Params
from models.gmm.priors import FittedPrior, GivenPriors, draw_statistics, to_labels
from models.gmm.resampling import Shape, grain_gain, nodes
from models.gmm.scheme import LabelScheme, Role
from models.gmm.spatial import affine_matrix

ROLES: tuple[Role, ...] = ("cortex", "white_matter", "brain")  # regions that artefacts ask for
LESION_CONTRAST = (30.0, 90.0)  # how far a lesion's mean is from white matter's, on 0-255


Priors = GivenPriors | FittedPrior


Stream = Callable[[str], torch.Generator]  # of each stage its own


def sample_params(
    labels: Tensor,
    generator: torch.Generator,
    *,
    options: GmmConfig,
    scheme: LabelScheme | None = None,
    priors: Priors | None = None,
    channels: int = 1,
    spacing: Sequence[float] | None = None,
    fixed: Mapping[str, Any] | None = None,
    spatial: bool = True,
    sided: bool = True,
) -> Params:
    """Draw everything that makes one image of a label map.

    labels: (*S) label indices in 2-D or 3-D, RAS axes; only their shape is used, without a scheme also their maximum.
    priors: given or fitted; default random within the options' ranges. spacing: mm per axis, default 1. fixed: fields of
    `Params` that are given instead of drawn; the draws of the other fields stay the same. spatial: False leaves the map as
    it is, whatever the options say. sided: whether the first axis is left-right; sagittal slices are never mirrored.
    ValueError for options that do not fit the dimensions, and where a scheme without background shows what is outside.
    """
    scheme = LabelScheme.from_lists(range(int(labels.max()) + 1)) if scheme is None else scheme
    seed = int(torch.randint(2**62, (), generator=generator))
    stream = partial(seeded_generator, seed)
    shape = tuple(labels.shape)
    mm = tuple(float(s) for s in spacing) if spacing is not None else (1.0,) * len(shape)
    start, crop, out, out_mm = _window(shape, mm, options, stream("crop"), spatial)
    means, stds = draw_intensities(options, scheme, priors, channels, stream("intensities"))
    params = Params(
        seed=seed,
        shape=shape,
        spacing=mm,
        crop_start=start,
        crop_shape=crop,
        out_shape=out,
        **_deformation(options, scheme, shape, crop, stream, spatial, spatial and sided),
        means=means,
        stds=stds,
        fwhm=_texture(options, scheme.num_labels, stream("texture")),
        partial_volume=options.partial_volume,
        bias=_bias(options, channels, crop, stream("bias")),
        gamma=options.gamma_std * torch.randn(channels, generator=stream("gamma")) if options.gamma_std else None,
        normalise=options.normalise,
        **_acquisition(options, channels, crop, mm, out_mm, stream),
        gradients=options.return_gradients,
        artefacts=_artefacts(options, out, out_mm, stream),
    ).fixed(fixed or {})
    if params.artefacts and not params.roles:
        params.roles = {role: scheme.role(role) for role in ROLES}
    return params


def _between(generator: torch.Generator, values: Sequence[float]) -> float:
    """One value x: from 0..x; two: from low..high."""
    return uniform(generator, 0.0, values[0]) if len(values) == 1 else uniform(generator, values[0], values[1])


def _coin(generator: torch.Generator, probability: float) -> bool:
    return float(torch.rand((), generator=generator)) < probability


def draw_bounds(
    bounds: Sequence[float], centre: float, count: int, generator: torch.Generator, name: str = "bounds"
) -> list[float]:
    """`count` values in the forms that lab2im takes bounds in, its arrays flattened row by row.

    One number b: centre - b .. centre + b. Two: low..high for every value. 2 · count: lows, then highs. A multiple of that:
    one pair of rows is drawn for each sample. Raises ValueError for another length.
    """
    values = torch.as_tensor(list(bounds), dtype=torch.float64)
    if len(values) == 1:
        low, high = values.new_full((count,), centre) - values, values.new_full((count,), centre) + values
    elif len(values) == 2:
        low, high = values[:1].expand(count), values[1:].expand(count)
    elif len(values) % (2 * count) == 0 and len(values):
        rows = values.view(-1, 2, count)
        low, high = rows[int(torch.randint(len(rows), (), generator=generator))]
    else:
        raise ValueError(
            f"{name} has {len(values)} values: must be 1, 2, or a multiple of {2 * count} (lows, then highs)"
        )
    return (low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)).tolist()


def _deformation(
    options: GmmConfig, scheme: LabelScheme, shape: Shape, crop: Shape, stream: Stream, moves: bool, mirrors: bool
) -> dict[str, Any]:
    """The fields of `Params` on where voxels come from. ValueError where what is outside the map is seen but not known."""
    affine = _affine(options, shape, stream("affine")) if moves else None
    velocity = _velocity(options, shape, stream("velocity")) if moves else None
    padded = any(part > size for part, size in zip(crop, shape, strict=True))
    if scheme.background is None and (affine is not None or velocity is not None or padded):
        raise ValueError("generation_labels has no background (value 0), but what is outside the map is seen: list it")
    mirrors = mirrors and options.flipping and scheme.partners is not None
    return {
        "affine": affine,
        "velocity": velocity,
        "integrate": options.integrate,
        "spline": options.spline,
        "flip": mirrors and _coin(stream("flip"), 0.5),
        "partners": scheme.partners,
        "fill": scheme.background if scheme.background is not None else 0,
    }


def _affine(options: GmmConfig, shape: Shape, generator: torch.Generator) -> Tensor | None:
    bounds = (options.scaling_bounds, options.rotation_bounds, options.shearing_bounds, options.translation_bounds)
    if not any(any(b) for b in bounds):
        return None
    n = len(shape)
    scaling = draw_bounds(bounds[0], 1.0, n, generator, "scaling_bounds")
    rotation = draw_bounds(bounds[1], 0.0, 1 if n == 2 else 3, generator, "rotation_bounds")
    shearing = draw_bounds(bounds[2], 0.0, n * n - n, generator, "shearing_bounds")
    translation = draw_bounds(bounds[3], 0.0, n, generator, "translation_bounds")
    if options.spatial_unit == "fov":
        translation = [t * size for t, size in zip(translation, shape, strict=True)]
    return affine_matrix(rotation, scaling, shearing, translation)


def _grid(scales: Sequence[float], shape: Shape, generator: torch.Generator) -> Shape:
    """Shape of a control grid; a range of node counts (from 1 up) is drawn as whole numbers."""
    if len(scales) == 2 and scales[0] >= 1:
        low, high = round(scales[0]), round(scales[1])
        count = integer(generator, low, high)
        return tuple(nodes(size, count) for size in shape)
    scale = scales[0] if len(scales) == 1 else uniform(generator, scales[0], scales[1])
    return tuple(nodes(size, scale) for size in shape)


def _velocity(options: GmmConfig, shape: Shape, generator: torch.Generator) -> Tensor | None:
    if not any(options.nonlin_std):
        return None
    std = _between(generator, options.nonlin_std)
    grid = _grid(options.nonlin_scale, shape, generator)
    velocity = std * torch.randn(len(shape), *grid, generator=generator)
    if options.spatial_unit == "fov":
        velocity = velocity * torch.tensor(shape, dtype=torch.float32).view(-1, *[1] * len(shape))
    return velocity


def _window(
    shape: Shape, mm: tuple[float, ...], options: GmmConfig, generator: torch.Generator, spatial: bool
) -> tuple[Shape, Shape, Shape, tuple[float, ...]]:
    """Start and shape of the rendered window in map voxels; shape and voxel size in mm of the image made of it."""
    n = len(shape)
    if n not in (2, 3):
        raise ValueError(f"label map of shape {shape}: must have two or three dimensions")
    target = per_axis(options.target_res, n, "target_res") if options.target_res else mm
    factor = [m / t for m, t in zip(mm, target, strict=True)]
    wanted = per_axis(options.output_shape, n, "output_shape") if options.output_shape and spatial else None
    steps = options.output_div_by_n if isinstance(options.output_div_by_n, tuple) else (options.output_div_by_n,)
    multiples = [int(step) for step in per_axis(steps, n, "output_div_by_n")]
    out, crop = [], []
    for axis in range(n):
        size = int(wanted[axis]) if wanted is not None else max(1, math.floor(shape[axis] * factor[axis] + 1e-6))
        size = max(multiples[axis], size - size % multiples[axis]) if spatial else size
        unchanged = abs(factor[axis] - 1) < 1e-6
        out.append(size)
        crop.append(size if unchanged else max(1, round(size / factor[axis])))
    start = []
    for size, part in zip(shape, crop, strict=True):
        room = size - part
        # a map smaller than the window lies in its middle
        start.append(int(torch.randint(room + 1, (), generator=generator)) if room > 0 else -(-room // 2))
    return tuple(start), tuple(crop), tuple(out), tuple(m * c / o for m, c, o in zip(mm, crop, out, strict=True))


def per_axis(values: Sequence[float], n: int, name: str) -> tuple[float, ...]:
    """One value per axis from one or n values; ValueError naming the option otherwise."""
    if len(values) not in (1, n):
        raise ValueError(f"{name} has {len(values)} values: must be one, or one for each of {n} axes")
    return tuple(values) if len(values) == n else tuple(values) * n


def draw_intensities(
    options: GmmConfig, scheme: LabelScheme, priors: Priors | None, channels: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every label, two (C, N) tensors on 0-255."""
    if not isinstance(priors, FittedPrior):
        means, stds = draw_statistics(priors, options, scheme, channels, generator)
    elif options.vary:
        means, stds = to_labels(*priors.draw(generator, options.covariance), scheme, options, generator)
    else:
        means, stds = to_labels(priors.mean_center, priors.std_center, scheme, options, generator)
    if scheme.background is not None and _coin(generator, options.skull_strip_prob):
        outside = [i for i, value in enumerate(scheme.outputs) if value == 0]
        means[:, outside], stds[:, outside] = means[:, [scheme.background]], stds[:, [scheme.background]]
    return _with_lesions(means, stds, options, scheme, generator)


def _with_lesions(
    means: Tensor, stds: Tensor, options: GmmConfig, scheme: LabelScheme, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Lesions brighter (hyper) or darker (hypo) than white matter by LESION_CONTRAST, where the options ask for it."""
    kinds = options.lesion_contrast
    if all(kind == "random" for kind in kinds):
        return means, stds
    lesions, white = scheme.role("lesion"), scheme.role("white_matter")
    if not lesions:
        return means, stds
    if len(kinds) not in (1, len(means)):
        raise ValueError(
            f"lesion_contrast has {len(kinds)} values: must be one, or one for each of {len(means)} channels"
        )
    if not white:
        raise ValueError("lesion_contrast needs a label named white matter to compare with")
    means = means.clone()
    for c in range(len(means)):
        kind = kinds[c % len(kinds)]
        step = uniform(generator, *LESION_CONTRAST)
        if kind != "random":
            beside = float(means[c, list(white)].mean())
            means[c, list(lesions)] = max(0.0, beside + step if kind == "hyper" else beside - step)
    return means, stds


def _texture(options: GmmConfig, labels: int, generator: torch.Generator) -> Tensor | None:
    if not any(options.texture_fwhm):
        return None
    return torch.tensor([_between(generator, options.texture_fwhm) for _ in range(labels)])


def _bias(options: GmmConfig, channels: int, crop: Shape, generator: torch.Generator) -> Tensor | None:
    present = _coin(generator, options.bias_prob)
    if not any(options.bias_field_std) or not present:
        return None
    grid = _grid(options.bias_scale, crop, generator)
    std = torch.tensor([_between(generator, options.bias_field_std) for _ in range(channels)])
    std = std.view(-1, *[1] * len(crop))
    if options.bias_form == "exp":
        return std * torch.randn(channels, *grid, generator=generator)
    # 1 plus uniform values, as the logarithm that the renderer upsamples
    return (1 + std * (2 * torch.rand(channels, *grid, generator=generator) - 1)).clamp(min=1e-3).log()


def _acquisition(
    options: GmmConfig, channels: int, crop: Shape, mm: tuple[float, ...], out_mm: tuple[float, ...], stream: Stream
) -> dict[str, Any]:
    """The fields of `Params` on the acquisition: coarse grid, blur in voxels and the grain's gain, noise, by channel."""
    generator = stream("acquisition")
    low, sigma = [], []
    for c in range(channels):
        resolution, thickness = _resolution(options, c, channels, out_mm, generator)
        native = options.blur[0] if len(options.blur) == 1 else uniform(generator, *options.blur)
        widths = []
        for axis, voxel in enumerate(mm):
            unchanged = min(resolution[axis], thickness[axis]) <= voxel * (1 + 1e-6)
            width = native if unchanged else options.blur_width * min(resolution[axis], thickness[axis]) / voxel
            widths.append(width * options.blur_range ** uniform(generator, -1.0, 1.0))
        low.append(low_shape(crop, mm, resolution))
        sigma.append(tuple(widths))
    gain = [
        grain_gain(crop, s) if options.keep_std and grid == crop else 1.0 for grid, s in zip(low, sigma, strict=True)
    ]
    noise, coils = _noise(options, channels, stream("noise"))
    return {"low_shape": tuple(low), "sigma": tuple(sigma), "gain": tuple(gain), "noise": noise, "coils": coils}


def _resolution(
    options: GmmConfig, channel: int, channels: int, target: tuple[float, ...], generator: torch.Generator
) -> tuple[list[float], list[float]]:
    """Resolution and slice thickness in mm per axis of one channel; never finer than the output."""
    n = len(target)
    if options.data_res:
        resolution = _per_channel(options.data_res, channel, channels, n, "data_res")
        thickness = _per_channel(options.thickness or options.data_res, channel, channels, n, "thickness")
        return [max(r, t) for r, t in zip(resolution, target, strict=True)], thickness
    unit = target if options.resolution_unit == "voxel" else (1.0,) * n
    kind = int(torch.multinomial(torch.tensor(options.resolution_mix), 1, generator=generator))
    resolution = list(target)
    iso, aniso = options.max_res_iso, options.max_res_aniso
    if kind == 1:  # one step for all axes: what isotropic means (SynthSeg draws each by itself)
        finest = max(t / u for t, u in zip(target, unit, strict=True))
        step = uniform(generator, finest, max(iso, finest))
        resolution = [step * u for u in unit]
    elif kind == 2:
        axis = int(torch.randint(n, (), generator=generator))
        resolution[axis] = uniform(generator, target[axis], max(aniso * unit[axis], target[axis]))
    elif kind == 3:
        resolution = [uniform(generator, t, max(iso * u, t)) for t, u in zip(target, unit, strict=True)]
    share = [uniform(generator, *options.thickness_range) for _ in range(n)]
    return resolution, [t + s * (r - t) for t, r, s in zip(target, resolution, share, strict=True)]


def _per_channel(values: Sequence[float], channel: int, channels: int, n: int, name: str) -> list[float]:
    if len(values) == channels * n and channels > 1:
        return list(values[channel * n : (channel + 1) * n])
    if len(values) not in (1, n):
        raise ValueError(
            f"{name} has {len(values)} values: must be 1, {n} (one per axis) or {channels * n} (a row per channel)"
        )
    return list(per_axis(values, n, name))


def _noise(options: GmmConfig, channels: int, generator: torch.Generator) -> tuple[tuple[float, ...], tuple[int, ...]]:
    std, coils = [], []
    for _ in range(channels):
        present = _coin(generator, options.noise_prob)
        value = _between(generator, options.noise_std)
        low, high = options.noise_coils[0], options.noise_coils[-1]
        std.append(value if present else 0.0)
        coils.append(integer(generator, low, high))
    return tuple(std), tuple(coils)


def _artefacts(options: GmmConfig, shape: Shape, mm: tuple[float, ...], stream: Stream) -> tuple[Any, ...]:
    probability = {
        "blur_cortex": options.blur_cortex_prob,
        "structured_noise": options.structured_noise_prob,
        "motion": options.motion_prob,
        "boundaries": options.boundaries_prob,
    }
    drawn = []
    for name, kind in ARTEFACTS.items():
        if probability[name] == 0:
            continue
        generator = stream(name)
        possible = name != "motion" or len(shape) == 3  # there is no motion between the slices of one slice
        if _coin(generator, probability[name]) and possible:
            drawn.append(kind.sample(generator, shape, mm))
    return tuple(drawn)
