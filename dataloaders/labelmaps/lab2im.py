"""What scripts for lab2im and SynthSeg ask of their generators beside images: attributes, and two of their utilities.

`from models.gmm import BrainGenerator, ImageGenerator, utils` in place of their imports.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import DTypeLike, NDArray

from dataloaders.io.nifti import write_volume
from dataloaders.io.spec import BACKGROUND
from dataloaders.labelmaps.maps import LabelMaps
from models.gmm.lab2im_options import LAB2IM_NAMES
from models.gmm.options import GmmConfig
from models.gmm.scheme import LabelScheme


class Lab2imAttributes:
    """Attributes of lab2im's and SynthSeg's generators. Options have the values that they were given.

    labels_paths: files of the label maps, or names of arrays. n_channels: of an image. batchsize: images that are
    generated at once. generation_labels, generation_classes, output_labels: (N,) int64.
    """

    maps: LabelMaps
    options: GmmConfig
    base_scheme: LabelScheme
    labels_paths: list[str]
    n_channels: int
    batchsize: int
    generation_labels: NDArray[np.int64]
    generation_classes: NDArray[np.int64]
    output_labels: NDArray[np.int64]
    given: dict[str, Any]
    made = 0  # images so far
    written: tuple[NDArray[np.float64], tuple[int, ...]] | None = None  # affine and shape of the last image

    @property
    def aff(self) -> NDArray[np.float64]:
        """Affine (4, 4) of what was generated last, crop and voxel size included; before that of the first label map."""
        return self._geometry()[0]

    @property
    def header(self) -> nib.Nifti1Header:
        """A header that goes with `aff`: float32, mm; nothing of the source's own text."""
        affine, shape = self._geometry()
        header = nib.Nifti1Image(np.zeros(shape, np.float32), affine).header
        header.set_xyzt_units("mm")
        return header

    def _geometry(self) -> tuple[NDArray[np.float64], tuple[int, ...]]:
        """Affine and shape of what was generated last, else of the first map, in its own axes."""
        if self.written is not None:
            return self.written
        first = self.maps[0]
        n = first.values.ndim
        arrays, affine = first.to_source_axes([first.values.numpy()], [0] * n, [1] * n)
        return affine, arrays[0].shape

    @property
    def labels_shape(self) -> list[int]:
        """Size of the first label map in RAS axes."""
        return list(self.maps[0].values.shape)

    @property
    def n_dims(self) -> int:
        """2 or 3."""
        return self.maps[0].values.ndim

    @property
    def atlas_res(self) -> NDArray[np.float64]:
        """mm per RAS axis of the first label map."""
        return np.array(self.maps[0].spacing)

    @property
    def n_neutral_labels(self) -> int:
        """Labels without a side; all of them where sides are unknown."""
        partners = self.base_scheme.partners
        return self.base_scheme.num_labels if partners is None else sum(i == other for i, other in enumerate(partners))

    def __getattr__(self, name: str) -> Any:
        """Options, by their names or ours."""
        given = self.__dict__.get("given", {})
        if name in given:
            return given[name]
        if (
            name.startswith("_")
            or "options" not in self.__dict__
            or not hasattr(GmmConfig, LAB2IM_NAMES.get(name, name))
        ):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.__dict__["options"], LAB2IM_NAMES.get(name, name))


def loaded(name: str, value: Any) -> Any:
    """The value, or the content of the .npy file that it names; ValueError with `name` for other files."""
    if not isinstance(value, Path) and not (isinstance(value, str) and value.endswith(".npy")):
        return value
    path = Path(value)
    if path.suffix != ".npy" or not path.is_file():
        raise ValueError(f"{name} {path}: must be an existing .npy file")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):  # whose messages are about pickles
        array = None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} {path}: is no .npy file of numbers")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} {path}: must hold numbers, found {array.dtype}")
    return array


def list_scheme(labels: Any, classes: Any, outputs: Any, neutral: int | None) -> LabelScheme:
    """The scheme of lab2im's lists: numbers or .npy files of them; ValueError naming the list.

    outputs of another length than labels, and all among them, are those to keep, as in lab2im; others become 0.
    """
    values, kept = _list("generation_labels", labels), _list("output_labels", outputs)
    if kept is not None and len(kept) != len(values):
        kept = kept_outputs(values, kept) or kept
    return LabelScheme.from_lists(values, _list("generation_classes", classes), kept, neutral)


def _list(name: str, value: Any) -> Any:
    array = loaded(name, value)
    if isinstance(array, np.ndarray) and not array.ndim:
        raise ValueError(f"{name} {value}: must hold a list of numbers, found one")
    return array


def kept_outputs(values: Sequence[int], outputs: Sequence[int]) -> tuple[int, ...] | None:
    """Output of each value where only those of `outputs` are kept; None where some of these are no values."""
    if not np.isin(outputs, values).all():
        return None
    return tuple(np.where(np.isin(values, outputs), values, BACKGROUND).tolist())


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
