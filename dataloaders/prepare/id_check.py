"""A look at what the ids of label maps are, before they become classes: interpolated maps and pictures are no label maps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dataloaders.labelmaps.labels import count_labels

FEWEST = 8  # labelled ids below which nothing is judged by how they lie
SAMPLE = 2**22  # voxels of a volume that are looked at, in whole planes
LARGEST = 16  # ids up to which gaps between them are no sign of anything


@dataclass
class IdCheck:
    """Ids of one or several label maps.

    counts: pixels of each id. seen, lone: pixels of each that were looked at, and those of them that are alone between
    others: with fewer than two equal ones among the four neighbours in their plane, of which opposite ones differ both ways
    (those of a small organ within one other thing do not).
    """

    counts: Counter[int] = field(default_factory=Counter)
    seen: Counter[int] = field(default_factory=Counter)
    lone: Counter[int] = field(default_factory=Counter)

    def add(self, ids: NDArray) -> dict[int, int]:
        """One map, (H, W) or (H, W, planes); returns its pixels per id."""
        counts = count_labels(ids)
        self.counts.update(counts)
        planes = ids if ids.ndim == 3 else ids[..., None]
        planes = planes[..., :: -(-planes.size // SAMPLE)]
        equal = np.zeros(planes.shape, np.uint8)
        for low, high in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
            same = planes[low] == planes[high]
            equal[low] += same
            equal[high] += same
        lone = equal < 2
        for axis in (0, 1):
            last = planes.shape[axis] - 1
            before, after = (np.clip(np.arange(last + 1) + step, 0, last) for step in (-1, 1))
            lone &= planes.take(before, axis) != planes.take(after, axis)
        self.seen.update(counts if planes.size == ids.size else count_labels(planes))
        self.lone.update(count_labels(planes[lone]))
        return counts

    def fault(self, levels: int) -> str:
        """Why these are no classes, '' where they can be. levels: how many values the images have, 0 for no images."""
        ids = [i for i in self.seen if i]
        rims = sum(2 * self.lone[i] > self.seen[i] for i in ids)
        if len(ids) < FEWEST or (2 * rims <= len(ids) and not 0 < 4 * levels < len(ids)):
            return ""
        if 0 < 4 * levels < len(ids):
            return f"{len(ids)} label ids, but images of {levels} values: labels and images seem to be exchanged"
        return (
            f"{len(ids)} label ids, {rims} of them mostly single pixels between others: these are label maps that were "
            "interpolated (resample them by nearest neighbour), or pictures (are labels and images exchanged?)"
        )

    def gaps(self) -> str:
        """What is strange in ids that become classes as they are: few of 0..highest occur; '' where nothing is."""
        highest, found = max(self.counts), sorted(self.counts)
        if highest < LARGEST or 2 * len(found) > highest:
            return ""
        shown = ", ".join(map(str, found[:8])) + (", …" if len(found) > 8 else "")
        return f"only {len(found)} of the label ids 0..{highest} occur ({shown}), each of which would become a class"
