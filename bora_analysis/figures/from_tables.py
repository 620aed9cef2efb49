"""Figures of adapters, from the two tidy tables.

Where a table holds several steps of an adapter, every figure but :func:`trajectory` shows the last one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .. import metrics, style
from . import data
from . import drawing as layout


@layout.in_style
def figure4(
    table: pd.DataFrame,
    *,
    projection: str | None = None,
    threshold: float = metrics.THRESHOLD,
    width: str = "neurips",
    title: str | None = None,
) -> Figure:
    """Energy and effective rank over the layers of one projection, as figure 4 of BoRA (arXiv 2508.06953).

    Parameters
    ----------
    table : the spectra. Several modules of a layer (experts) are averaged. Modules without a layer are left out
        where others have one.
    projection : by default "q", else "qkv", else the one with most layers.
    threshold : singular values above it count.
    width : a venue of :data:`bora_analysis.style.VENUES`.

    Notes
    -----
    Thin dashed: the rank bound. Adapters that use their whole bound may coincide: their markers are set apart
    sideways or, where there is no room, take turns along the layers.
    """
    data.check_threshold(threshold)
    looks = data.looks_of(table)
    spectra = data.spectra_of(table)
    projection = projection or data.default_projection(spectra)
    spectra = data.narrowed(spectra, projection=projection)
    layers = [layer for layer in data.layers_in_order(spectra) if layer is not None]
    spectra = [each for each in spectra if each.layer is not None or not layers]
    # Where no module has a layer, all of them stand on one tick.
    cells = data.grouped(spectra, lambda each: (each.adapter, each.layer if layers else 0))
    shown = [adapter for adapter in looks if any(each.adapter == adapter for each in spectra)]

    series = {}
    for adapter in shown:
        mine = [(layer, cells[adapter, layer]) for layer in layers or [0] if (adapter, layer) in cells]
        series[adapter] = (
            np.array([layer for layer, _ in mine]),
            [data.mean(metrics.energy(each.s) for each in group) for _, group in mine],
            [data.mean(metrics.effective_rank(each.s, threshold) for each in group) for _, group in mine],
            [data.mean(each.bound for each in group) for _, group in mine],
        )
    places = [place for at, _, rank, _ in series.values() for place in zip(at, rank, strict=True)]
    coincide = len(set(places)) < len(places)

    figure = layout.blank(width, 3.3)
    upper, lower = figure.subplots(2, 1, sharex=True)
    # A marker takes about 4.5 points, the y axis and its labels 0.75 inches.
    roomy = 4.5 * len(layers) * len(shown) <= 72 * (layout.inches(width) - 0.75)
    apart = 0.7 * layout.least_gap(layers) / len(shown) if coincide and roomy else 0.0
    every = 1 if roomy or not coincide else max(1, min(len(shown), len(layers) // 4))
    bounds: dict[str, float] = {}
    energies: list[float] = []
    ranks: list[float] = []
    for k, (adapter, (at, energy, rank, bound)) in enumerate(series.items()):
        look = looks[adapter]
        x = at + apart * (k - (len(shown) - 1) / 2)
        for axes, y, name in ((upper, energy, "energy"), (lower, rank, "effective_rank")):
            axes.plot(x, y, color=look.colour, lw=0.7, alpha=0.5 if roomy else 1.0)
            options = {**layout.line(look), "linestyle": "", "markevery": (k % min(every, len(at)), every)}
            axes.plot(x, y, gid=f"{name}:{adapter}", zorder=3, **options)
        if min(bound) == max(bound):
            bounds[adapter] = bound[0]
        else:
            lower.plot(x, bound, gid=f"bound:{adapter}", color=look.colour, lw=0.6, ls=(0, (4, 2)), zorder=1)
        energies += energy
        ranks += rank + bound
    layout.bound_lines(lower, bounds, looks)
    if layout.spreads(np.array(energies)):
        upper.set_yscale("log")
    else:
        top = max(energies) or 1.0
        upper.set_ylim(-0.03 * top, 1.05 * top)  # room for markers at 0
    layout.rank_axis(lower, max(ranks))
    layout.layer_axis(lower, layers)
    upper.set_ylabel("energy\nΣσ²")
    lower.set_ylabel(style.metric_label("effective_rank", threshold))
    several = any(len(group) > 1 for group in cells.values())
    lower.set_xlabel(f"layer ({layout.plain(projection)} projection{', mean over modules' if several else ''})")
    figure.align_ylabels()
    layout.finish(figure, title, [looks[adapter] for adapter in shown], linestyle="-", linewidth=0.7)
    return figure


@layout.in_style
def spectra(
    table: pd.DataFrame,
    *,
    projection: str | None = None,
    module: str | None = None,
    threshold: float = metrics.THRESHOLD,
    width: str = "neurips",
    title: str | None = None,
) -> Figure:
    """Singular values against their index: median over the modules, and the band from least to largest.

    The axis shows every median above 1e-16 σ₁; smaller values, and 0, lie on its floor. A spectrum ends at the
    rank bound, where a hairline drops to the index axis; an adapter of up to three bounds has a curve for each.

    Parameters
    ----------
    table : the spectra.
    projection, module : show only these.
    threshold : the one to mark.
    width : a venue of :data:`bora_analysis.style.VENUES`.
    """
    data.check_threshold(threshold)
    looks = data.looks_of(table)
    chosen = data.narrowed(data.spectra_of(table), projection=projection, module=module)
    by_adapter = data.grouped(chosen, lambda each: each.adapter)
    shown = [adapter for adapter in looks if adapter in by_adapter]
    stacks = [(adapter, stack) for adapter in shown for stack in data.stacks_by_bound(by_adapter[adapter])]
    floor, ceiling = data.sigma_limits((stack for _, stack in stacks), threshold)

    figure = layout.blank(width, 2.6)
    axes = figure.subplots()
    for adapter, stack in stacks:
        look, bound = looks[adapter], stack.shape[1]
        name = f"{adapter}:{bound}"
        index, median = np.arange(1, bound + 1), np.fmax(np.median(stack, axis=0), floor)
        if len(stack) > 1:
            band = np.fmax(stack.min(axis=0), floor), np.fmax(stack.max(axis=0), floor)
            axes.fill_between(index, *band, color=look.colour, alpha=0.15, lw=0, gid=f"band:{name}")
        options = {**layout.line(look), "markevery": [bound - 1], "clip_on": False}
        axes.plot(index, median, gid=f"median:{name}", **options)
        axes.vlines(bound, floor, median[-1], color=look.colour, lw=0.6, gid=f"bound:{name}")
    axes.set_yscale("log")
    axes.set_ylim(floor, ceiling)
    layout.decades(axes.yaxis, floor, ceiling)
    layout.index_axis(axes, [stack.shape[1] for _, stack in stacks])
    layout.threshold_line(axes, threshold, "y")
    axes.set_xlabel("index of the singular value")
    several = any(len(stack) > 1 for _, stack in stacks)
    axes.set_ylabel("singular value σ" + ("\nmedian and range" if several else ""))
    layout.finish(figure, title, [looks[adapter] for adapter in shown])
    return figure


@layout.in_style
def heatmap(
    table: pd.DataFrame,
    *,
    metric: str = "effective_rank",
    width: str = "neurips",
    title: str | None = None,
) -> Figure:
    """A metric over layers (columns) and projections (rows), one panel per adapter on one colour scale.

    Hatched: no such module, or no value. Column "–": modules without a layer. Several modules of a cell are
    averaged, which the colour bar's label then says. Numbers are written where they fit.

    Parameters
    ----------
    table : the layer metrics.
    metric : any metric column.
    width : a venue of :data:`bora_analysis.style.VENUES`.
    """
    looks = data.looks_of(table)
    values = data.values_of(data.last_steps(table), metric)
    layers = data.layers_in_order(values)
    projections = style.projections_in_order(each.projection for each in values)
    cells = data.grouped(values, lambda each: (each.adapter, each.projection, each.layer))
    grids = {
        adapter: np.array(
            [
                [data.mean(each.value for each in cells.get((adapter, projection, layer), [])) for layer in layers]
                for projection in projections
            ]
        )
        for adapter in looks
    }
    label = style.metric_label(metric, data.threshold_of(table), "  ")
    if any(len(group) > 1 for group in cells.values()):
        label += ", cell mean"
    figure = layout.heat_panels(grids, looks, layers, projections, label, width)
    layout.finish(figure, title, [])
    return figure


@layout.in_style
def threshold_sweep(
    table: pd.DataFrame,
    *,
    projection: str | None = None,
    threshold: float = metrics.THRESHOLD,
    width: str = "neurips",
    title: str | None = None,
) -> Figure:
    """Effective rank against the threshold τ: mean over the modules, and the band from least to largest.

    Parameters
    ----------
    table : the spectra.
    projection : count only its modules.
    threshold : the one to mark.
    width : a venue of :data:`bora_analysis.style.VENUES`.
    """
    data.check_threshold(threshold)
    looks = data.looks_of(table)
    chosen = data.narrowed(data.spectra_of(table), projection=projection)
    by_adapter = data.grouped(chosen, lambda each: each.adapter)
    shown = [adapter for adapter in looks if adapter in by_adapter]
    low, high = data.sigma_limits((data.stacked(group) for group in by_adapter.values()), threshold)
    taus = np.geomspace(low, high, 400)

    figure = layout.blank(width, 2.5)
    axes = figure.subplots()
    top = 1
    for adapter in shown:
        look = looks[adapter]
        counts = np.stack([metrics.effective_rank(each.s, taus) for each in by_adapter[adapter]])
        top = max(top, int(counts.max()))
        if len(counts) > 1:
            band = counts.min(axis=0), counts.max(axis=0)
            axes.fill_between(taus, *band, color=look.colour, alpha=0.15, lw=0, gid=f"band:{adapter}")
        # Dashed lines on top: two adapters of one bound then both show.
        options = {**layout.line(look), "marker": "", "zorder": 3 if look.dash else 2}
        axes.plot(taus, counts.mean(axis=0), gid=f"mean:{adapter}", **options)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    layout.decades(axes.xaxis, low, high)
    layout.rank_axis(axes, top)
    layout.threshold_line(axes, threshold, "x")
    axes.set_xlabel("threshold τ")
    axes.set_ylabel("effective rank #{σ > τ}" + ("\nmean and range" if len(chosen) > len(shown) else ""))
    layout.finish(figure, title, [looks[adapter] for adapter in shown], marker="")
    return figure


@layout.in_style
def trajectory(
    table: pd.DataFrame,
    *,
    metric: str = "entropy_rank",
    projection: str | None = None,
    width: str = "neurips",
    title: str | None = None,
) -> Figure:
    """A metric against the training step.

    One adapter: a thin line per layer (mean over its modules), coloured by depth, and the mean over all modules in
    bold. Several adapters: the mean over all modules, and the band from least to largest layer.

    Parameters
    ----------
    table : the layer metrics, with at least two steps of one adapter. Rows without a step are left out.
    metric : any metric column.
    projection : only its modules.
    width : a venue of :data:`bora_analysis.style.VENUES`.
    """
    looks = data.looks_of(table)
    values = data.narrowed(data.values_of(table, metric), projection=projection)
    values = [each for each in values if each.step is not None]
    by_adapter = data.grouped(values, lambda each: each.adapter)
    shown = [adapter for adapter in looks if adapter in by_adapter]
    steps = {adapter: sorted({each.step or 0 for each in by_adapter[adapter]}) for adapter in shown}
    most = max((len(each) for each in steps.values()), default=0)
    if most < 2:
        raise ValueError("a trajectory needs two or more steps of one adapter, and the table has no such adapter")

    figure = layout.blank(width, 2.4)
    axes = figure.subplots()
    for adapter in shown:
        look, x = looks[adapter], steps[adapter]
        by_step = data.grouped(by_adapter[adapter], lambda each: each.step)
        mean = [data.mean(each.value for each in by_step[step]) for step in x]
        cells = data.grouped(by_adapter[adapter], lambda each: (each.layer, each.step))
        curves = {
            layer: [data.mean(each.value for each in cells.get((layer, step), [])) for step in x]
            for layer in data.layers_in_order(by_adapter[adapter])
        }
        if len(shown) == 1:
            layout.layer_lines(figure, axes, x, curves)
            bold = {"color": "black", "linestyle": "-", "linewidth": 1.8, "markersize": 3.2}
            bold |= {"marker": "o" if most <= 20 else "", "markerfacecolor": "black", "markeredgecolor": "black"}
            axes.plot(x, mean, gid=f"mean:{adapter}", **bold)
            layout.finish(figure, title, [replace(look, label=f"mean of {look.label}")], **bold)
        else:
            stack = np.array(list(curves.values()))
            low, high = np.fmin.reduce(stack), np.fmax.reduce(stack)
            axes.fill_between(x, low, high, color=look.colour, alpha=0.15, lw=0, gid=f"band:{adapter}")
            every = max(1, len(x) // 20)
            axes.plot(x, mean, gid=f"mean:{adapter}", **layout.line(look), markevery=every)
    if len(shown) > 1:
        layout.finish(figure, title, [looks[adapter] for adapter in shown])
    if layout.spreads(np.array([each.value for each in values])):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("training step")
    axes.set_ylabel(style.metric_label(metric, data.threshold_of(table)))
    return figure
