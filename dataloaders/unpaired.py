"""Labels of one data set and images of another, no pairing anywhere: for training CT label maps -> MR, for example."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import numpy as np
from torch.utils.data import Dataset

from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case, Manifest
from dataloaders.io.spec import DataSpec
from dataloaders.slices import MIRROR, SliceDataset, SliceSample, coin, drawn_index, window

SAME_SCALE = 1.25  # of pixel sizes; people differ by as much


def unpaired_manifest(labels: Manifest, images: Manifest) -> Manifest:
    """What is synthesised when `labels` gives the label maps and `images` the look: see `as_label_source`.

    ValueError where the slices differ in size or direction, or `images` has no training cases to learn from.
    """
    if labels.spec.size != images.spec.size:
        (h, w), (own_h, own_w) = images.spec.size, labels.spec.size
        raise ValueError(
            f"--oasis.images_from: its slices are {h} x {w} pixels, those of --dataroot {own_h} x {own_w}; "
            "prepare both with the same --size"
        )
    if None not in (labels.spec.axis, images.spec.axis) and labels.spec.axis != images.spec.axis:
        raise ValueError(
            f"--oasis.images_from: its slices are {images.spec.axis}, those of --dataroot {labels.spec.axis}; "
            "prepare both with the same --axis"
        )
    return as_label_source(labels, images.spec, typical_windows(images))


def other_scale(labels: DataSpec, images: DataSpec) -> list[str]:
    """A warning where pixels of both are not of about one size, so that bodies would be imitated too large or too small."""
    known = labels.axis is not None and images.axis is not None
    ratios = [b / a for a, b in zip(labels.spacing, images.spacing, strict=True)]
    if not known or all(1 / SAME_SCALE < ratio < SAME_SCALE for ratio in ratios):
        return []
    sizes = [f"{spec.spacing[0]:.3g} x {spec.spacing[1]:.3g} mm" for spec in (images, labels)]
    return [
        f"warning: pixels of the images are {sizes[0]}, of the label maps {sizes[1]}, so bodies differ in size; prepare "
        "both with the same --spacing"
    ]


def typical_windows(images: Manifest) -> tuple[Window, ...]:
    """Per channel, the median of low and the median of high over the training cases.

    CT has the same fixed window in every case; MR's are robust percentiles of each scan, and what is made from labels
    alone has no scan of its own. ValueError where there are no training cases.
    """
    cases = images.split("train")
    if not cases:
        raise ValueError("--oasis.images_from: has no training cases, so there are no images to learn from")
    channels = zip(*(case.windows for case in cases), strict=True)
    return tuple(Window(median(w.low for w in windows), median(w.high for w in windows)) for windows in channels)


def as_label_source(labels: Manifest, spec: DataSpec, windows: tuple[Window, ...]) -> Manifest:
    """The manifest `labels` with the channels of `spec`, for a method whose images are of other data.

    Where the channels are the same (name, unit and order), cases keep their windows and images, which only test.py
    opens, as ground truth. Otherwise every case gets `windows`, one per channel, and loses its images: they are of
    another kind than what is synthesised, so there is no ground truth.
    """
    if labels.spec.channels == spec.channels:
        return labels

    def bare(case: Case) -> Case:
        return replace(case, windows=windows, slices=tuple(replace(item, images=()) for item in case.slices))

    return replace(
        labels,
        spec=replace(labels.spec, channels=spec.channels),
        cases=tuple(bare(case) for case in labels.cases),
    )


class UnpairedDataset(Dataset[SliceSample]):
    """Items (i, position) of training: label, neighbours, case ... of slice i of one data set, with an image of another.

    labels: read with ``read="labels"``, images with ``read="images"``. Images go round at their own length, in an order,
    mirrored by a coin (where their data set may be mirrored at all) and cut to a window that `seed` and `position` decide
    independently of those of the labels, so that nothing is paired even where both are the same folder, and resuming is
    exact.
    """

    def __init__(self, labels: SliceDataset, images: SliceDataset, seed: int) -> None:
        assert (labels.read, images.read) == ("labels", "images"), (labels.read, images.read)
        self.labels, self.images, self.seed, self.collate = labels, images, seed, labels.collate

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int]) -> SliceSample:
        position = key[1]
        image = self.images.image(drawn_index(len(self.images), self.seed, "images/order", position))
        assert image is not None  # SliceDataset has seen to it
        if self.images.flip_ids is not None and coin(self.seed, "images", "flip", position):
            image = image[MIRROR]
        if (crop := self.images.crop) is not None:
            image = image[window(self.images.spec.size, crop, self.seed, "images", "crop", position)]
        return replace(self.labels[key], image=np.ascontiguousarray(image))
