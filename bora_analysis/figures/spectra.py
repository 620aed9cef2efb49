"""Figures of spectra: the singular values, and how many are above a threshold.

In place of its table each takes whatever the tables can be made from: an adapter, a path, several of them. Where a
table holds several steps of an adapter, the last one is shown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import metrics
from ..analysis import views
from ..analysis.groups import Group
from ..threshold import Threshold
from . import data, page
from . import drawing as layout

if TYPE_CHECKING:
    from ..analysis.null import Null


@page.in_style
def spectra(
    table: data.Source,
    *,
    projection: str | None = None,
    module: str | None = None,
    threshold: Threshold | float | str = metrics.THRESHOLD,
    null: bool | Null | None = None,
    band: str | None = None,
    group: Group | None = None,
    width: str = "neurips",
    height: float | None = None,
    font: str | None = None,
    title: str | None = None,
    labels: data.Labels | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Singular values against their index: median over the modules, and a band over them.

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
    band : over the modules, ``"range"`` (least to largest) or ``"quartiles"`` (the middle half).
    group : "seed", for adapters whose names differ in their seed alone, or adapter → group: each is one curve, its
        mean over the members' medians, with their standard deviation.
    width, height, font, title, labels, ax : see :mod:`bora_analysis.figures`.
    """
    table, drawn = data.with_null(table, "spectra", null, None)
    band = data.band_of(band, group)
    given = data.opened(table, "spectra", labels, threshold=threshold, group=group)
    looks, tau = given.looks, Threshold.of(threshold)
    rows = data.narrowed(views.last_steps(given.table), projection=projection, module=module)
    curves: Any = _over_modules(views.curves(rows), given, band)
    limits = views.limits_of(rows.assign(adapter=rows["adapter"].map(given.groups), module=_modules(rows)), tau)
    floor, ceiling = views.sigma_limits(curves["median"], curves["high"], *limits.values())

    axes = page.one_axes(width, 2.6, height, ax)
    for (adapter, bound), curve in curves.groupby(["adapter", "bound"], sort=False):
        look, name = looks[adapter], f"{adapter}:{bound}"
        median, low, high = (np.fmax(curve[column].to_numpy(), floor) for column in ("median", "low", "high"))
        if curve["several"].iloc[0]:
            axes.fill_between(curve["index"], low, high, color=look.colour, alpha=0.15, lw=0, gid=f"band:{name}")
        options = {**layout.line(look), "markevery": [bound - 1], "clip_on": False}
        axes.plot(curve["index"], median, gid=f"median:{name}", **options)
        axes.vlines(bound, floor, median[-1], color=look.colour, lw=0.6, gid=f"bound:{name}")
    if drawn is not None:
        nulls = data.narrowed(views.last_steps(drawn.spectra), projection=projection, module=module)
        nulls = nulls[nulls["adapter"].isin(set(rows["adapter"]))]
        beside: Any = given.means(views.null_curves(nulls), ["bound", "index"], ["mean", "low", "high"])
        for (adapter, bound), null_curve in beside.groupby(["adapter", "bound"], sort=False):
            layout.null_band(axes, null_curve["index"], null_curve, looks[adapter].colour, f"{adapter}:{bound}")
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
    told = given.spread(f"median and {band}") if curves["several"].any() else ""
    axes.set_ylabel("singular value σ" + (f"\n{told}" if told else ""))
    legend = [
        *(looks[adapter] for adapter in curves["adapter"].unique()),
        *([layout.NULL] if drawn is not None else []),
    ]
    return layout.finished(axes, ax, title, legend)


def _modules(rows: Any) -> Any:
    """The modules of each member, told apart."""
    return rows["adapter"].astype(str) + "/" + rows["module"].astype(str)


def _over_modules(curves: Any, given: data.Opened, band: str) -> Any:
    """adapter, bound, index, median, low, high, several: over the modules, or over the members of groups."""
    if not given.grouped:
        low, high = data.BANDS[band]
        ends = {"low": curves[low], "high": curves[high], "several": curves["modules"] > 1}
        return curves[["adapter", "bound", "index", "median"]].assign(**ends)
    found = given.means(curves, ["bound", "index"], ["median"])
    middle, spread = found["median"], found["median_sd"]
    return found.assign(low=middle - spread, high=middle + spread, several=found["members"] > 1)


