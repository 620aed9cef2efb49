"""What figures and the dashboard show of the two tidy tables: one step, curves, means, cells, and the ends of axes.

Paper and screen draw the same numbers because both take them from here. Frames in, frames and numbers out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from .. import style
from ..linalg import Array
from ..threshold import Threshold

#: The columns of :func:`curves`.
CURVE_COLUMNS = ("adapter", "bound", "modules", "index", "median", "least", "largest", "lower", "upper")


def looks_of(table: pd.DataFrame) -> dict[str, style.Look]:
    """Adapter → look. Give the whole table, before anything is left out: an adapter then always looks the same."""
    if table.empty:
        raise ValueError("nothing to draw: the table has no rows")
    return style.looks(dict.fromkeys(zip(table["adapter"].tolist(), table["method"].tolist(), strict=True)))


def last_steps(table: Any) -> Any:
    """Each adapter's rows of its last step; those without a step only where the adapter has none with one.

    The table itself where no row has a step: nobody changes it.
    """
    if table["step"].isna().all():
        return table
    codes, _ = pd.factorize(table["adapter"])
    steps = table["step"].astype("Float64").to_numpy(float, na_value=-np.inf)
    last = np.full(codes.max() + 1, -np.inf)
    np.maximum.at(last, codes, steps)
    return table[steps == last[codes]]


def layers_in_order(layers: Iterable[Any]) -> list[int | None]:
    """The layers, each once, in ascending order; last None, where some module has no layer.

    >>> layers_in_order([3, pd.NA, 0, 3])
    [0, 3, None]
    """
    found = {None if pd.isna(layer) else int(layer) for layer in layers}
    numbers: list[int | None] = [*sorted(layer for layer in found if layer is not None)]
    return [*numbers, None] if None in found else numbers


def curves(spectra: Any) -> pd.DataFrame:
    """Median, range and quartiles over the modules at each index, of spectra at one step per adapter.

    Up to three rank bounds of one adapter have a curve each, as where k and v are narrower than q; more share one, in
    which a module counts as 0 beyond its own bound. (Together, a median jumps at each bound, because other modules
    enter or leave it.) Singular values below 1e-16 σ₁ count as 0.

    Returns
    -------
    adapter, bound, modules, index, median, least, largest, lower, upper; one row per adapter, bound and index.
    """
    parts = []
    for adapter, (stack,) in _stacks(spectra, "singular_value"):
        numbers = {"index": np.arange(1, stack.shape[1] + 1), "median": np.median(stack, axis=0)}
        numbers |= {"least": stack.min(axis=0), "largest": stack.max(axis=0)}
        numbers |= dict(zip(("lower", "upper"), np.quantile(stack, (0.25, 0.75), axis=0), strict=True))
        parts.append(pd.DataFrame({"adapter": adapter, "bound": stack.shape[1], "modules": len(stack), **numbers}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(CURVE_COLUMNS))


def null_curves(spectra: Any) -> pd.DataFrame:
    """Medians over the modules of a null's mean, least and largest, of :attr:`bora_analysis.Null.spectra` at one step.

    Returns
    -------
    adapter, bound, modules, index, mean, low, high; one row per adapter, bound and index.
    """
    names, parts = ("mean", "low", "high"), []
    for adapter, stacks in _stacks(spectra, *(f"null_{name}" for name in names)):
        modules, bound = stacks[0].shape
        numbers = {name: np.median(stack, axis=0) for name, stack in zip(names, stacks, strict=True)}
        told = {"adapter": adapter, "bound": bound, "modules": modules, "index": np.arange(1, bound + 1)}
        parts.append(pd.DataFrame({**told, **numbers}))
    columns = ["adapter", "bound", "modules", "index", *names]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _stacks(spectra: Any, *columns: str) -> Iterator[tuple[Any, list[Array]]]:
    """Of each curve the adapter, and (modules, bound) of each column; what is below 1e-16 of its module's largest is 0.

    By arrays: with a pivot of a frame for each this was a quarter of the time that a page took.
    """
    found = [spectra[name].to_numpy(float) for name in columns]
    index = spectra["index"].to_numpy(int)
    codes, adapters = pd.factorize(spectra["adapter"])
    modules, _ = pd.factorize(spectra["module"])
    for code, adapter in enumerate(adapters):
        mine = np.flatnonzero(codes == code)
        rows, _ = pd.factorize(modules[mine])
        bounds = np.zeros(rows.max() + 1, dtype=int)
        np.maximum.at(bounds, rows, index[mine])
        stacks = []
        for values in found:
            stack = np.zeros((len(bounds), bounds.max()))
            stack[rows, index[mine] - 1] = np.nan_to_num(values[mine])
            stacks.append(np.where(stack > 1e-16 * stack.max(axis=1, keepdims=True), stack, 0.0))
        kinds = list(dict.fromkeys(bounds.tolist()))
        for bound in kinds if len(kinds) <= 3 else [None]:
            yield adapter, [stack if bound is None else stack[bounds == bound, :bound] for stack in stacks]


def null_means(layers: Any, metric: str, *keys: str) -> pd.DataFrame:
    """Means over the modules of a null's mean, least and largest of a metric, of the null's ``layer_metrics``.

    Returns
    -------
    the keys, mean, low, high.
    """
    rows = layers[layers["metric"] == metric]
    found = rows.groupby(list(keys), sort=False, dropna=False)[["null_mean", "null_low", "null_high"]].mean()
    return found.rename(columns=lambda name: name.removeprefix("null_")).reset_index()


def counted(spectra: Any, threshold: float | str | Threshold) -> pd.DataFrame:
    """One row per module, of spectra at one step per adapter.

    Returns
    -------
    adapter, module, layer, projection, rank_bound, energy, effective_rank.
    """
    values = spectra["singular_value"]
    groups = spectra.assign(energy=values**2, effective_rank=values > limits(spectra, threshold)).groupby(
        ["adapter", "module"], sort=False, as_index=False
    )
    return groups.agg(
        layer=("layer", "first"),
        projection=("projection", "first"),
        rank_bound=("index", "max"),
        energy=("energy", "sum"),
        effective_rank=("effective_rank", "sum"),
    )


def limits(spectra: Any, threshold: float | str | Threshold) -> Any:
    """For each row the σ above which those of its module count, of spectra at one step per adapter."""
    tau = Threshold.of(threshold)
    values = spectra["singular_value"].astype(float)
    if tau.absolute:
        return pd.Series(tau.value, index=spectra.index)
    keys = [spectra["adapter"], spectra["module"]]
    # Σσ² of the scaled values: that of tiny ones would underflow.
    tops = values.groupby(keys).transform("max")
    shares = (values / tops.where(tops > 0, 1.0)) ** 2
    return tau.limit(tops, tops * shares.groupby(keys).transform("sum") ** 0.5)


def limits_of(spectra: Any, threshold: float | str | Threshold) -> dict[str, float]:
    """Adapter → the median over its modules of the σ that counts; of spectra at one step per adapter."""
    tau = Threshold.of(threshold)
    if tau.absolute:
        return {str(adapter): tau.value for adapter in dict.fromkeys(spectra["adapter"].tolist())}
    found = spectra.assign(limit=limits(spectra, tau))
    found = found.drop_duplicates(["adapter", "module"]).groupby("adapter", sort=False)["limit"].median()
    return {str(adapter): float(limit) for adapter, limit in found.items()}


def means(rows: Any, metric: str, *keys: str) -> pd.DataFrame:
    """The metric's mean over the modules of each combination of keys (adapter, layer, step …), sorted by them."""
    found = rows.groupby(list(keys), dropna=False)[metric].mean().reset_index()
    if "adapter" in keys:  # in the order of the table
        order = list(dict.fromkeys(rows["adapter"]))
        found = found.sort_values("adapter", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)
    return found


