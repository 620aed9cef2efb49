"""Numbers as a table shows them, rounded."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..analysis.columns import mean, missing


def numbers(values: Iterable[Any]) -> list[str]:
    """A column of numbers: no decimals if all are whole, else two; e-notation for very small and large ones.

    Whole numbers are counts: they keep all digits up to 10¹⁵, and have commas where one of them reaches 10⁵.

    >>> numbers([13271040, None]), numbers([64, 8]), numbers([1e300, 2.0]), numbers([0.5, 13271040.5])
    (['13,271,040', '–'], ['64', '8'], ['1e+300', '2.00'], ['0.50', '1.3e+07'])
    """
    listed = [float("nan") if missing(value) else float(value) for value in values]
    there = [value for value in listed if value == value]
    largest = max(map(abs, there), default=math.inf)
    whole = largest < 1e15 and all(value == round(value) for value in there)
    form = ",.0f" if largest >= 1e5 else ".0f"
    return [f"{value:{form}}" if whole and value == value else number(value) for value in listed]


def number(value: float) -> str:
    if missing(value):
        return "–"
    return f"{value:.2f}" if value == 0 or 0.095 <= abs(value) < 1e5 else f"{value:.2g}"


def mean_of(values: Any) -> str:
    """The mean of the numbers that are there; that of large counts is rounded to a count.

    >>> import numpy as np
    >>> mean_of(np.array([13271040, 1])), mean_of(np.array([1, 2])), mean_of(np.array([13271040.5, 1]))
    ('6,635,520', '1.50', '6.6e+06')
    """
    middle = mean(values)
    counts = 1e5 <= middle < 1e15 and all(missing(value) or value == round(value) for value in values)
    return numbers([round(middle) if counts else middle])[0]


def error(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}"


def span(values: Iterable[Any], form: str = "") -> str:
    there = [value for value in np.asarray(values).tolist() if not missing(value)]
    low, high = min(there), max(there)
    return f"{low:{form}}" if low == high else f"{low:{form}}–{high:{form}}"


def short(value: float, gap: str = "") -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{gap}{unit}"
    return f"{value:.0f}{gap}"


def cells_of(values: Any) -> list[str]:
    """Any column of a table: numbers rounded, else as text."""
    if values.dtype == bool:
        return ["yes" if value else "no" for value in values]
    if is_numeric(values):
        return numbers(values)
    return ["–" if missing(value) else str(value) for value in values]


def is_numeric(values: Any) -> bool:
    """Whether an array holds numbers, of which some may be missing."""
    return values.dtype.kind in "iuf" or all(value is None or isinstance(value, int) for value in values)
