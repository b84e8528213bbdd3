"""What was computed once and may be asked for again, within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Value = TypeVar("Value", bound=Sized)


class Cache(Generic[Value]):
    """The least recently used goes first; what is pinned never goes, and counts towards no budget.

    limit: bytes.  hits, misses: of `get`.
    """

    def __init__(self, limit: int, pinned: frozenset[Hashable] = frozenset()) -> None:
        self._limit, self._pinned = limit, pinned
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self.hits = self.misses = self.nbytes = 0

    def get(self, key: Hashable) -> Value | None:
        value = self._values.get(key)
        if value is None:
            self.misses += 1
            return None
        self.hits += 1
        self._values.move_to_end(key)
        return value

    def put(self, key: Hashable, value: Value) -> None:
        """Keep it, if it fits at all."""
        self._drop(key)
        self._values[key] = value
        if key in self._pinned:
            return
        self.nbytes += value.nbytes
        for old in list(self._values):
            if self.nbytes <= self._limit:
                return
            if old not in self._pinned:
                self._drop(old)

    def _drop(self, key: Hashable) -> None:
        value = self._values.pop(key, None)
        if value is not None and key not in self._pinned:
            self.nbytes -= value.nbytes

    def __len__(self) -> int:
        return len(self._values)

    def __str__(self) -> str:
        return f"{self.hits} hits, {self.misses} misses, {len(self)} kept in {self.nbytes / 1e6:.1f} MB"
