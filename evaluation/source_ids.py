"""Contiguous ids for whatever ids the label files of a folder hold."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.spec import Label

_COUNTED = 2**20  # ids up to which counting is cheaper than sorting


class SourceIds:
    """The ids that occur in label files, in order, as 0..N-1; 0 is background and always there."""

    def __init__(self, found: Iterable[int]) -> None:
        self.known = np.array(sorted({0, *found}), np.int64)

    @property
    def labels(self) -> tuple[Label, ...]:
        """Classes named after the ids in the files; at least two, as a spec needs."""
        sources = self.known.tolist() if len(self.known) > 1 else [0, 1]
        return tuple(Label(i, f"label_{s}" if s else "background", (s,)) for i, s in enumerate(sources))

    def apply(self, ids: NDArray) -> NDArray:
        """Ids of a file as contiguous ids; an id that no label file holds comes behind all others."""
        highest = int(ids.max()) if ids.size else 0
        if highest < _COUNTED:
            if highest < len(self.known) and self.known[highest] == highest:  # contiguous up to there
                return ids
            table = len(self.known) + np.arange(highest + 1, dtype=np.int32)
            there = self.known[self.known <= highest]
            table[there] = np.arange(len(there))
            return table[ids]
        place = np.minimum(np.searchsorted(self.known, ids), len(self.known) - 1)
        return np.where(self.known[place] == ids, place, len(self.known) + np.asarray(ids, np.int64))

    def source(self, label: int) -> int:
        """Inverse of `apply`."""
        return int(self.known[label]) if label < len(self.known) else label - len(self.known)
