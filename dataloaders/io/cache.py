"""The last few of what was read, as many as fit in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """Values by key, the least recently used go first; `least` of them always stay. Copies in other processes start empty.

    size: bytes of a value.
    """

    def __init__(self, gigabytes: float, size: Callable[[Value], int], least: int = 1) -> None:
        self.bytes, self.size, self.least = int(gigabytes * 2**30), size, least
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, read: Callable[[], Value]) -> Value:
        """The value of the key, read where it is not there."""
        if key not in self._kept:
            self._kept[key] = read()
        self._kept.move_to_end(key)
        while len(self) > self.least and sum(map(self.size, self._kept.values())) > self.bytes:
            self._kept.popitem(last=False)
        return self._kept[key]

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}