def by_layer(rows: Any) -> pd.DataFrame:
    """Means over the modules of each adapter and layer; modules without a layer are left out.

    Returns
    -------
    adapter, layer, modules (how many), energy, rank_bound, effective_rank.
    """
    names = ["adapter", "layer", "energy", "rank_bound", "effective_rank"]
    placed = rows.loc[rows["layer"].notna(), names].astype({"layer": int})
    groups = placed.groupby(["adapter", "layer"], sort=False)
    found = groups[["energy", "rank_bound", "effective_rank"]].mean()
    found.insert(0, "modules", groups.size().to_numpy())
    return found.reset_index()


def cells(rows: Any, metric: str) -> pd.DataFrame:
    """The metric's mean over the modules of each adapter, layer and projection, the layers in order.

    Returns
    -------
    adapter, layer (missing for modules without one), projection, the metric, modules (how many).
    """
    groups = rows.groupby(["adapter", "layer", "projection"], sort=False, dropna=False)[metric]
    found = groups.agg(["mean", "size"]).reset_index().rename(columns={"mean": metric, "size": "modules"})
    return found.sort_values("layer", kind="stable", ignore_index=True)


def costs(layers: Any) -> pd.DataFrame:
    """Per adapter: all its parameters, and the means over its modules of rank_bound and effective_rank."""
    groups = layers.groupby("adapter", sort=False)
    found = groups[["rank_bound", "effective_rank"]].mean()
    found.insert(0, "parameters", groups["parameters"].sum().to_numpy())
    return found.reset_index()


def spreads(values: Any) -> bool:
    """Whether values need a logarithmic axis: all are above 0 and they span over two decades. NaN does not count.

    >>> spreads([1.0, 101.0]), spreads([0.0, 1.0, 101.0])
    (True, False)
    """
    found = np.asarray(values, dtype=float)
    found = found[np.isfinite(found)]
    return bool(found.size and found.min() > 0 and found.max() / found.min() > 100)


def bounds_spread(bounds: Any) -> bool:
    """Whether rank bounds lie so far apart that a linear axis of indices would press the shortest spectrum together.

    >>> bounds_spread([8, 64]), bounds_spread([8, 63])
    (True, False)
    """
    return bool(max(bounds) >= 8 * min(bounds))


def ranks_spread(ranks: Any) -> bool:
    """Whether ranks need a logarithmic axis: all are above 0, and the largest is over 16 times the least.

    >>> ranks_spread([8, 129]), ranks_spread([0, 8, 129])
    (True, False)
    """
    return bool(min(ranks) > 0 and max(ranks) > 16 * min(ranks))


def sigma_limits(medians: Any, largest: Any, *thresholds: float) -> tuple[float, float]:
    """Ends of a logarithmic axis of singular values: all medians above 0, all maxima and the thresholds lie on it.

    Not all minima: one tiny σ of one module would press everything else together. Two decades at least, so that the
    axis has a few labels.
    """
    found = np.asarray(medians, dtype=float)
    tops = np.asarray(largest, dtype=float)
    shown = [*found[found > 0], *(each for each in thresholds if each > 0)] or [1.0]
    low, high = float(min(shown)) / 2, float(max([*shown, *tops[tops > 0]])) * 1.5
    widen = max(1.0, float(np.sqrt(100 * low / high)))
    return low / widen, high * widen
