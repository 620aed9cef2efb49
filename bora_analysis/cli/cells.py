"""Numbers as a table shows them, rounded."""

from __future__ import annotations

from typing import Any

import pandas as pd


def numbers(values: pd.Series) -> list[str]:
    """A column of numbers: no decimals if all are whole, else two; e-notation for very small and large ones."""
    whole = all(value == round(value) for value in values.dropna()) and values.abs().max() < 1e7
    return [f"{value:.0f}" if whole and pd.notna(value) else number(value) for value in values]


def number(value: float) -> str:
    if pd.isna(value):
        return "–"
    return f"{value:.2f}" if value == 0 or 0.095 <= abs(value) < 1e5 else f"{value:.2g}"


def mean_of(values: pd.Series) -> str:
    """The mean of the numbers that are there."""
    return numbers(pd.Series([values.mean()]))[0]


def error(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}"


def span(values: pd.Series, form: str = "") -> str:
    low, high = values.min(), values.max()
    return f"{low:{form}}" if low == high else f"{low:{form}}–{high:{form}}"


def short(value: float, gap: str = "") -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{gap}{unit}"
    return f"{value:.0f}{gap}"


def cells_of(values: pd.Series) -> list[str]:
    """Any column of a frame: numbers rounded, else as text."""
    if pd.api.types.is_bool_dtype(values):
        return ["yes" if value else "no" for value in values]
    if pd.api.types.is_numeric_dtype(values):
        return numbers(values.astype(float))
    return ["–" if _missing(value) else str(value) for value in values]


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value) or value is pd.NA
