"""From the tidy tables to the modules, values and spectra that the figures draw."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .. import style
from ..metrics import METRICS

Array = NDArray[Any]
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class Placed(Protocol):
    """Anything that belongs to a module of an adapter."""

    @property
    def adapter(self) -> str: ...
    @property
    def module(self) -> str: ...
    @property
    def layer(self) -> int | None: ...
    @property
    def projection(self) -> str: ...


P = TypeVar("P", bound=Placed)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The singular values of one module, in descending order, and the bound on their number."""

    adapter: str
    module: str
    layer: int | None
    projection: str
    s: Array
    bound: int


@dataclass(frozen=True)
class Value:
    """One metric of one module at one step."""

    adapter: str
    module: str
    layer: int | None
    projection: str
    step: int | None
    value: float


def looks_of(table: pd.DataFrame) -> dict[str, style.Look]:
    """From the whole table, before anything is left out: an adapter looks the same in every figure of it."""
    if table.empty:
        raise ValueError("nothing to draw: the table has no rows")
    pairs: Any = table[["adapter", "method"]].drop_duplicates()
    return style.looks(pairs.itertuples(index=False, name=None))


def last_steps(table: Any) -> Any:
    """Each adapter's rows of its last step; those without a step only where the adapter has none with one."""
    step = table["step"].astype("Int64")
    last = step.groupby(table["adapter"]).transform("max")
    return table[(step == last).fillna(False) | last.isna()]


def spectra_of(table: Any) -> list[Spectrum]:
    """One entry per module, at the last step."""
    result = []
    for (adapter, module), rows in last_steps(table).groupby(["adapter", "module"], sort=False):
        s = np.sort(rows["singular_value"].to_numpy(float))[::-1]
        layer, projection = rows["layer"].iloc[0], rows["projection"].iloc[0]
        result.append(Spectrum(adapter, module, _integer(layer), projection, s, int(rows["index"].max())))
    return result


def values_of(table: Any, metric: str) -> list[Value]:
    """One entry per module and step; NaN where the metric is not defined."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; there are {', '.join(METRICS)}")
    columns = [table[name] for name in ("adapter", "module", "layer", "projection", "step", metric)]
    return [
        Value(adapter, module, _integer(layer), projection, _integer(step), float("nan") if pd.isna(value) else value)
        for adapter, module, layer, projection, step, value in zip(*columns, strict=True)
    ]


def threshold_of(table: Any) -> float:
    """The threshold for which a table of metrics was computed."""
    return float(table["threshold"].iloc[0])


def check_threshold(threshold: float) -> None:
    """Below 0 every singular value counts, and 0 has no place on a logarithmic axis."""
    if not (np.isfinite(threshold) and threshold > 0):
        raise ValueError(f"threshold is {threshold}; expected a finite number above 0")


def narrowed(items: Sequence[P], *, projection: str | None = None, module: str | None = None) -> list[P]:
    """Only those of a projection and of a module."""
    kept = list(items)
    for what, wanted in (("projection", projection), ("module", module)):
        if wanted is None:
            continue
        known = style.projections_in_order(getattr(item, what) for item in kept)
        if wanted not in known:
            more = f" … ({len(known)} in all)" if len(known) > 20 else ""
            raise ValueError(f"no {what} {wanted!r} here; there are {', '.join(known[:20])}{more}")
        kept = [item for item in kept if getattr(item, what) == wanted]
    return kept


def default_projection(items: Sequence[Placed]) -> str:
    """ "q", else "qkv", else the projection with most layers (the first of them in the canonical order)."""
    layers = {name: {item.layer for item in group} for name, group in grouped(items, lambda i: i.projection).items()}
    for name in ("q", "qkv"):
        if name in layers:
            return name
    return max(style.projections_in_order(layers), key=lambda name: len(layers[name]))


def layers_in_order(items: Iterable[Placed]) -> list[int | None]:
    """All layers; last None, where some module has no layer."""
    layers = {item.layer for item in items}
    numbers: list[int | None] = [*sorted(layer for layer in layers if layer is not None)]
    return [*numbers, None] if None in layers else numbers


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by key, in order of appearance."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def mean(values: Iterable[float]) -> float:
    """Mean of those that are defined; NaN if none is."""
    kept = [value for value in values if not np.isnan(value)]
    return float(np.mean(kept)) if kept else float("nan")


def stacked(spectra: Sequence[Spectrum]) -> Array:
    """Spectra as rows (modules, largest bound); 0 for what is below 1e-16 σ₁ or beyond a module's own bound."""
    stack = np.zeros((len(spectra), max(each.s.size for each in spectra)))
    for row, s in zip(stack, (each.s for each in spectra), strict=True):
        row[: s.size] = np.where(s > 1e-16 * s[0], s, 0.0)
    return stack


def stacks_by_bound(spectra: Sequence[Spectrum]) -> list[Array]:
    """One stack per rank bound where there are up to three, as where k and v are narrower than q; else one of all.

    Together, a median would jump at each bound, because other modules enter or leave it.
    """
    groups = grouped(spectra, lambda each: each.s.size)
    return [stacked(group) for group in groups.values()] if len(groups) <= 3 else [stacked(spectra)]


def sigma_limits(stacks: Iterable[Array], threshold: float) -> tuple[float, float]:
    """Ends of an axis of singular values: it shows all medians above 0, all maxima and the threshold.

    Not all minima: one tiny σ of one module would press everything else together.
    """
    least, most = threshold, threshold
    for stack in stacks:
        median = np.median(stack, axis=0)
        least = min(least, float(median.min(where=median > 0, initial=least)))
        most = max(most, float(stack.max()))
    low, high = least / 3, most * 2
    widen = max(1.0, np.sqrt(100 * low / high))  # two decades at least: an axis with a few labels
    return float(low / widen), float(high * widen)


def _integer(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)
