"""Everything that was drawn for one synthetic image: enough to make it again, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from models.gmm.artefacts import artefact_from_dict, artefact_to_dict
from models.gmm.intensity import Normalise
from models.gmm.resampling import Shape

_TENSORS = ("affine", "velocity", "means", "stds", "fwhm", "bias", "gamma")


@dataclass
class Params:
    """The draw of one sample. n axes in RAS order, C channels, N labels; None turns a step off.

    seed: of the grain and of all noise. shape, spacing: of the map, voxels and mm.
    crop_start, crop_shape: window of the map that is rendered, voxels (may reach beyond the map: background).
    out_shape: shape of the image, another one where target_res asks for it.
    affine (n, n + 1) float64, velocity (n, *g) voxels: see models/gmm/spatial.py. integrate, spline: how it is used.
    flip: mirrored along the first axis; partners: label index of the other side, by label.
    fill: label index outside the map. means, stds (C, N): on 0-255. gain (C,): factor of the stds that outweighs the blur.
    fwhm (N,): texture in voxels. partial_volume: mix labels at borders.
    bias: (C, *g) log-factors. gamma (C,): logarithm of the exponent. normalise: range of the result.
    low_shape (C, n) voxels, sigma (C, n) voxels, noise (C,) and coils (C,): acquisition, see models/gmm/intensity.py.
    gradients: return the gradient's magnitude. artefacts: in the order in which they act; roles: label indices of the
    regions that they need, by name.
    """

    seed: int
    shape: Shape
    spacing: tuple[float, ...]
    crop_start: Shape
    crop_shape: Shape
    out_shape: Shape
    affine: Tensor | None
    velocity: Tensor | None
    integrate: bool
    spline: int
    flip: bool
    partners: tuple[int, ...] | None
    fill: int
    means: Tensor
    stds: Tensor
    gain: tuple[float, ...]
    fwhm: Tensor | None
    partial_volume: bool
    bias: Tensor | None
    gamma: Tensor | None
    normalise: Normalise
    low_shape: tuple[Shape, ...]
    sigma: tuple[tuple[float, ...], ...]
    noise: tuple[float, ...]
    coils: tuple[int, ...]
    gradients: bool
    artefacts: tuple[Any, ...] = ()
    roles: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def out_spacing(self) -> tuple[float, ...]:
        """Voxel size of the image in mm, (n,)."""
        return tuple(mm * c / o for mm, c, o in zip(self.spacing, self.crop_shape, self.out_shape, strict=True))

    def fixed(self, values: Mapping[str, Any]) -> Params:
        """The same draw with some fields given instead, tensors also as lists; ValueError for a name that is no field."""
        unknown = sorted(set(values) - {f.name for f in fields(self)})
        if unknown:
            names = ", ".join(f.name for f in fields(self))
            raise ValueError(f"{', '.join(unknown)}: no parameter of a synthetic image; there are: {names}")
        given = dict(values)
        for name, value in values.items():
            if name in _TENSORS and value is not None and not isinstance(value, Tensor):
                dtype = torch.float64 if name == "affine" else torch.float32
                given[name] = torch.as_tensor(value, dtype=dtype)
        return replace(self, **given)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. Tensors keep their type; float32 values survive exactly."""
        data = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        data["artefacts"] = [artefact_to_dict(artefact) for artefact in self.artefacts]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Params:
        """Inverse of `to_dict`, also where tensors are tensors; ValueError naming the field that is missing or unknown."""
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            raise ValueError(f"parameters of a synthetic image: missing or unknown {sorted(set(data) ^ names)}")
        values = {name: _value(value) for name, value in data.items()}
        values["artefacts"] = tuple(artefact_from_dict(item) for item in data["artefacts"])
        return cls(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"type": str(value.dtype).removeprefix("torch."), "values": value.tolist()}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _value(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == {"type", "values"}:
        return torch.tensor(value["values"], dtype=getattr(torch, value["type"]))
    if isinstance(value, Mapping):
        return {key: _value(item) for key, item in value.items()}
    return tuple(_value(item) for item in value) if isinstance(value, (tuple, list)) else value
