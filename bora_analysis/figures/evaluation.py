"""What the task loses: a metric against the directions kept, and against the rank that runs were measured to have."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from .. import style
from ..analysis.groups import Group, groups_of
from . import data, page
from . import drawing as layout

_WHOLE = "all"  # as in analysis.keeping


@page.in_style
def accuracy_by_rank(
    table: Any,
    *,
    metric: str | None = None,
    order: str = "largest",
    group: Group | None = None,
    labels: data.Labels | None = None,
    width: str = "neurips",
    height: float | None = None,
    font: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """The metric of the held-out examples against the directions of each ΔW that are kept, one line an adapter.

    Bands are the intervals of the table; of a random order, the least and the most of its draws. A line ends with ΔW
    whole, at the mean rank of its modules.

    Parameters
    ----------
    table : of :func:`bora_analysis.evaluate`, or the csv, json or parquet file of ``bora-analysis evaluate``.
    metric : a metric of the table, by default its first.
    order : ``"largest"``, ``"smallest"``, ``"random"``, or ``"energy"`` (shares of Σσ²).
    group : "seed", for adapters whose names differ in their seed alone, or adapter → group: each is one line, its mean
        over the members, with their standard deviation in place of the intervals.
    labels, width, height, font, title, ax : see :mod:`bora_analysis.figures`.
    """
    frame = data.table_of(
        table, "evaluate", ("adapter", "step", "method", "keep", "order", "rank", "metric", "value", "low", "high")
    )
    rows = _chosen(frame, "metric", metric or str(frame["metric"].iloc[0]))
    orders = list(dict.fromkeys(rows["order"]))
    # Nothing and all of ΔW belong to every order.
    keep = rows["keep"].astype(str)
    rows = rows[(rows["order"] == order) | keep.isin(["0", _WHOLE])]
    if set(rows["keep"].astype(str)) <= {"0", _WHOLE}:
        raise ValueError(f"the table has no cuts by order {order!r}; it has {', '.join(map(str, orders))}")
    named = [
        name if pd.isna(step) else f"{name} step {step}"
        for name, step in zip(rows["adapter"], rows["step"], strict=True)
    ]
    groups = groups_of(named, group)
    rows = rows.assign(adapter=[groups[name] for name in named], member=named)
    looks = style.looks(zip(rows["adapter"], rows["method"], strict=True))
    alpha = min(0.12, 0.5 / len(looks))  # many bands would cover the lines
    axes = page.one_axes(width, 3.2, height, ax)
    shown = [_relabelled(looks, name, label) for name, label in data.relabelled(looks, labels).items()]
    looks |= dict(shown)
    for name, part in rows.groupby("adapter", sort=False):
        look = looks[str(name)]
        curve = part.groupby("keep").agg(
            rank=("rank", "mean"), value=("value", "mean"), least=("value", "min"), most=("value", "max"),
            low=("low", "min"), high=("high", "max"), draws=("value", "size"),
        ).sort_values("rank", kind="stable")  # fmt: skip
        drawn = curve["draws"] > 1
        low, high = curve["low"].where(~drawn, curve["least"]), curve["high"].where(~drawn, curve["most"])
        if group is not None:
            members = part.groupby(["keep", "member"])["value"].mean().groupby("keep")
            curve["value"], spread = members.mean(), members.std().fillna(0.0)
            low, high = curve["value"] - spread, curve["value"] + spread
        axes.fill_between(curve["rank"], low, high, color=look.colour, alpha=alpha, lw=0, gid=f"band:{name}")
        axes.plot(curve["rank"], curve["value"], gid=f"line:{name}", **{**layout.line(look), "clip_on": False})
    _kept_axis(axes, float(rows["rank"].max()))
    words = {"largest": "largest directions", "energy": "directions that hold a share of Σσ²"}
    axes.set_xlabel(f"{words.get(order, f'{order} directions')} kept of each ΔW (last point: all)")
    axes.set_ylabel(str(rows["metric"].iloc[0]) + ("\nmean ± sd over seeds" if group is not None else ""))
    return layout.finished(axes, ax, title, [*looks.values()])


@page.in_style
def accuracy_by_measured_rank(
    runs: Any,
    *,
    metric: str = "effective_rank",
    y: str | None = None,
    labels: data.Labels | None = None,
    width: str = "neurips",
    height: float | None = None,
    font: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """The metric that each run reached against the rank that its ΔW was measured to have, mean over the modules.

    One point for the runs that differ in their seed alone, with bars of their standard deviations; small points are the
    runs themselves.

    Parameters
    ----------
    runs : of :func:`bora_analysis.analysis.runs.run_table`, or folders with runs.
    metric : a rank, or another column of the metrics.
    y : which metric of the runs, where they have several.
    labels : group → label, or in their order.
    width, height, font, title, ax : see :mod:`bora_analysis.figures`.
    """
    if isinstance(runs, pd.DataFrame):
        frame = data.table_of(runs, "evaluate", ("group", "method", "outcome", "value"))
    else:
        from ..analysis.runs import run_table

        frame = run_table(runs)
    known = list(dict.fromkeys(frame["outcome"]))
    if y is None and len(known) > 1:
        raise ValueError(f"the runs were measured by {' and '.join(known)}; name one as y (--y)")
    frame = _chosen(frame, "outcome", y or str(known[0]))
    if metric not in frame or not pd.api.types.is_numeric_dtype(frame[metric]):
        raise ValueError(f"the runs have no numbers {metric!r}; there are effective_rank, entropy_rank, stable_rank …")
    axes = page.one_axes(width, 3.2, height, ax)
    looks = style.looks(zip(frame["group"], frame["method"], strict=True))
    looks |= dict(_relabelled(looks, name, label) for name, label in data.relabelled(looks, labels).items())
    for name, part in frame.groupby("group", sort=False):
        look = looks[str(name)]
        x, each = part[metric], part["value"]
        options = {**layout.line(look), "linestyle": ""}
        if len(part) > 1:
            axes.errorbar(
                x.mean(), each.mean(), xerr=x.std(), yerr=each.std(), color=look.colour, lw=0.8, capsize=1.5, fmt="none"
            )
            axes.plot(x, each, **{**options, "markersize": 1.8, "alpha": 0.6}, gid=f"runs:{name}")
        axes.plot([x.mean()], [each.mean()], gid=f"group:{name}", **options)
    if (frame[metric] > 0).all() and frame[metric].max() > 8 * frame[metric].min():
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(f"{metric.replace('_', ' ')}, mean over the modules")
    axes.set_ylabel(str(frame["outcome"].iloc[0]))
    return layout.finished(axes, ax, title, [*looks.values()], linestyle="")


def _chosen(frame: pd.DataFrame, column: str, wanted: str) -> Any:
    known = list(dict.fromkeys(map(str, frame[column])))
    if wanted not in known:
        raise ValueError(f"the table has no {column} {wanted!r}; it has {', '.join(known)}")
    return frame[frame[column] == wanted]


def _relabelled(looks: Any, name: str, label: str) -> tuple[str, style.Look]:
    from dataclasses import replace

    return name, replace(looks[name], label=label)


def _kept_axis(axes: Axes, top: float) -> None:
    """0, then doublings at equal distances."""
    axes.set_xscale("symlog", base=2, linthresh=1, linscale=1)
    ticks = [0.0, 1.0]
    while ticks[-1] * 2 <= top * 1.01:
        ticks.append(ticks[-1] * 2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlim(-0.08, top * 1.15)
