"""The trajectory: a metric against the training step, from checkpoints.

In place of its table it takes whatever that can be made from: an adapter, a path, several of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .. import style
from ..analysis import views
from ..analysis.groups import Group
from . import data, page
from . import drawing as layout

if TYPE_CHECKING:
    from ..analysis.null import Null

#: More panels than these would be too small.
_PANELS = 4


@page.in_style
def trajectory(
    table: data.Source,
    *,
    metric: str = "entropy_rank",
    projection: str | None = None,
    null: bool | Null | None = None,
    panels: str | None = None,
    band: str | None = None,
    group: Group | None = None,
    width: str = "neurips",
    height: float | None = None,
    font: str | None = None,
    title: str | None = None,
    labels: data.Labels | None = None,
    ax: Axes | None = None,
) -> Figure:
    """A metric against the training step.

    One adapter: a thin line per layer (mean over its modules), coloured by depth, and the mean over all modules in
    bold. Several adapters: the mean over all modules, and a band over the layers; a rank has a panel for each rank
    bound, which is dashed where it is near, because a low bound would press its curves together beside a high one.

    Parameters
    ----------
    table : the layer metrics, with at least two steps of one adapter. Rows without a step are left out.
    metric : any metric column.
    projection : only its modules.
    null : the metric's, mean over all modules, dotted with its range over the draws: made of the adapters, or
        :func:`bora_analysis.null`.
    panels : ``"bound"``, one for each rank bound, or ``"one"`` for all; by default by bound for ranks of several
        adapters with up to 4 bounds.
    band : over the layers, ``"range"`` (least to largest) or ``"quartiles"`` (the middle half).
    group : "seed", for adapters whose names differ in their seed alone, or adapter → group: each is one curve, its
        mean over the members, with their standard deviation.
    width, height, font, title, labels, ax : see :mod:`bora_analysis.figures`.
    """
    band = data.band_of(band, group)
    if panels not in (None, "bound", "one"):
        raise ValueError(f"unknown panels {panels!r}; expected bound or one")
    table, beside = data.with_null(table, "layer_metrics", null, None)
    given = data.opened(table, "layer_metrics", labels, metric=metric, group=group)
    if beside is not None and len(beside.layer_metrics) and metric not in set(beside.layer_metrics["metric"]):
        raise ValueError(
            f"{metric} has no null; expected one of {', '.join(dict.fromkeys(beside.layer_metrics['metric']))}"
        )
    rows = data.narrowed(given.table, projection=projection)
    rows = rows[rows["step"].notna()].astype({"step": int})
    most = rows.groupby("adapter")["step"].nunique().max() if len(rows) else 0
    if most < 2:
        raise ValueError("a trajectory needs two or more steps of one adapter, and the table has no such adapter")
    nulls = None
    if beside is not None:
        nulls = beside.layer_metrics[beside.layer_metrics["step"].notna()]
        nulls = nulls if projection is None else nulls[nulls["projection"] == projection]

    shown = list(dict.fromkeys(rows["adapter"].map(given.groups)))
    looks = {name: given.looks[name] for name in shown}
    changes: dict[str, Any] = {}
    if len(rows["adapter"].unique()) == 1:
        axes = page.one_axes(width, 2.4, height, ax)
        (name,) = shown
        changes = _one(axes, rows, metric, looks[name], most)
        looks = {name: replace(looks[name], label=f"mean of {looks[name].label}")}
        if nulls is not None:
            _null(axes, given.members(nulls, name), metric, style.GREY, name)
        everything = {"": axes}
    else:
        everything = _axes(_by_bound(rows, given, metric, panels, ax), width, height, ax)
        for (bound, names), axes in everything.items():
            for name in names:
                _several(axes, given.members(rows, name), metric, looks[name], name, given.grouped, band)
                if nulls is not None:
                    _null(axes, given.members(nulls, name), metric, looks[name].colour, name)
            if bound:
                _bound(axes, bound)
    told = given.spread("") if given.grouped else f"mean and {band} of layers" if len(shown) > 1 else ""
    label = style.metric_label(metric, data.threshold_of(given.table)) + (f"\n{told}" if told else "")
    for axes in everything.values():
        if views.spreads(rows[metric]):
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(6 if len(everything) == 1 else 4, integer=True))
        axes.set_xlabel("training step")
    first, *others = everything.values()
    if not others or not _below(width):
        first.set_ylabel(label)
    else:  # one for all
        page.figure_of(first).supylabel(label, size=8)
    legend = [*looks.values(), *([layout.NULL] if nulls is not None else [])]
    if not others:
        return layout.finished(first, ax, title, legend, **changes)
    for axes in [first, *others][:-1] if _below(width) else ():
        axes.set_xlabel("")
    return layout.finish(page.figure_of(first), title, legend, **changes)


def _below(width: str) -> bool:
    """Whether panels stand one below the other."""
    return page.inches(width) < 4.5


def _by_bound(
    rows: Any, given: data.Opened, metric: str, panels: str | None, ax: Axes | None
) -> dict[tuple[str, tuple[str, ...]], None]:
    """(bound, names of the groups that have it) for each panel; the bound is empty where one panel holds all."""
    bounds: dict[str, list[str]] = {}
    spans: dict[str, int] = {}
    for name in dict.fromkeys(rows["adapter"].map(given.groups)):
        own = given.members(rows, name)["rank_bound"].astype(int)
        low, high = int(own.min()), int(own.max())
        bound = f"{low}" if low == high else f"{low}–{high}"
        bounds.setdefault(bound, []).append(name)
        spans[bound] = high
    counts = metric == "participation_ratio" or ("rank" in metric.split("_") and metric != "rank_utilisation")
    split = panels == "bound" or (panels is None and counts and len(bounds) <= _PANELS)
    if panels == "bound" and ax is not None:
        raise ValueError("panels 'bound' need a figure of their own; leave out ax")
    if not split or ax is not None or len(bounds) == 1:
        return {("", tuple(name for names in bounds.values() for name in names)): None}
    return {(bound, tuple(bounds[bound])): None for bound in sorted(bounds, key=lambda each: spans[each])}


def _axes(panels: Any, width: str, height: float | None, ax: Axes | None) -> dict[Any, Axes]:
    if len(panels) == 1:
        return {next(iter(panels)): page.one_axes(width, 2.4, height, ax)}
    below, count = _below(width), len(panels)
    figure = page.blank(width, 0.6 + 1.35 * count if below else 2.2, height)
    grid: Any = figure.subplots(count if below else 1, 1 if below else count, sharex=True)
    return dict(zip(panels, grid, strict=True))


def _one(axes: Axes, rows: Any, metric: str, look: style.Look, most: int) -> dict[str, Any]:
    """One adapter: its layers and their mean; what the legend's line differs in."""
    mean, curves = _curves(rows, metric)
    layout.layer_lines(axes, curves)
    changes = {"color": "black", "linestyle": "-", "linewidth": 1.8, "markersize": 3.2}
    changes |= {"marker": "o" if most <= 20 else "", "markerfacecolor": "black", "markeredgecolor": "black"}
    axes.plot(mean.index, mean, gid=f"mean:{rows['adapter'].iloc[0]}", **{**layout.line(look), **changes})
    return changes


