"""The slices of a split as a few arrays instead of hundreds of thousands of objects.

Looking at a Python object writes to it (its reference count), so every loader process would slowly get a copy of its own
of each object it inherits. Arrays stay shared, and memory stays flat over an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.manifest import Case, Slice


class SliceTable(Sequence[tuple[Case, Slice]]):
    """(case, slice) of all slices of `cases`, in their order; slices without histogram and generated images."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = tuple(cases)
        items = [item for case in cases for item in case.slices]
        channels = max((len(item.images) for item in items), default=0)
        self._case = np.repeat(np.arange(len(cases), dtype=np.int32), [len(case.slices) for case in cases])
        self._index = np.array([item.index for item in items], np.int64)
        self._label = np.array([item.label.encode() for item in items], np.bytes_)
        self._images = _paths([item.images for item in items], channels)
        self._filled = _paths([item.filled for item in items], max((len(item.filled) for item in items), default=0))

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> tuple[Case, Slice]:  # type: ignore[override]
        images, filled = (
            tuple(path.decode() for path in paths[i].tolist() if path) for paths in (self._images, self._filled)
        )
        item = Slice(int(self._index[i]), self.label(i), images, filled=filled)
        return self.cases[self._case[i]], item

    def label(self, i: int) -> str:
        """The label file alone of a slice."""
        return self._label[i].decode()

    def __iter__(self) -> Iterator[tuple[Case, Slice]]:
        return (self[i] for i in range(len(self)))


def _paths(rows: Sequence[Sequence[str]], width: int) -> NDArray[np.bytes_]:
    """(slices, width) of file names, empty where a slice has fewer."""
    full = [[path.encode() for path in row] + [b""] * (width - len(row)) for row in rows]
    return np.array(full, np.bytes_).reshape(len(rows), width)
