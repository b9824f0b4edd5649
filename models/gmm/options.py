"""Options in the words and forms of lab2im and SynthSeg, as options of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from config import GMM_PRESETS, GmmConfig, check_gmm

THEIRS = {
    "use_specific_stats_for_channel": "specific_channels",
    "nonlin_shape_factor": "nonlin_scale",
    "bias_shape_factor": "bias_scale",
}
_RANDOM_RESOLUTION = (0.05, 0.095, 0.855, 0.0)  # SynthSeg's randomise_res
_DEFAULTS = GmmConfig()


def gmm_options(preset: str = "synthseg", **values: Any) -> GmmConfig:
    """A preset with some options replaced, in any form that lab2im or SynthSeg take.

    Numbers stand for (b,); arrays, lists and tuples are flattened row by row (see `draw_bounds`); False turns a step off;
    None keeps the preset's value, and as max_res_iso or max_res_aniso rules that kind of resolution out. randomise_res,
    use_specific_stats_for_channel, nonlin_shape_factor and bias_shape_factor are understood.
    Raises ValueError for an unknown preset or option, listing what there is, and for values out of range.
    """
    if preset not in GMM_PRESETS:
        raise ValueError(f"preset {preset!r}: must be one of {', '.join(GMM_PRESETS)}")
    options = GMM_PRESETS[preset]()
    mix = list(options.resolution_mix)
    if (randomise := values.pop("randomise_res", None)) is not None:
        mix = list(_RANDOM_RESOLUTION if randomise else (1.0, 0.0, 0.0, 0.0))
    for kind, name in ((1, "max_res_iso"), (2, "max_res_aniso")):
        if name in values and values[name] is None:
            mix[kind] = 0.0
    values.setdefault("resolution_mix", [share / max(sum(mix), 1e-9) for share in mix] if sum(mix) else (1, 0, 0, 0))
    known = {f.name for f in fields(GmmConfig)}
    given: dict[str, Any] = {}
    for name, value in values.items():
        name = THEIRS.get(name, name)
        if name not in known:
            raise ValueError(f"{name}: no option of the generator; there are {', '.join(sorted(known))}")
        if value is not None:
            given[name] = _form(name, value)
    options = replace(options, **given)
    check_gmm(options)
    return options


def _form(name: str, value: Any) -> Any:
    """The value in the type of our option of that name."""
    default = getattr(_DEFAULTS, name)
    if not isinstance(default, tuple):
        convert: Callable[[Any], Any] = type(default)
        return value if isinstance(default, (str, bool)) else convert(value)
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    array = value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} {value!r}: must be numbers")
    whole = name in ("output_shape", "noise_coils")
    return tuple(int(item) if whole else float(item) for item in array.ravel())
