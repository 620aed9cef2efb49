"""Figures over the layers: figure 4 and the heat map.

In place of its table each takes whatever the tables can be made from: an adapter, a path, several of them. Where a
table holds several steps of an adapter, the last one is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .. import metrics, style
from ..analysis import views
from ..analysis.groups import Group
from ..threshold import Threshold
from . import data, page
from . import drawing as layout
from .heat import heat_panels

if TYPE_CHECKING:
    from ..analysis.null import Null


@page.in_style
def figure4(
    table: data.Source,
    *,
    projection: str | None = None,
    threshold: Threshold | float | str = metrics.THRESHOLD,
    null: bool | Null | None = None,
    group: Group | None = None,
    width: str = "neurips",
    height: float | None = None,
    font: str | None = None,
    title: str | None = None,
    labels: data.Labels | None = None,
) -> Figure:
    """Energy and effective rank over the layers of one projection, as figure 4 of BoRA (arXiv 2508.06953).

    Parameters
    ----------
    table : the spectra. Several modules of a layer (experts) are averaged. Modules without a layer are left out
        where others have one.
    projection : by default "q", else "qkv", else the one with most layers.
    threshold : singular values above it count, see :class:`bora_analysis.Threshold`.
    null : that of the effective rank, dotted with its range: made of the adapters, or :func:`bora_analysis.null` at the
        same threshold. (Σσ² is the same.)
    group : "seed", for adapters whose names differ in their seed alone, or adapter → group: each is one curve, its
        mean over the members, with their standard deviation.
    width, height, font, title, labels : see :mod:`bora_analysis.figures`.

    Notes
    -----
    Thin dashed: the rank bound. Adapters that use their whole bound may coincide: their markers are set apart
    sideways or, where there is no room, take turns along the layers.
    """
    table, drawn = data.with_null(table, "spectra", null, threshold)
    given = data.opened(table, "spectra", labels, threshold=threshold, group=group)
    looks = given.looks
    modules = views.counted(views.last_steps(given.table), threshold)
    projection = projection or data.default_projection(modules)
    modules = data.narrowed(modules, projection=projection)
    placed = modules["layer"].notna().any()
    # Where no module has a layer, all of them stand on one tick.
    means: Any = views.by_layer(modules if placed else modules.assign(layer=0))
    means = given.means(means, ["layer"], ["energy", "effective_rank", "rank_bound", "modules"])
    means = means.sort_values("layer", kind="stable")
    layers = sorted(means["layer"].unique().tolist()) if placed else []
    shown = [adapter for adapter in looks if adapter in set(means["adapter"])]
    coincide = bool(means.duplicated(["layer", "effective_rank"]).any())

    figure = page.blank(width, 3.3, height)
    upper, lower = figure.subplots(2, 1, sharex=True)
    # A marker takes about 4.5 points, the y axis and its labels 0.75 inches.
    roomy = 4.5 * len(layers) * len(shown) <= 72 * (page.inches(width) - 0.75)
    apart = 0.7 * layout.least_gap(layers) / len(shown) if coincide and roomy else 0.0
    every = 1 if roomy or not coincide else max(1, min(len(shown), len(layers) // 4))
    bounds: dict[str, float] = {}
    for k, adapter in enumerate(shown):
        look, mine = looks[adapter], means[means["adapter"] == adapter]
        x = mine["layer"] + apart * (k - (len(shown) - 1) / 2)
        for axes, name in ((upper, "energy"), (lower, "effective_rank")):
            axes.plot(x, mine[name], color=look.colour, lw=0.7, alpha=0.5 if roomy else 1.0)
            options = {**layout.line(look), "linestyle": "", "markevery": (k % min(every, len(mine)), every)}
            axes.plot(x, mine[name], gid=f"{name}:{adapter}", zorder=3, **options)
            layout.deviations(axes, x, mine[name], mine[f"{name}_sd"], look.colour, f"sd:{name}:{adapter}")
        if mine["rank_bound"].nunique() == 1:
            bounds[adapter] = mine["rank_bound"].iloc[0]
        else:
            bound = {"gid": f"bound:{adapter}", "color": look.colour, "lw": 0.6, "ls": (0, (4, 2)), "zorder": 1}
            lower.plot(x, mine["rank_bound"], **bound)
        if drawn is not None:
            nulls = views.last_steps(drawn.layer_metrics)
            nulls = given.members(nulls[nulls["projection"] == projection], adapter)
            nulls = nulls if placed else nulls.assign(layer=0)
            band = views.null_means(nulls[nulls["layer"].notna()], "effective_rank", "layer").sort_values("layer")
            layout.null_band(lower, band["layer"].astype(int), band, look.colour, adapter)
    layout.bound_lines(lower, bounds, looks)
    if views.spreads(means["energy"]):
        upper.set_yscale("log")
    else:
        top = means["energy"].max() or 1.0
        upper.set_ylim(-0.03 * top, 1.05 * top)  # room for markers at 0
    layout.rank_axis(lower, means[["effective_rank", "rank_bound"]].max(axis=None))
    layout.layer_axis(lower, layers)
    upper.set_ylabel("energy\nΣσ²" + ("\nmean ± sd over seeds" if given.grouped else ""))
    lower.set_ylabel(style.metric_label("effective_rank", threshold))
    several = means["modules"].max() > 1
    lower.set_xlabel(f"layer ({layout.plain(projection)} projection{', mean over modules' if several else ''})")
    figure.align_ylabels()
    legend = [*(looks[adapter] for adapter in shown), *([layout.NULL] if drawn is not None else [])]
    return layout.finish(figure, title, legend, linestyle="-", linewidth=0.7)


@page.in_style
def heatmap(
    table: data.Source,
    *,
    metric: str = "effective_rank",
    scale: str = "shared",
    group: Group | None = None,
    width: str = "neurips",
    height: float | None = None,
    font: str | None = None,
    title: str | None = None,
    labels: data.Labels | None = None,
) -> Figure:
    """A metric over layers (columns) and projections (rows), one panel per adapter.

    Hatched: no such module, or no value. Column "–": modules without a layer. Several modules of a cell are
    averaged, which the colour bar's label then says. Numbers are written where they fit.

    Parameters
    ----------
    table : the layer metrics.
    metric : any metric column.
    scale : of the colours, ``"shared"`` by all panels, or ``"each"`` for one of its own, with a bar beside it: then
        only cells of one panel compare by colour.
    group : "seed", for adapters whose names differ in their seed alone, or adapter → group: each is one panel,
        its cells the means over the members, with their standard deviation where it fits.
    width, height, font, title, labels : see :mod:`bora_analysis.figures`.
    """
    if scale not in ("shared", "each"):
        raise ValueError(f"unknown scale {scale!r}; expected shared or each")
    given = data.opened(table, "layer_metrics", labels, metric=metric, group=group)
    looks, cells = given.looks, views.cells(views.last_steps(given.table), metric)
    cells = given.means(cells, ["layer", "projection"], [metric, "modules"])
    layers, projections = views.layers_in_order(cells["layer"]), style.projections_in_order(cells["projection"])
    grids = {adapter: np.full((len(projections), len(layers)), np.nan) for adapter in looks}
    spread = {adapter: grid.copy() for adapter, grid in grids.items()} if given.grouped else None
    for row in cells.to_dict("records"):
        column = -1 if row["layer"] is pd.NA else layers.index(row["layer"])
        place = projections.index(row["projection"]), column
        grids[row["adapter"]][place] = row[metric]
        if spread is not None:
            spread[row["adapter"]][place] = row[f"{metric}_sd"]
    label = style.metric_label(metric, data.threshold_of(given.table), "  ")
    if cells["modules"].max() > 1:
        label += ", cell mean"
    if given.grouped:
        label += ", mean over seeds"
    figure = heat_panels(
        grids, looks, layers, projections, label, width, height, each=scale == "each" and len(grids) > 1, spread=spread
    )
    return layout.finish(figure, title, [])
