"""Scans for the lesion generator: white matter as the unit of intensity, lesion masks where none are given, copies
without lesions, and the grey matter's statistics that lesion levels are measured by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dataloaders.io.intensity import Window
from dataloaders.io.spec import Label
from dataloaders.lesions.filling import FULL, fill_slices, fill_volume
from dataloaders.registration import bias_field
from models.lesion.options import PUBLISHED_ALPHAS

WHITE_SPAN = 2.5  # the window goes from 0 to this many times white matter; lesions on FLAIR reach about 2
FOUND_ALPHA = 1.1  # found lesions: grey matter's mean plus this many deviations
FOUND_VOXELS = 3  # smallest lesion that is found
ENCLOSED = 0.7  # share of white matter around a rim voxel that is not cortex
N4_SHRINK = 4

Fill = Literal["none", "lesion", "salem2019"]


@dataclass(frozen=True)
class Tissue:
    """Masks (I, J, K) of white matter, grey matter and CSF, lesions in none of them."""

    white: NDArray[np.bool_]
    grey: NDArray[np.bool_]
    csf: NDArray[np.bool_]

    @classmethod
    def of(cls, label: NDArray, labels: Sequence[Label]) -> Tissue:
        """By the classes' names; ValueError where there is no white or no grey matter among them."""
        words = {
            "white": ("white_matter", "white matter"),
            "grey": ("grey_matter", "gray_matter", "grey matter", "gray matter", "cortex"),
            "csf": ("csf", "ventricle", "cerebrospinal"),
        }
        ids = {k: [e.id for e in labels if any(w in e.name.lower() for w in ws)] for k, ws in words.items()}
        for kind in ("white", "grey"):
            if not ids[kind]:
                raise ValueError(
                    f"lesions need a class with {words[kind][0]!r} in its name, there are "
                    f"{', '.join(entry.name for entry in labels)}; --tissue atlas makes one"
                )
        return cls(*(np.isin(label, ids[kind]) for kind in ("white", "grey", "csf")))


def white_mode(values: NDArray) -> float:
    """Most frequent intensity of white matter voxels: the peak of their smoothed histogram, 200 bins within 4 robust
    deviations of their median. ValueError where there are none, or the peak is not above 0.
    """
    if values.size == 0:
        raise ValueError("there is no white matter to measure the intensity of")
    center = float(np.median(values))
    reach = 4 * 1.4826 * float(np.median(np.abs(values - center)))
    if reach == 0:
        mode = center
    else:
        counts, edges = np.histogram(values, 200, (center - reach, center + reach))
        peak = int(ndimage.gaussian_filter1d(counts.astype(float), 5).argmax())
        mode = float((edges[peak] + edges[peak + 1]) / 2)
    if not mode > 0:
        raise ValueError(f"white matter has the intensity {mode:g}; it has to be above 0")
    return mode


def white_window(image: NDArray, white: NDArray[np.bool_]) -> Window:
    """0 to 2.5 times white matter, so that white matter is at -0.2 of [-1, 1] in every scan."""
    return Window(0.0, WHITE_SPAN * white_mode(image[white]))


def grey_statistics(image: NDArray, grey: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean and standard deviation of grey matter without lesions; ValueError where there is none."""
    if grey.sum() < 2:
        raise ValueError("there is no grey matter to measure lesion levels by")
    return float(image[grey].mean()), float(image[grey].std())


def hyperintense(image: NDArray, grey: NDArray[np.bool_], alpha: float = PUBLISHED_ALPHAS[0]) -> NDArray[np.bool_]:
    """Voxels above the grey matter's mean + alpha deviations (Salem et al. 2019, sec. II-A), anywhere in the volume."""
    mean, deviation = grey_statistics(image, grey)
    return image > mean + alpha * deviation


def find_lesions(level: NDArray, tissue: Tissue) -> NDArray[np.bool_]:
    """Lesions of a scan without a mask: hyperintense voxels in white matter or its holes, not CSF, 3 voxels or more.

    Coarse, and rather too few than wrong ones: on two MS patients it found .28 and .08 of the lesion voxels with a
    precision of .26 and .83. A radiologist's mask, or a trained segmenter's, is much better.
    """
    inside = ndimage.binary_fill_holes(ndimage.binary_closing(tissue.white, iterations=2)) | tissue.white
    core = ndimage.binary_erosion(inside, iterations=1)  # partial volume with the cortex is no lesion
    found = hyperintense(level, tissue.grey, FOUND_ALPHA) & core & ~tissue.csf
    labelled, _ = ndimage.label(found, FULL)
    sizes = np.bincount(labelled.ravel())
    sizes[0] = 0
    return (sizes >= FOUND_VOXELS)[labelled]


def fill_zone(lesion: NDArray[np.bool_], tissue: Tissue) -> NDArray[np.bool_]:
    """Voxels to fill: lesions and what touches them and is white matter, or grey matter with white matter around it.

    Their rim is brightened by partial volume on FLAIR and so dark on T1w that classifiers call it grey matter; left
    alone it would draw the lesion's outline. The cortex beside a lesion stays.
    """
    rim = ndimage.binary_dilation(lesion, FULL) & ~lesion
    known = (tissue.white | tissue.grey | tissue.csf) & ~rim
    white, around = (ndimage.uniform_filter(mask.astype(np.float32), 5) for mask in (tissue.white & ~rim, known))
    enclosed = white > ENCLOSED * np.maximum(around, 1e-6)
    return lesion | (rim & (tissue.white | (tissue.grey & enclosed)))


def without_lesions(
    images: Sequence[NDArray], lesion: NDArray[np.bool_], tissue: Tissue, level: int, way: Fill, seed: int = 0
) -> list[NDArray[np.float32]]:
    """Every image with its lesions filled; the same mask and random stream for all.

    way: ``lesion`` fills the lesions from clean white matter around them, in 3-D; ``salem2019`` everything
    hyperintense on the channel `level`, slice by slice as published.
    """
    bright = hyperintense(images[level], tissue.grey)
    if way == "salem2019":
        return [fill_slices(image, bright, tissue.white, seed) for image in images]
    zone = fill_zone(lesion, tissue)
    return [fill_volume(image, zone, tissue.white, bright, seed) for image in images]


def n4_field(image: NDArray, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """`bias_field` on every fourth voxel, with mean 1 in the mask."""
    field = bias_field(image, mask, [min(N4_SHRINK, max(1, n // 8)) for n in image.shape])
    return (field / field[mask].mean()).astype(np.float32)
