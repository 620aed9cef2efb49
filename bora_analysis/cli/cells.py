"""Numbers as a table shows them, rounded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..analysis.columns import mean, missing


def numbers(values: Iterable[Any]) -> list[str]:
    """A column of numbers: no decimals if all are whole, else two; e-notation for very small and large ones."""
    listed = [float("nan") if missing(value) else float(value) for value in values]
    there = [value for value in listed if value == value]
    whole = bool(there) and max(map(abs, there)) < 1e7 and all(value == round(value) for value in there)
    return [f"{value:.0f}" if whole and value == value else number(value) for value in listed]


def number(value: float) -> str:
    if missing(value):
        return "–"
    return f"{value:.2f}" if value == 0 or 0.095 <= abs(value) < 1e5 else f"{value:.2g}"


def mean_of(values: Any) -> str:
    """The mean of the numbers that are there."""
    return numbers([mean(values)])[0]


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
