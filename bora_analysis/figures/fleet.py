"""Figures of a fleet: a metric against r, a shared basis, and every adapter beside every other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

from .. import style
from ..metrics import METRICS
from . import drawing as layout
from . import page

#: Up to this many adapters their names stand beside the map.
NAMED = 40
#: Blue below 0, red above: apart under colour blindness, white at 0.
COLOURS = "RdBu_r"


@page.in_style
def fleet_growth(
    points: pd.DataFrame,
    lines: pd.DataFrame,
    *,
    metric: str = "stable_rank",
    width: str = "neurips",
    title: str | None = None,
) -> Figure:
    """A metric against r on logarithmic axes: a point per adapter, a panel per projection, a line per method.

    Parameters
    ----------
    points : one row per adapter and projection: method, projection, r, value.
    lines : method, projection, r_min, r_max, exponent, low, high, factor.
    metric : for the axis.
    """
    if points.empty:
        raise ValueError("nothing to draw: no adapter has an r and the metric")
    panels = style.projections_in_order(points["projection"])[:4]
    looks = {str(name): style.looks([(style.method_look(name).label, name)]) for name in points["method"].unique()}
    figure = page.blank(width, 2.4)
    row: Any = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, projection in zip(row, panels, strict=True):
        told = []
        for method, part in points[points["projection"] == projection].groupby("method"):
            (look,) = looks[str(method)].values()
            options = {**layout.line(look), "linestyle": "none", "alpha": 0.7, "gid": f"points:{projection}:{method}"}
            axes.plot(part["r"], part["value"], **options)
            fits = lines[(lines["projection"] == projection) & (lines["method"] == method)]
            for fit in fits.to_dict("records"):
                ends = np.array([fit["r_min"], fit["r_max"]], dtype=float)
                axes.plot(ends, fit["factor"] * ends ** fit["exponent"], color=look.colour, lw=1, gid=f"fit:{method}")
                known = fit["low"] == fit["low"]
                told.append(
                    f"{look.label} β = {fit['exponent']:.2f}"
                    + (f" ({fit['low']:.2f}, {fit['high']:.2f})" if known else "")
                )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sorted(set(points["r"]))))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_title("\n".join([layout.escaped(str(projection)), *told[:2]]), size=7)
        axes.set_xlabel("r")
    low, high = points["value"].min(), points["value"].max()
    row[0].yaxis.set_major_locator(FixedLocator(_ticks(low, high)))
    row[0].yaxis.set_minor_locator(NullLocator())
    row[0].set_ylabel(METRICS[metric].label if metric in METRICS else metric)
    shown = [look for own in looks.values() for look in own.values()]
    return layout.finish(figure, title, shown, linestyle="none")


@page.in_style
def fleet_map(
    cosine: Any,
    linkage: Any,
    names: Sequence[str],
    *,
    width: str = "neurips",
    title: str | None = None,
) -> Figure:
    """Cosines of all pairs in the order of their dendrogram, which stands above.

    Parameters
    ----------
    cosine : (N, N). linkage : (N − 1, 4), SciPy's. names : (N,), shown for up to ``NAMED`` adapters.

    Raises
    ------
    ValueError
        Fewer than two adapters, or sizes that do not fit together.
    """
    from scipy.cluster.hierarchy import dendrogram

    values = np.asarray(cosine, dtype=np.float64)
    count = len(values)
    if count < 2 or values.shape != (count, count) or len(names) != count or len(linkage) != count - 1:
        raise ValueError(
            f"got cosines {values.shape}, {len(names)} names and a linkage of {len(linkage)} rows; expected (N, N), N "
            "and N − 1, with N of 2 or more"
        )
    tree: Any = dendrogram(linkage, no_plot=True)
    order: list[int] = tree["leaves"]
    inches = page.inches(width)
    figure = page.blank(width, 0.95 * inches)
    above, below = figure.subplots(2, 1, height_ratios=[1, 5], sharex=True)
    for xs, ys in zip(tree["icoord"], tree["dcoord"], strict=True):
        above.plot(np.array(xs) / 10 - 0.5, ys, color="0.25", lw=max(0.25, 0.8 - count / 500), gid="branch")
    above.set_ylabel("1 − cosine", size=7)
    above.set_ylim(0, max(1e-9, float(np.max(linkage[:, 2]))) * 1.05)
    for side in ("top", "right", "bottom"):
        above.spines[side].set_visible(False)
    above.tick_params(bottom=False, labelbottom=False)
    norm = Normalize(-1, 1)
    below.imshow(
        values[np.ix_(order, order)], cmap=COLOURS, norm=norm, aspect="auto", interpolation="nearest", gid="map"
    )
    _names(below, [str(names[k]) for k in order])
    layout.colour_bar(figure, ScalarMappable(norm, COLOURS), [above, below], "cosine", 0.6, 30)
    if title is not None:
        figure.suptitle(layout.escaped(title))
    return figure


@page.in_style
def fleet_basis(kept: pd.DataFrame, *, width: str = "icml", title: str | None = None) -> Figure:
    """What a shared basis keeps of each adapter against its rank: the median, the middle 90 %, the least.

    Parameters
    ----------
    kept : rank, kept: a row per rank and adapter, as in :class:`bora_analysis.fleet.basis.SharedBasis`.
    """
    if kept.empty:
        raise ValueError("nothing to draw: no adapter in the basis")
    figure = page.blank(width, 2.1)
    axes = figure.subplots()
    groups = 100 * kept.groupby("rank")["kept"].quantile(np.array([0, 0.05, 0.5, 0.95])).unstack()
    ranks = groups.index.to_numpy(dtype=float)
    colour = style.method_look("lora").colour
    count = int(kept.groupby("rank").size().iloc[0])
    axes.fill_between(ranks, groups[0.05], groups[0.95], color=colour, alpha=0.2, lw=0, gid="middle", label="5–95 %")
    axes.plot(ranks, groups[0.5], color=colour, lw=1.2, marker="o", ms=3, gid="median", label="median")
    axes.plot(ranks, groups[0.0], color="0.3", lw=0.8, ls="--", gid="least", label="least")
    doubled = [rank for rank in groups.index.tolist() if rank & (rank - 1) == 0]
    layout.doubling_axis(axes, doubled if len(doubled) > 1 else groups.index.tolist())
    axes.set_ylim(0, 103)
    axes.set_xlabel("rank of the shared basis")
    axes.set_ylabel("Σσ² kept, %")
    axes.legend(loc="lower right", title=f"of {count:,} adapters", fontsize=7, title_fontsize=7)
    return layout.finish(figure, title, [])


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.tick_params(length=0)
    if len(names) > NAMED:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"{len(names):,} adapters")
        return
    shown = [layout.escaped(name if len(name) <= 32 else f"{name[:15]}…{name[-16:]}") for name in names]
    size = min(6.5, 260 / len(names) / 1.2)
    axes.set_yticks(range(len(names)), shown, size=size)
    axes.set_xticks([])


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10 … that lie around the values; a few."""
    steps = [x * 10.0**k for k in range(-6, 7) for x in (1, 1.5, 2, 3, 5, 7)]
    inside = [step for step in steps if low * 0.99 <= step <= high * 1.01]
    return inside if len(inside) <= 6 else [step for step in inside if f"{step:g}".strip("0.")[:1] in "125"][:7]