def _several(axes: Axes, rows: Any, metric: str, look: style.Look, name: str, grouped: bool, band: str) -> None:
    """One of several adapters or groups: its mean, and the band over its layers or its members."""
    if grouped:
        means: Any = views.means(rows, metric, "adapter", "step").pivot(index="step", columns="adapter", values=metric)
        mean, spread = means.mean(axis=1), means.std(axis=1).fillna(0.0)
        low, high = mean - spread, mean + spread
    else:
        mean, curves = _curves(rows, metric)
        stack = np.array(list(curves.values()))
        ends = (np.fmin.reduce(stack), np.fmax.reduce(stack))
        low, high = ends if band == "range" else np.nanquantile(stack, (0.25, 0.75), axis=0)
    axes.fill_between(mean.index, low, high, color=look.colour, alpha=0.15, lw=0, gid=f"band:{name}")
    options = {**layout.line(look), "markevery": max(1, len(mean) // 20)}
    axes.plot(mean.index, mean, gid=f"mean:{name}", **options)


def _curves(rows: Any, metric: str) -> tuple[Any, dict[int | None, Any]]:
    """The mean over all modules, and over those of each layer, by step."""
    mean: Any = views.means(rows, metric, "step").set_index("step")[metric]
    by_layer: Any = views.means(rows, metric, "layer", "step").groupby("layer", dropna=False)
    return mean, {
        None if pd.isna(layer) else int(layer): part.set_index("step")[metric].reindex(mean.index)
        for layer, part in by_layer
    }


def _null(axes: Axes, nulls: Any, metric: str, colour: str, name: str) -> None:
    found = views.null_means(nulls, metric, "step").sort_values("step")
    layout.null_band(axes, found["step"].astype(int), found, colour, name)


def _bound(axes: Axes, bound: str) -> None:
    """The panel's bound: as its title, and as a line where the curves come near it."""
    axes.set_title(f"rank bound {bound}", size=7, loc="left", pad=3)
    level = float(bound.partition("–")[2] or bound)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.0) if low < 0.3 * high else low, high)
    if high >= 0.6 * level:
        axes.axhline(level, color=layout.GUIDE, lw=0.6, ls=(0, (4, 2)), zorder=1, gid=f"bound:{bound}")
