"""Figures of adapters, from the two tidy tables.

In place of its table each takes whatever the tables can be made from: an adapter, a path, several of them. Where a
table holds several steps of an adapter, every figure but :func:`trajectory` shows the last one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .. import metrics, style
from ..analysis import views
from ..threshold import Threshold
from . import data
from . import drawing as layout

if TYPE_CHECKING:
    from ..analysis.null import Null


@layout.in_style
def figure4(
    table: data.Source,
    *,
    projection: str | None = None,
    threshold: Threshold | float | str = metrics.THRESHOLD,
    null: bool | Null | None = None,
    width: str = "neurips",
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
    width, title, labels : see :mod:`bora_analysis.figures`.

    Notes
    -----
    Thin dashed: the rank bound. Adapters that use their whole bound may coincide: their markers are set apart
    sideways or, where there is no room, take turns along the layers.
    """
    table, drawn = data.with_null(table, "spectra", null, threshold)
    table, looks = data.opened(table, "spectra", labels, threshold=threshold)
    modules = views.counted(views.last_steps(table), threshold)
    projection = projection or data.default_projection(modules)
    modules = data.narrowed(modules, projection=projection)
    placed = modules["layer"].notna().any()
    # Where no module has a layer, all of them stand on one tick.
    means: Any = views.by_layer(modules if placed else modules.assign(layer=0)).sort_values("layer", kind="stable")
    layers = sorted(means["layer"].unique().tolist()) if placed else []
    shown = [adapter for adapter in looks if adapter in set(means["adapter"])]
    coincide = bool(means.duplicated(["layer", "effective_rank"]).any())

    figure = layout.blank(width, 3.3)
    upper, lower = figure.subplots(2, 1, sharex=True)
    # A marker takes about 4.5 points, the y axis and its labels 0.75 inches.
    roomy = 4.5 * len(layers) * len(shown) <= 72 * (layout.inches(width) - 0.75)
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
        if mine["rank_bound"].nunique() == 1:
            bounds[adapter] = mine["rank_bound"].iloc[0]
        else:
            bound = {"gid": f"bound:{adapter}", "color": look.colour, "lw": 0.6, "ls": (0, (4, 2)), "zorder": 1}
            lower.plot(x, mine["rank_bound"], **bound)
        if drawn is not None:
            nulls = views.last_steps(drawn.layer_metrics)
            nulls = nulls[(nulls["projection"] == projection) & (nulls["adapter"] == adapter)]
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
    upper.set_ylabel("energy\nΣσ²")
    lower.set_ylabel(style.metric_label("effective_rank", threshold))
    several = means["modules"].max() > 1
    lower.set_xlabel(f"layer ({layout.plain(projection)} projection{', mean over modules' if several else ''})")
    figure.align_ylabels()
    legend = [*(looks[adapter] for adapter in shown), *([layout.NULL] if drawn is not None else [])]
    return layout.finish(figure, title, legend, linestyle="-", linewidth=0.7)


