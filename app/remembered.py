"""Tables and charts that stay from one run of a page to the next, while what they are made of stays."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import pandas as pd

from app.bounded import bounded
from app.vega import Chart

T = TypeVar("T")
#: What is beyond this is dropped, the least recently used first.
REMEMBERED_BYTES = 32 << 20
#: A specification, roughly, and the least that is counted; a cell of a table, a number or a name. To look at each
#: column of small tables took as long as to make one.
_SPEC, _CELL = 8000, 24


def remembered(key: Hashable, make: Callable[[], T]) -> T:
    """What ``make`` gives, made once for all sessions.

    Parameters
    ----------
    key : all that the result depends on: ``Context.key``, what is chosen on the page; for a chart the theme as well,
        and for what counts singular values the threshold.
    make : may not use Streamlit. Nobody changes what it gives.
    """
    return _made(key, make)


def _bytes(value: Any) -> int:
    if isinstance(value, pd.DataFrame):
        return _CELL * value.size
    if isinstance(value, tuple):
        return sum(map(_bytes, value))
    if isinstance(value, Chart):
        # Twice: as frames, and as what is sent.
        return _SPEC + 2 * sum(map(_bytes, value.data.values()))
    return _SPEC


@bounded(REMEMBERED_BYTES, _bytes, lambda key, make: key)
def _made(key: Hashable, make: Callable[[], Any]) -> Any:
    return make()
