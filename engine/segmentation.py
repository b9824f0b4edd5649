"""Prediction with a segmenter: whole volumes by sliding window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from config import Config
from dataloaders.io.geometry import ACROSS, regrid, resample
from dataloaders.io.intensity import shown
from dataloaders.labelmaps.classes import tissue_classes
from dataloaders.segmenter.patches import neighbour_stack
from models.segmenter.options import SegmenterConfig

SLICES = 16  # of a 2-D network that are predicted at once
MARGIN = 2  # voxels around what is shown, for dark rims such as fluid around a brain


class Predictor:
    """Volumes on the network's grid to probabilities.

    Windows of the training's patch size overlap by `overlap` and are blended with Gaussian weights (MONAI's sliding
    window); volumes smaller than a window are padded. Only the box of what the scan shows (`shown`) is looked at, without
    the noise in its air; the rest is background.

    method: gives logits (B, C', *S) -> (B, N, *S). crop: voxels along each axis of a box in the volume's centre that alone
    is looked at; () for all. tissue: structures are counted together as CSF, grey and white matter; ValueError where none is
    known. spec, config: the method's own, with the classes that are told.
    """

    def __init__(
        self, method: Any, config: Config, device: torch.device, crop: Sequence[int] = (), tissue: bool = False
    ) -> None:
        self.method, self.spec, self.device, self.crop = method, method.spec, device, tuple(crop)
        self.o: SegmenterConfig = replace(config.segmenter, axis=self.spec.axis or config.segmenter.axis)
        self.members: list[Tensor] = []
        if tissue:
            classes = tissue_classes()
            table = torch.from_numpy(classes.of_labels(self.spec.labels).astype(np.int64))
            self.members = [(table == label.id).nonzero().flatten().to(device) for label in classes.labels]
            self.spec = replace(self.spec, labels=classes.labels)
            config = replace(config, segmenter=replace(config.segmenter, classes="tissue"))
        self.config = config

    def logits(self, image: Tensor) -> Tensor:
        """(B, C', *S) -> (B, N, *S); those of several structures have the softmax that their probabilities add up to."""
        found: Tensor = self.method.logits(image)
        return torch.stack([found[:, own].logsumexp(1) for own in self.members], 1) if self.members else found

    def probabilities(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """(C, X, Y, Z) in [0, 1] -> (N, X, Y, Z) that sum to 1."""
        out = np.zeros((self.spec.num_labels, *image.shape[1:]), np.float32)
        out[0] = 1.0
        seen = shown(image)
        box = box_of(seen, self.crop)
        if box is None:
            return out
        solid = ndimage.binary_dilation(ndimage.binary_fill_holes(seen[box]), iterations=MARGIN)
        inner = np.where(solid, image[(slice(None), *box)], np.float32(0))  # air is dark, whatever its noise
        with torch.inference_mode():
            logits = self._volume(inner) if self.o.dims == 3 else self._slices(inner)
            out[(slice(None), *box)] = logits.softmax(0).numpy()
        return out

    def label(self, image: NDArray[np.float32]) -> NDArray[np.uint16]:
        """(C, X, Y, Z) -> the most probable class (X, Y, Z)."""
        return self.probabilities(image).argmax(0).astype(np.uint16)

    def _volume(self, image: NDArray[np.float32]) -> Tensor:
        return self._windows(torch.from_numpy(image)[None])[0]

    def _slices(self, image: NDArray[np.float32]) -> Tensor:
        across = ACROSS[self.o.axis]
        count = image.shape[across + 1]
        parts = []
        for start in range(0, count, SLICES):
            stacks = [neighbour_stack(image, i, self.o) for i in range(start, min(start + SLICES, count))]
            parts.append(self._windows(torch.from_numpy(np.stack(stacks))))
        return torch.cat(parts).movedim(0, across + 1)

    def _windows(self, images: Tensor) -> Tensor:
        from monai.inferers import sliding_window_inference  # seconds to import

        found = sliding_window_inference(
            images.to(self.device),
            roi_size=self.o.spatial_patch,
            sw_batch_size=1 if self.o.dims == 3 else SLICES,
            predictor=self.logits,
            overlap=self.o.overlap,
            mode="gaussian",
        )
        assert isinstance(found, Tensor)
        return found.cpu()


def box_of(mask: NDArray[np.bool_], crop: Sequence[int] = ()) -> tuple[slice, ...] | None:
    """The box of a mask with a margin, within a centred box of `crop` voxels; None where nothing is in it."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return None
    wanted = tuple(crop) * mask.ndim if len(crop) == 1 else tuple(crop) or mask.shape
    starts = [max(0, (size - part) // 2) for size, part in zip(mask.shape, wanted, strict=True)]
    box = tuple(
        slice(max(start, s.start - MARGIN), min(start + part, size, s.stop + MARGIN))
        for s, start, part, size in zip(found[0], starts, wanted, mask.shape, strict=True)
    )
    return None if any(s.start >= s.stop for s in box) else box


def most_probable(
    predictor: Predictor, image: NDArray[np.float32], affine: NDArray, spacing: Sequence[float], keep: bool = False
) -> tuple[NDArray[np.uint16], NDArray[np.float32], NDArray[np.float32] | None]:
    """Classes on the image's own grid with their probabilities, and with `keep` those of all classes (N, X, Y, Z) there.

    Probabilities are interpolated linearly to the image's grid and compared there, class by class, so that one of them
    is held at a time.
    """
    shape, grid = regrid(image.shape[1:], affine, spacing)
    moved = np.stack([resample(channel, affine, shape, grid) for channel in image]).astype(np.float32)
    probabilities = predictor.probabilities(moved)
    best = np.zeros(image.shape[1:], np.float32)
    label = np.zeros(image.shape[1:], np.uint16)
    kept = np.zeros((len(probabilities), *image.shape[1:]), np.float32) if keep else None
    matrix = np.linalg.inv(grid) @ affine
    same = shape == image.shape[1:] and np.allclose(matrix, np.eye(4), atol=1e-4)
    for i, one in enumerate(probabilities):
        if not same:
            one = ndimage.affine_transform(one, matrix, output_shape=image.shape[1:], order=1, mode="nearest")
        better = one > best
        label[better], best[better] = i, one[better]
        if kept is not None:
            kept[i] = one
    return label, best, kept