@layout.in_style
def spectra(
    table: data.Source,
    *,
    projection: str | None = None,
    module: str | None = None,
    threshold: Threshold | float | str = metrics.THRESHOLD,
    null: bool | Null | None = None,
    width: str = "neurips",
    title: str | None = None,
    labels: data.Labels | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Singular values against their index: median over the modules, and the band from least to largest.

    The axis shows every median above 1e-16 σ₁; smaller values, and 0, lie on its floor. A spectrum ends at the
    rank bound, where a hairline drops to the index axis; an adapter of up to three bounds has a curve for each.

    Parameters
    ----------
    table : the spectra.
    projection, module : show only these.
    threshold : the one to mark: a number as a line, others as a short line for each adapter, in its colour, at the
        median of what they are for its modules.
    null : that of each adapter, dotted with its range over the draws (medians over the modules): made of the adapters,
        or :func:`bora_analysis.null`.
    width, title, labels, ax : see :mod:`bora_analysis.figures`.
    """
    table, drawn = data.with_null(table, "spectra", null, None)
    table, looks = data.opened(table, "spectra", labels, threshold=threshold)
    tau, rows = Threshold.of(threshold), data.narrowed(views.last_steps(table), projection=projection, module=module)
    curves: Any = views.curves(rows)
    limits = views.limits_of(rows, tau)
    floor, ceiling = views.sigma_limits(curves["median"], curves["largest"], *limits.values())

    axes = layout.one_axes(width, 2.6, ax)
    for (adapter, bound), curve in curves.groupby(["adapter", "bound"], sort=False):
        look, name = looks[adapter], f"{adapter}:{bound}"
        median, *band = (np.fmax(curve[column].to_numpy(), floor) for column in ("median", "least", "largest"))
        if curve["modules"].iloc[0] > 1:
            axes.fill_between(curve["index"], *band, color=look.colour, alpha=0.15, lw=0, gid=f"band:{name}")
        options = {**layout.line(look), "markevery": [bound - 1], "clip_on": False}
        axes.plot(curve["index"], median, gid=f"median:{name}", **options)
        axes.vlines(bound, floor, median[-1], color=look.colour, lw=0.6, gid=f"bound:{name}")
    if drawn is not None:
        nulls = data.narrowed(views.last_steps(drawn.spectra), projection=projection, module=module)
        nulls = nulls[nulls["adapter"].isin(set(rows["adapter"]))]
        beside: Any = views.null_curves(nulls)
        for (adapter, bound), band in beside.groupby(["adapter", "bound"], sort=False):
            layout.null_band(axes, band["index"], band, looks[adapter].colour, f"{adapter}:{bound}")
    axes.set_yscale("log")
    axes.set_ylim(floor, ceiling)
    layout.decades(axes.yaxis, floor, ceiling)
    layout.index_axis(axes, curves["bound"].tolist())
    if tau.absolute:
        layout.threshold_line(axes, tau.value, "y")
    else:
        ends = curves.groupby("adapter")["bound"].max()
        for adapter, limit in limits.items():
            if limit > 0:
                layout.own_threshold(axes, limit, ends[adapter], looks[adapter].colour, adapter)
        layout.threshold_text(axes, tau.formula)
    axes.set_xlabel("index of the singular value")
    axes.set_ylabel("singular value σ" + ("\nmedian and range" if curves["modules"].max() > 1 else ""))
    legend = [
        *(looks[adapter] for adapter in curves["adapter"].unique()),
        *([layout.NULL] if drawn is not None else []),
    ]
    return layout.finished(axes, ax, title, legend)


@layout.in_style
def heatmap(
    table: data.Source,
    *,
    metric: str = "effective_rank",
    width: str = "neurips",
    title: str | None = None,
    labels: data.Labels | None = None,
) -> Figure:
    """A metric over layers (columns) and projections (rows), one panel per adapter on one colour scale.

    Hatched: no such module, or no value. Column "–": modules without a layer. Several modules of a cell are
    averaged, which the colour bar's label then says. Numbers are written where they fit.

    Parameters
    ----------
    table : the layer metrics.
    metric : any metric column.
    width, title, labels : see :mod:`bora_analysis.figures`.
    """
    table, looks = data.opened(table, "layer_metrics", labels, metric=metric)
    cells = views.cells(views.last_steps(table), metric)
    layers, projections = views.layers_in_order(cells["layer"]), style.projections_in_order(cells["projection"])
    grids = {adapter: np.full((len(projections), len(layers)), np.nan) for adapter in looks}
    for row in cells.to_dict("records"):
        column = -1 if row["layer"] is pd.NA else layers.index(row["layer"])
        grids[row["adapter"]][projections.index(row["projection"]), column] = row[metric]
    label = style.metric_label(metric, data.threshold_of(table), "  ")
    if cells["modules"].max() > 1:
        label += ", cell mean"
    return layout.finish(layout.heat_panels(grids, looks, layers, projections, label, width), title, [])


@layout.in_style
def threshold_sweep(
    table: data.Source,
    *,
    projection: str | None = None,
    threshold: Threshold | float | str = metrics.THRESHOLD,
    width: str = "neurips",
    title: str | None = None,
    labels: data.Labels | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Effective rank against the threshold τ: mean over the modules, and the band from least to largest.

    Left τ is a number, right a share of each module's σ₁, or of its ‖ΔW‖_F where ``threshold`` is one at equal energy.
    With ``ax`` only the axis of ``threshold`` is drawn.

    Parameters
    ----------
    table : the spectra.
    projection : count only its modules.
    threshold : the one to mark, on the axis that it belongs to.
    width, title, labels, ax : see :mod:`bora_analysis.figures`.
    """
    table, looks = data.opened(table, "spectra", labels, threshold=threshold)
    tau = Threshold.of(threshold)
    chosen = data.narrowed(views.last_steps(table), projection=projection)
    shown = [looks[adapter] for adapter in chosen["adapter"].unique()]
    # A number and, whatever is marked, one that does not depend on the scale.
    absolute, free = Threshold(tau.value), Threshold(tau.value, tau.norm is None, tau.norm)
    if ax is not None:
        _sweep(ax, chosen, looks, absolute if tau.absolute else free, tau)
        return layout.finished(ax, ax, title, shown, marker="")
    wide = layout.inches(width) > 4
    figure = layout.blank(width, 2.5 if wide else 4.4)
    panels: Any = figure.subplots(1 if wide else 2, 2 if wide else 1, sharey=True)
    _sweep(panels[0], chosen, looks, absolute, tau)
    _sweep(panels[1], chosen, looks, free, tau)
    for axes in panels[1:] if wide else ():
        axes.set_ylabel("")
        axes.tick_params(labelleft=False)
    return layout.finish(figure, title, shown, marker="")


def _sweep(axes: Axes, chosen: Any, looks: Any, kind: Threshold, marked: Threshold) -> bool:
    """Counts against thresholds of one kind; whether they are means over several modules."""
    scale = views.limits(chosen, replace(kind, value=1.0))
    chosen = chosen.assign(singular_value=chosen["singular_value"] / scale.where(scale > 0, 1.0))
    curves: Any = views.curves(chosen)
    mark = [marked.value] if marked == replace(kind, value=marked.value) else []
    low, high = views.sigma_limits(curves["median"], curves["largest"], *mark)
    taus = np.geomspace(low, high, 400)
    tops, several = [1], False
    mean_id, band_id = ("mean", "band") if kind.absolute else ("free mean", "free band")
    for adapter, rows in chosen.groupby("adapter", sort=False):
        look = looks[adapter]
        modules = rows.groupby("module", sort=False)["singular_value"]
        counts = np.stack([metrics.effective_rank(s.to_numpy(float), taus) for _, s in modules])
        tops.append(int(counts.max()))
        if len(counts) > 1:
            several = True
            band = counts.min(axis=0), counts.max(axis=0)
            axes.fill_between(taus, *band, color=look.colour, alpha=0.15, lw=0, gid=f"{band_id}:{adapter}")
        # Dashed lines on top: two adapters of one bound then both show.
        options = {**layout.line(look), "marker": "", "zorder": 3 if look.dash else 2}
        axes.plot(taus, counts.mean(axis=0), gid=f"{mean_id}:{adapter}", **options)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    layout.decades(axes.xaxis, low, high)
    layout.rank_axis(axes, max(tops))
    if mark:
        layout.threshold_line(axes, mark[0], "x")
    of = "" if kind.absolute else ", share of σ₁" if kind.relative else f", of ΔW at ‖ΔW‖_F = {kind.norm:g}"
    axes.set_xlabel(f"threshold τ{of}")
    axes.set_ylabel("effective rank #{σ > τ}" + ("\nmean and range" if several else ""))
    return several


@layout.in_style
def trajectory(
    table: data.Source,
    *,
    metric: str = "entropy_rank",
    projection: str | None = None,
    null: bool | Null | None = None,
    width: str = "neurips",
    title: str | None = None,
    labels: data.Labels | None = None,
    ax: Axes | None = None,
) -> Figure:
    """A metric against the training step.

    One adapter: a thin line per layer (mean over its modules), coloured by depth, and the mean over all modules in
    bold. Several adapters: the mean over all modules, and the band from least to largest layer.

    Parameters
    ----------
    table : the layer metrics, with at least two steps of one adapter. Rows without a step are left out.
    metric : any metric column.
    projection : only its modules.
    null : the metric's, mean over all modules, dotted with its range over the draws: made of the adapters, or
        :func:`bora_analysis.null`.
    width, title, labels, ax : see :mod:`bora_analysis.figures`.
    """
    table, beside = data.with_null(table, "layer_metrics", null, None)
    table, looks = data.opened(table, "layer_metrics", labels, metric=metric)
    if beside is not None and len(beside.layer_metrics) and metric not in set(beside.layer_metrics["metric"]):
        raise ValueError(
            f"{metric} has no null; expected one of {', '.join(dict.fromkeys(beside.layer_metrics['metric']))}"
        )
    rows = data.narrowed(table, projection=projection)
    rows = rows[rows["step"].notna()].astype({"step": int})
    most = rows.groupby("adapter")["step"].nunique().max() if len(rows) else 0
    if most < 2:
        raise ValueError("a trajectory needs two or more steps of one adapter, and the table has no such adapter")

    axes = layout.one_axes(width, 2.4, ax)
    shown = list(dict.fromkeys(rows["adapter"]))
    drawn, changes = [looks[adapter] for adapter in shown], {}
    for adapter, look in zip(shown, drawn, strict=True):
        mine = rows[rows["adapter"] == adapter]
        mean: Any = views.means(mine, metric, "step").set_index("step")[metric]
        by_layer: Any = views.means(mine, metric, "layer", "step").groupby("layer", dropna=False)
        curves = {
            None if pd.isna(layer) else int(layer): part.set_index("step")[metric].reindex(mean.index)
            for layer, part in by_layer
        }
        if len(shown) == 1:
            layout.layer_lines(axes, curves)
            changes = {"color": "black", "linestyle": "-", "linewidth": 1.8, "markersize": 3.2}
            changes |= {"marker": "o" if most <= 20 else "", "markerfacecolor": "black", "markeredgecolor": "black"}
            drawn = [replace(look, label=f"mean of {look.label}")]
        else:
            stack = np.array(list(curves.values()))
            band = np.fmin.reduce(stack), np.fmax.reduce(stack)
            axes.fill_between(mean.index, *band, color=look.colour, alpha=0.15, lw=0, gid=f"band:{adapter}")
        options = {**layout.line(look), **(changes or {"markevery": max(1, len(mean) // 20)})}
        axes.plot(mean.index, mean, gid=f"mean:{adapter}", **options)
        if beside is not None:
            nulls = beside.layer_metrics[
                (beside.layer_metrics["adapter"] == adapter) & beside.layer_metrics["step"].notna()
            ]
            nulls = nulls if projection is None else nulls[nulls["projection"] == projection]
            found = views.null_means(nulls, metric, "step").sort_values("step")
            colour = style.GREY if len(shown) == 1 else look.colour
            layout.null_band(axes, found["step"].astype(int), found, colour, adapter)
    if beside is not None:
        drawn.append(layout.NULL)
    if views.spreads(rows[metric]):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("training step")
    axes.set_ylabel(style.metric_label(metric, data.threshold_of(table)))
    return layout.finished(axes, ax, title, drawn, **changes)
