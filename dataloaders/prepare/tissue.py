"""What is patient and what is scanner table, tube or air; label maps where none are given: brain tissue by a hidden Markov
random field, CT tissue by HU ranges.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_multiotsu, threshold_otsu

from dataloaders.io.geometry import bounding_box

BRAIN_METHODS = ("atlas", "hmrf")  # of --tissue
BRAIN_TISSUE = {1: "csf", 2: "grey_matter", 3: "white_matter"}
CT_TISSUE = {1: "gas_and_lung", 2: "fat", 3: "soft_tissue", 4: "bone"}
CT_LIMITS_HU = (-300.0, -30.0, 150.0)  # gas and lung | fat | soft tissue | bone
MAX_BRAIN_LITRES = 2.0  # adult brains with CSF stay below 1.9 l; defaced heads start at about 2.3 l
CLOSING_MM = 3.0
CT_BODY_HU = -300.0  # between lung parenchyma or fat (above) and foam mattresses or air (below)
OPENING_MM = 4.0  # a table top is thinner than twice this, limbs are thicker
MIN_CLASS_FRACTION = 0.005  # young brains that were stripped tightly have 1.5 % of fluid
HMRF_BETA = 0.1
HMRF_ITERATIONS = 20


class TissueError(ValueError):
    """Tissue classification that is impossible or has failed."""


def brain_mask(image: NDArray, spacing: NDArray) -> NDArray[np.bool_]:
    """Brain voxels, with ventricles and sulci, of an image whose skull was removed.

    Largest component above 1 % of the 99.5th percentile (CSF on T1w is dark but not zero), closed by 3 mm, holes
    filled. Raises TissueError where that is larger than any brain, i.e. the skull is still there.
    """
    mask = largest_component(image > 0.01 * np.percentile(image, 99.5))
    margin = np.maximum(1, np.rint(CLOSING_MM / spacing)).astype(int)
    padded = np.pad(mask, [(r, r) for r in margin])
    closed = ndimage.binary_closing(padded, ellipsoid(margin))[tuple(slice(r, -r) for r in margin)]
    mask = ndimage.binary_fill_holes(closed)
    litres = mask.sum() * float(np.prod(spacing)) / 1e6
    if litres > MAX_BRAIN_LITRES:
        raise TissueError(
            f"a whole head ({litres:.2f} l foreground), tissue classification needs a brain mask: give --brain_masks DIR "
            "or *_desc-brain_mask files in derivatives, or strip the skull first"
        )
    return mask


def hmrf_tissue(t1: NDArray, mask: NDArray[np.bool_], lesion: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """CSF 1, grey matter 2, white matter 3, background 0, by dipy's HMRF (Zhang et al., IEEE TMI 2001; FSL FAST).

    The brain's intensities between the 0.5th and 99.5th percentile are stretched to 1..255 first: the classifier
    starts from equal parts of 0..max, and where a few bright voxels or a high floor leave one part empty, its classes
    collapse. The brain is cropped, which is three times faster. Lesion voxels are filled with white matter's intensity
    first and come back as white matter. TissueError on collapse (a class under 0.5 % of the brain).
    """
    from dipy.segment.tissue import TissueClassifierHMRF  # slow to import, and only this format needs it

    if not mask.any():
        raise TissueError("the brain mask is empty")
    box = bounding_box(mask, 2)
    inside = mask[box]
    image = t1[box].astype(np.float64)
    if lesion is not None and lesion.any():
        hole = lesion[box] & inside
        image[hole] = _white_matter(image[inside & ~hole])
    low, high = np.percentile(image[inside], [0.5, 99.5])
    # Zero means background to the classifier, so brain voxels start at 1.
    image = np.where(inside, 1 + 254 * np.clip((image - low) / max(high - low, 1e-9), 0, 1), 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dipy warns of its own keyword change and of log(0) in empty classes
        _, final, _ = TissueClassifierHMRF(verbose=False).classify(
            image, 3, HMRF_BETA, tolerance=1e-5, max_iter=HMRF_ITERATIONS
        )
    # The darkest brain voxels can come back as background; they are CSF.
    classes = np.where(inside, np.maximum(np.asarray(final), 1), 0).astype(np.uint8)
    refuse_collapse(classes, inside)
    out = np.zeros(t1.shape, np.uint8)
    out[box] = classes
    return out


def _white_matter(values: NDArray) -> float:
    """Typical white matter intensity on T1w: median above the upper of two Otsu thresholds."""
    return float(np.median(values[values > threshold_multiotsu(values, classes=3)[1]]))


def refuse_collapse(classes: NDArray[np.uint8], inside: NDArray[np.bool_]) -> None:
    """TissueError where a tissue has less of the brain than any brain."""
    fractions = {name: float((classes == i).sum() / inside.sum()) for i, name in BRAIN_TISSUE.items()}
    if min(fractions.values()) < MIN_CLASS_FRACTION:
        found = ", ".join(f"{name} {100 * share:.1f} %" for name, share in fractions.items())
        raise TissueError(f"tissue classification collapsed ({found} of the brain); is this a T1w image of a brain?")


def hu_tissue(ct: NDArray, body: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Gas and lung 1 (below -300 HU), fat 2 (to -30), soft tissue 3 (to 150), bone 4, outside the body 0.

    A coarse stand-in where no organ labels exist; contrast agent and calcifications count as bone.
    """
    return np.where(body, np.digitize(ct, CT_LIMITS_HU) + 1, 0).astype(np.uint8)


def no_air(image: NDArray, is_ct: bool) -> NDArray[np.bool_]:
    """Above -300 HU in CT, a third of Otsu's threshold in MR."""
    return image > (CT_BODY_HU if is_ct else threshold_otsu(image[np.isfinite(image)]) / 3)


def body_mask(
    image: NDArray, spacing: NDArray, is_ct: bool, labelled: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """The body including its lungs and gas, without table and tubes. image (I, J, K) in RAS order.

    1. Threshold, see `no_air`. 2. Opening with a ball of 4 mm separates the
    table; the largest component is the body. 3. Grown back by the same radius inside the thresholded voxels, for the
    skin. 4. Holes filled in 3-D and in every axial slice: lungs are closed in axial slices even where the volume's end
    cuts them open, gas by the 3-D step. Labelled voxels always belong to the body.
    """
    solid = no_air(image, is_ct)
    radius = np.maximum(1, np.rint(OPENING_MM / spacing)).astype(int)
    ball = ellipsoid(radius)
    # Padding by replication keeps a body that is cut by the field of view from being eroded at the cut.
    padded = np.pad(solid, [(r, r) for r in radius], mode="edge")
    inner = tuple(slice(r, -r) for r in radius)
    opened = ndimage.binary_opening(padded, ball)[inner]
    body = largest_component(opened if opened.any() else solid)
    body = ndimage.binary_dilation(body, ball) & solid
    if labelled is not None:
        body |= labelled
    body = ndimage.binary_fill_holes(body)
    for z in range(body.shape[2]):
        body[:, :, z] = ndimage.binary_fill_holes(body[:, :, z])
    return body


def ellipsoid(radius: NDArray) -> NDArray[np.bool_]:
    """Ball of the given radius in voxels per axis, as a structuring element."""
    grid = np.ogrid[tuple(slice(-r, r + 1) for r in radius)]
    return sum((g / r) ** 2 for g, r in zip(grid, radius, strict=True)) <= 1.0


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest face-connected component of a mask; an empty mask stays empty."""
    components, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return components == sizes.argmax()
