"""What scripts for lab2im and SynthSeg ask of their generators beside images: attributes, and two of their utilities.

`from models.gmm import BrainGenerator, ImageGenerator, utils` in place of their imports.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from dataloaders.io.nifti import write_volume
from dataloaders.labelmaps.maps import LabelMap, LabelMaps
from models.gmm.lab2im_options import THEIRS
from models.gmm.labels import LabelScheme
from models.gmm.options import GmmConfig
from models.gmm.params import Params


class _Generator(Protocol):
    maps: LabelMaps
    options: GmmConfig
    base_scheme: LabelScheme
    channels: int
    batch_size: int
    made: int
    given: dict[str, Any]
    written: tuple[NDArray[np.float64], tuple[int, ...]] | None

    def tensors(self, number: int) -> tuple[torch.Tensor, torch.Tensor]: ...
    def params(self, number: int) -> tuple[LabelMap, Params]: ...


class TheirNames:
    """Attributes of lab2im's and SynthSeg's generators. Options have the values that they were given."""

    @property
    def labels_paths(self: _Generator) -> list[str]:
        """Files of the label maps, or names of arrays."""
        return [str(s) if isinstance(s, Path) else self.maps.name(i) for i, s in enumerate(self.maps.sources)]

    @property
    def aff(self) -> NDArray[np.float64]:
        """Affine (4, 4) of what was generated last, crop and voxel size included; before that of the first label map."""
        return _geometry(self)[0]

    @property
    def header(self) -> nib.Nifti1Header:
        """A header that goes with `aff`: float32, mm; nothing of the source's own text."""
        affine, shape = _geometry(self)
        header = nib.Nifti1Image(np.zeros(shape, np.float32), affine).header
        header.set_xyzt_units("mm")
        return header

    @property
    def labels_shape(self: _Generator) -> list[int]:
        """Size of the first label map in RAS axes."""
        return list(self.maps[0].values.shape)

    @property
    def n_dims(self: _Generator) -> int:
        """2 or 3."""
        return self.maps[0].values.ndim

    @property
    def atlas_res(self: _Generator) -> NDArray[np.float64]:
        """mm per RAS axis of the first label map."""
        return np.array(self.maps[0].spacing)

    @property
    def n_channels(self: _Generator) -> int:
        """Channels of an image."""
        return self.channels

    @property
    def batchsize(self: _Generator) -> int:
        """Images that are generated at once."""
        return self.batch_size

    @property
    def generation_labels(self: _Generator) -> NDArray[np.int64]:
        """(N,)."""
        return np.array(self.base_scheme.values)

    @property
    def generation_classes(self: _Generator) -> NDArray[np.int64]:
        """(N,), 0..K-1."""
        return np.array(self.base_scheme.classes)

    @property
    def output_labels(self: _Generator) -> NDArray[np.int64]:
        """(N,): value of each of generation_labels in the label maps that come out."""
        return np.array(self.base_scheme.outputs)

    @property
    def n_neutral_labels(self: _Generator) -> int:
        """Labels without a side; all of them where sides are unknown."""
        partners = self.base_scheme.partners
        return self.base_scheme.num_labels if partners is None else sum(i == other for i, other in enumerate(partners))

    @property
    def model_output_shape(self: _Generator) -> list[int]:
        """Size of an image of the first map that is drawn, in RAS axes, and its channels."""
        return [*self.params(0)[1].out_shape, self.channels]

    @property
    def image_generator(self: _Generator) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]]:
        """Endless batches in RAS axes: images (B, *S, C), labels (B, *S, 1)."""
        while True:
            pairs = [self.tensors(self.made + i) for i in range(self.batch_size)]
            self.made += self.batch_size
            images = np.stack([image.movedim(0, -1).cpu().numpy() for image, _ in pairs])
            yield images, np.stack([label[..., None].cpu().numpy() for _, label in pairs])

    brain_generator = image_generator

    def __getattr__(self, name: str) -> Any:
        """Options, by their names or ours."""
        given = self.__dict__.get("given", {})
        if name in given:
            return given[name]
        if name.startswith("_") or "options" not in self.__dict__ or not hasattr(GmmConfig, THEIRS.get(name, name)):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.__dict__["options"], THEIRS.get(name, name))


def _geometry(generator: Any) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """Affine and shape of what was generated last, else of the first map, in its own axes."""
    if generator.written is not None:
        return generator.written
    first: LabelMap = generator.maps[0]
    n = first.values.ndim
    arrays, affine = first.to_source_axes([first.values.numpy()], [0] * n, [1] * n)
    return affine, arrays[0].shape


def mkdir(path: Path | str) -> None:
    """Make a folder and those above it."""
    Path(path).mkdir(parents=True, exist_ok=True)


def save_volume(
    volume: NDArray,
    aff: NDArray | None,
    header: Any,
    path: Path | str,
    res: Any = None,
    dtype: DTypeLike | None = None,
    n_dims: int = 3,
) -> None:
    """Write a volume (*S) or (*S, C) as NIfTI, whole; the folder is made. Geometry is that of aff alone."""
    del header, res, n_dims
    mkdir(Path(path).parent)
    data = np.asarray(volume)
    data = data[..., None] if data.ndim == 2 else data
    if dtype is not None and np.issubdtype(dtype, np.integer):
        data = np.rint(data)
    write_volume(path, data, np.eye(4) if aff is None else np.asarray(aff), dtype)
