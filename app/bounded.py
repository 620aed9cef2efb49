"""A store of results that all sessions of the process share, bounded in bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from cachetools import LRUCache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Bounded(Generic[K, V]):
    """Results by key; beyond ``limit`` bytes the least recently used go. Nothing is copied: nobody changes a result.

    Parameters
    ----------
    limit : bytes of all results together; the latest one is kept whatever its size.
    size : the bytes of a result.
    """

    def __init__(self, limit: int, size: Callable[[V], int]):
        # One that is larger than the limit counts as the limit: cachetools would refuse it.
        self.kept: LRUCache[K, V] = LRUCache(limit, lambda value: min(size(value), limit))
        self.guard = threading.Lock()

    def get(self, key: K) -> V | None:
        """The result, which is then the most recently used one; None where there is none."""
        with self.guard:
            return self.kept.get(key)

    def put(self, key: K, value: V) -> V:
        """Keep a result, and drop what there is no more room for."""
        with self.guard:
            self.kept[key] = value
        return value

    def drop(self, where: Callable[[K], bool]) -> None:
        """Forget the results of these keys."""
        with self.guard:
            for key in filter(where, list(self.kept)):
                del self.kept[key]

    def __contains__(self, key: K) -> bool:
        return key in self.kept

    def __iter__(self) -> Iterator[K]:
        return iter(list(self.kept))
