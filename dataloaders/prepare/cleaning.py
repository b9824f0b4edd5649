"""Body masks: what is patient and what is scanner table, tube or air."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

CT_BODY_HU = -300.0  # between lung parenchyma or fat (above) and foam mattresses or air (below)
OPENING_MM = 4.0  # a table top is thinner than twice this, limbs are thicker


def body_mask(
    image: NDArray, spacing: NDArray, is_ct: bool, labelled: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """The body including its lungs and gas, without table and tubes. image (I, J, K) in RAS order.

    1. Threshold: -300 HU for CT, a third of Otsu's threshold for MR. 2. Opening with a ball of 4 mm separates the
    table; the largest component is the body. 3. Grown back by the same radius inside the thresholded voxels, for the
    skin. 4. Holes filled in 3-D and in every axial slice: lungs are closed in axial slices even where the volume's end
    cuts them open, gas by the 3-D step. Labelled voxels always belong to the body.
    """
    threshold = CT_BODY_HU if is_ct else threshold_otsu(image[np.isfinite(image)]) / 3
    solid = image > threshold
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
