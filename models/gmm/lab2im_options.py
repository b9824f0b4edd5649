"""Options in the words and forms of lab2im and SynthSeg, as options of ours."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, get_type_hints

import numpy as np
import torch

from dataloaders.io.schema import Mismatch, check, decode
from models.gmm.options import GMM_PRESETS, GmmConfig

LAB2IM_NAMES = {
    "use_specific_stats_for_channel": "specific_channels",
    "nonlin_shape_factor": "nonlin_scale",
    "bias_shape_factor": "bias_scale",
}
_RANDOM_RESOLUTION = (0.05, 0.095, 0.855, 0.0)  # SynthSeg's randomise_res
_DEFAULTS, _TYPES = GmmConfig(), get_type_hints(GmmConfig, include_extras=True)


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
        if randomise and values.get("data_res") is not None:
            raise ValueError(f"data_res {values['data_res']} and randomise_res cannot both be given")
        mix = list(_RANDOM_RESOLUTION if randomise else (1.0, 0.0, 0.0, 0.0))
    for kind, name in ((1, "max_res_iso"), (2, "max_res_aniso")):
        if name in values and values[name] is None:
            mix[kind] = 0.0
    values.setdefault("resolution_mix", [share / max(sum(mix), 1e-9) for share in mix] if sum(mix) else (1, 0, 0, 0))
    known = {f.name for f in fields(GmmConfig)}
    given: dict[str, Any] = {}
    for name, value in values.items():
        name = LAB2IM_NAMES.get(name, name)
        if name not in known:
            raise ValueError(f"{name}: no option of the generator; there are {', '.join(sorted(known))}")
        if value is not None:
            given[name] = _form(name, value)
    options = replace(options, **given)
    check(options)
    return options


def _form(name: str, value: Any) -> Any:
    """The value in the type of our option of that name; ValueError naming option, value and what is allowed."""
    default = getattr(_DEFAULTS, name)
    try:
        items = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value).ravel().tolist()
    except ValueError:  # a ragged list
        items = [value]
    if not isinstance(default, bool):  # False is 0, and 160.0 voxels are 160
        items = [int(item) if isinstance(item, (bool, float)) and item == item // 1 else item for item in items]
    try:
        return decode(_TYPES[name], items if isinstance(default, tuple) or len(items) != 1 else items[0], name)
    except Mismatch as error:
        raise ValueError(f"{name} {value!r}: must be {error.allowed}") from None
