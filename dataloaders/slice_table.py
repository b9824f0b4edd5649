"""The slices of a split as a few arrays instead of hundreds of thousands of objects.

Looking at a Python object writes to it (its reference count), so every loader process would slowly get a copy of its own
of each object it inherits. Arrays stay shared, and memory stays flat over an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dataloaders.manifest import Case, Slice


class SliceTable(Sequence[tuple[Case, Slice]]):
    """(case, slice) of all slices of `cases`, in their order; slices without histogram and generated images."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = tuple(cases)
        items = [item for case in cases for item in case.slices]
        channels = max((len(item.images) for item in items), default=0)
        self._case = np.repeat(np.arange(len(cases), dtype=np.int32), [len(case.slices) for case in cases])
        self._index = np.array([item.index for item in items], np.int64)
        self._label = np.array([item.label.encode() for item in items], np.bytes_)
        images = [[path.encode() for path in item.images] + [b""] * (channels - len(item.images)) for item in items]
        self._images = np.array(images, np.bytes_).reshape(len(items), channels)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> tuple[Case, Slice]:  # type: ignore[override]
        images = tuple(path.decode() for path in self._images[i].tolist() if path)
        return self.cases[self._case[i]], Slice(int(self._index[i]), self._label[i].decode(), images)

    def __iter__(self) -> Iterator[tuple[Case, Slice]]:
        return (self[i] for i in range(len(self)))

    def without_image(self) -> list[str]:
        """Label files of the slices that have no image."""
        bare = (self._images == b"").all(axis=1)
        return [label.decode() for label in self._label[bare].tolist()]
