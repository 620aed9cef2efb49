"""A store of results that all sessions of the process share, bounded in bytes."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition
from typing import Any

from cachetools import LRUCache, cached


def bounded(limit: int, size: Callable[[Any], int], key: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Keep what a function gives, ``size`` bytes each; beyond ``limit`` the least recently used go.

    Sessions that ask for one result at once wait for the one that makes it. The latest result is kept whatever its
    size. Nothing is copied: nobody changes a result.
    """
    # One that is larger than the limit counts as the limit: cachetools would refuse it.
    return cached(LRUCache(limit, lambda value: min(size(value), limit)), key, condition=Condition())
