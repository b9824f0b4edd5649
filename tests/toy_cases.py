"""Arrays as the slices of one case, as the metrics see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case, Slice
from evaluation.metrics.metric import CaseSlices
from evaluation.pairs import Item

WINDOW = Window(-1024.0, 3071.0)


def item_of(
    real: NDArray, fake: NDArray, label: NDArray | None = None, index: int = 0, window: Window = WINDOW, **more: Any
) -> Item:
    """One slice: images (H, W) in physical units; all body without a label map."""
    case, place = Case("c", "p", "test", (window,), ()), Slice(index, "")
    label = np.ones(real.shape, np.uint8) if label is None else label
    real, fake = np.asarray(real), np.asarray(fake)
    return Item(case, place, 0, label, window.encode(real), window.encode(fake), (real, fake), **more)


def case_of(
    real: Sequence[NDArray],
    fake: Sequence[NDArray],
    label: Sequence[NDArray] | None = None,
    indices: Sequence[int] | None = None,
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    window: Window = WINDOW,
    draws: Sequence[Sequence[NDArray]] | None = None,
    lesion: int | None = None,
) -> CaseSlices:
    """Slices of a case: images, label maps and draws of each; indices: 0, 1, 2, ... else."""
    count = len(real)
    labels = [None] * count if label is None else label
    places = range(count) if indices is None else indices
    each = zip(real, fake, labels, places, [()] * count if draws is None else draws, strict=True)
    items = [item_of(*slice_, window, draws=tuple(drawn)) for *slice_, drawn in each]
    return CaseSlices(items, spacing, lesion)