@page.in_style
def threshold_sweep(
    table: data.Source,
    *,
    projection: str | None = None,
    threshold: Threshold | float | str = metrics.THRESHOLD,
    band: str | None = None,
    group: Group | None = None,
    width: str = "neurips",
    height: float | None = None,
    font: str | None = None,
    title: str | None = None,
    labels: data.Labels | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Effective rank against the threshold τ: mean over the modules, and a band over them.

    Left τ is a number, right a share of each module's σ₁, or of its ‖ΔW‖_F where ``threshold`` is one at equal energy.
    With ``ax`` only the axis of ``threshold`` is drawn.

    Parameters
    ----------
    table : the spectra.
    projection : count only its modules.
    threshold : the one to mark, on the axis that it belongs to.
    band : over the modules, ``"range"`` (least to largest) or ``"quartiles"`` (the middle half).
    group : "seed", for adapters whose names differ in their seed alone, or adapter → group: each is one curve, its
        mean over the members, with their standard deviation.
    width, height, font, title, labels, ax : see :mod:`bora_analysis.figures`.
    """
    band = data.band_of(band, group)
    given = data.opened(table, "spectra", labels, threshold=threshold, group=group)
    tau = Threshold.of(threshold)
    chosen = data.narrowed(views.last_steps(given.table), projection=projection)
    shown = [given.looks[group] for group in dict.fromkeys(chosen["adapter"].map(given.groups))]
    # A number and, whatever is marked, one that does not depend on the scale.
    absolute, free = Threshold(tau.value), Threshold(tau.value, tau.norm is None, tau.norm)
    if ax is not None:
        _sweep(ax, given, chosen, band, absolute if tau.absolute else free, tau)
        return layout.finished(ax, ax, title, shown)
    wide = page.inches(width) > 4
    figure = page.blank(width, 2.5 if wide else 4.4, height)
    panels: Any = figure.subplots(1 if wide else 2, 2 if wide else 1, sharey=True)
    _sweep(panels[0], given, chosen, band, absolute, tau)
    _sweep(panels[1], given, chosen, band, free, tau)
    for axes in panels[1:] if wide else ():
        axes.set_ylabel("")
        axes.tick_params(labelleft=False)
    return layout.finish(figure, title, shown)


def _sweep(axes: Axes, given: data.Opened, chosen: Any, band: str, kind: Threshold, marked: Threshold) -> bool:
    """Counts against thresholds of one kind; whether they have a band."""
    scale = views.limits(chosen, replace(kind, value=1.0))
    chosen = chosen.assign(singular_value=chosen["singular_value"] / scale.where(scale > 0, 1.0))
    curves: Any = views.curves(chosen)
    mark = [marked.value] if marked == replace(kind, value=marked.value) else []
    low, high = views.sigma_limits(curves["median"], curves["largest"], *mark)
    taus = np.geomspace(low, high, 400)
    tops, several = [1], False
    mean_id, band_id = ("mean", "band") if kind.absolute else ("free mean", "free band")
    for nth, group in enumerate(dict.fromkeys(chosen["adapter"].map(given.groups))):
        look, counts = given.looks[group], []
        for _, rows in given.members(chosen, group).groupby("adapter", sort=False):
            modules = rows.groupby("module", sort=False)["singular_value"]
            counts.append(np.stack([metrics.effective_rank(s.to_numpy(float), taus) for _, s in modules]))
        tops.append(max(int(each.max()) for each in counts))
        means = np.stack([each.mean(axis=0) for each in counts])
        mean, ends = means.mean(axis=0), None
        if given.grouped and len(means) > 1:
            spread = means.std(axis=0, ddof=1)
            ends = mean - spread, mean + spread
        elif not given.grouped and len(counts[0]) > 1:
            ends = np.quantile(counts[0], (0, 1) if band == "range" else (0.25, 0.75), axis=0)
        if ends is not None:
            several = True
            axes.fill_between(taus, *ends, color=look.colour, alpha=0.15, lw=0, gid=f"{band_id}:{group}")
        # Dashed lines on top: two adapters of one bound then both show.
        # A few markers, each adapter's elsewhere, tell lines apart that are printed in grey.
        options = {**layout.line(look), "markevery": (0.03 * (nth % 6), 0.2), "zorder": 3 if look.dash else 2}
        axes.plot(taus, mean, gid=f"{mean_id}:{group}", **options)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    layout.decades(axes.xaxis, low, high)
    layout.rank_axis(axes, max(tops))
    if mark:
        layout.threshold_line(axes, mark[0], "x")
    of = "" if kind.absolute else ", share of σ₁" if kind.relative else f", of ΔW at ‖ΔW‖_F = {kind.norm:g}"
    axes.set_xlabel(f"threshold τ{of}")
    axes.set_ylabel("effective rank #{σ > τ}" + (f"\n{given.spread(f'mean and {band}')}" if several else ""))
    return several
