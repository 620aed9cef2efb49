"""A store of results that all sessions of the process share, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(eq=False)
class Bounded(Generic[K, V]):
    """Results by key; beyond ``limit`` bytes the least recently used go. Nothing is copied: nobody changes a result.

    Attributes
    ----------
    limit : bytes of all results together; the latest one is kept whatever its size.
    size : the bytes of a result.
    """

    limit: int
    size: Callable[[V], int]
    kept: OrderedDict[K, tuple[V, int]] = field(default_factory=OrderedDict)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: K) -> V | None:
        """The result, which is then the most recently used one; None where there is none."""
        with self.guard:
            found = self.kept.get(key)
            if found is None:
                return None
            self.kept.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V) -> V:
        """Keep a result, and drop what there is no more room for."""
        with self.guard:
            self.kept.pop(key, None)
            self.kept[key] = value, self.size(value)
            while len(self.kept) > 1 and sum(size for _, size in self.kept.values()) > self.limit:
                self.kept.popitem(last=False)
        return value

    def drop(self, where: Callable[[K], bool]) -> None:
        """Forget the results of these keys."""
        with self.guard:
            for key in [key for key in self.kept if where(key)]:
                del self.kept[key]

    def __contains__(self, key: K) -> bool:
        return key in self.kept

    def __iter__(self) -> Iterator[K]:
        return iter(list(self.kept))
