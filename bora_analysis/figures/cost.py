"""Figures of what a rank costs: measured and possible rank against parameters, and the best number of blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from .. import style
from ..analysis import optimal_blocks as blocks_of
from ..analysis import views
from ..catalogue.architectures import architecture
from . import data
from . import drawing as layout


@dataclass(frozen=True)
class Point:
    """One adapter: all its parameters, and means over its modules."""

    adapter: str
    parameters: int
    bound: float
    rank: float


@layout.in_style
def pareto(
    table: data.Source,
    *,
    width: str = "neurips",
    title: str | None = None,
    labels: data.Labels | None = None,
    ax: Axes | None = None,
) -> Figure:
    """What a rank costs: mean rank bound (open) and mean effective rank (filled) against trained parameters.

    Adapters that train about as many parameters stand side by side. Their names stand beside the points where there is
    room for all of them; otherwise numbers do, and the names stand in the legend.

    Parameters
    ----------
    table : the layer metrics, or what they can be made from. ``effective_rank`` is for the threshold in it.
    width, title, labels, ax : see :mod:`bora_analysis.figures`.
    """
    table, looks = data.opened(table, "layer_metrics", labels)
    points = [Point(*row) for row in views.costs(views.last_steps(table)).itertuples(index=False, name=None)]
    axes = layout.one_axes(width, 2.7, ax)
    _parameter_axis(axes, [point.parameters for point in points])
    _rank_axis(axes, [value for point in points for value in (point.bound, point.rank)])
    name, formula = style.metric_label("effective_rank", data.threshold_of(table), "|").split("|")
    kinds = [style.Look("rank bound", style.GREY, "o", (), False)]
    kinds.append(style.Look(f"{name} {formula}", style.GREY, "o", (), True))
    figure = layout.finished(axes, ax, title, kinds, linestyle="")
    names = {point.adapter: looks[point.adapter].label for point in points}
    if not _drawn(axes, points, looks, names, optional=True):
        names = {point.adapter: str(k) for k, point in enumerate(points, 1)}
        adapters = [replace(looks[each], filled=True, label=f"{k}  {looks[each].label}") for each, k in names.items()]
        for legend in (*figure.legends, axes.get_legend()) if ax is None else [axes.get_legend()]:
            if legend is not None:
                legend.remove()
        layout.finished(axes, ax, title, [*kinds, *adapters], linestyle="")
        _drawn(axes, points, looks, names, optional=False)
    return figure


def _drawn(
    axes: Axes, points: list[Point], looks: Mapping[str, style.Look], names: Mapping[str, str], *, optional: bool
) -> bool:
    """Draw the points and their names; where these are optional and have no room, nothing. Whether it was drawn."""
    figure = layout.figure_of(axes)
    # From here on nothing moves: places in points on the page are known.
    figure.draw_without_rendering()
    shifts = _shifts(axes, points)
    boxes = []
    for point in points:
        ends = [_place(axes, point.parameters, y, shifts[point.adapter]) for y in (point.rank, point.bound)]
        boxes.append((*(np.min(ends, axis=0) - 3.5), *(np.max(ends, axis=0) + 3.5)))
    places = _names(axes, points, names, shifts, boxes)
    if None in places and optional:
        return False
    for point, place in zip(points, places, strict=True):
        look, shift = looks[point.adapter], shifts[point.adapter]
        moved = axes.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
        x = [point.parameters] * 2
        axes.plot(x, [point.rank, point.bound], color=look.colour, lw=0.8, transform=moved, zorder=1)
        for kind, y, filled, size in (("bound", point.bound, False, 5.5), ("rank", point.rank, True, 3.6)):
            options = {**layout.line(replace(look, filled=filled)), "markersize": size, "linestyle": ""}
            gid = f"{kind}:{point.adapter}"
            axes.plot(x[:1], [y], gid=gid, transform=moved, zorder=3, clip_on=False, **options)
        if place is None:
            continue
        # From the point and not from the page: axes that a caller gave may move later.
        away = np.array(place) - _place(axes, point.parameters, point.rank)
        options = {"textcoords": "offset points", "size": 6.5, "va": "center", "color": look.colour}
        at = point.parameters, point.rank
        note = axes.annotate(layout.escaped(names[point.adapter]), at, away, annotation_clip=False, **options)
        note.set_in_layout(False)
    return True


def _rank_axis(axes: Axes, ranks: list[float]) -> None:
    if min(ranks) > 0 and max(ranks) / min(ranks) > 16:
        axes.set_yscale("log", base=2)
        axes.set_ylim(min(ranks) / 1.25, max(ranks) * 1.25)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        layout.rank_axis(axes, max(ranks))
    axes.set_ylabel("rank, mean over the modules")


def _parameter_axis(axes: Axes, parameters: list[int]) -> None:
    low, high = max(1, min(parameters)), max(parameters)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.8, high * 1.8)
    subs = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(LogLocator(subs=tuple(range(2, 10))))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("trained parameters")


def _place(axes: Axes, x: float, y: float, shift: float = 0.0) -> Any:
    """Where a point of the axes, moved sideways by ``shift``, lies on the page; in points, as ``shift``."""
    return axes.transData.transform((x, y)) * 72 / layout.figure_of(axes).dpi + np.array((shift, 0.0))


def _shifts(axes: Axes, points: list[Point]) -> dict[str, float]:
    """Adapter → points sideways, so that those of nearly the same parameters and ranks do not cover one another."""
    spans = {}
    for point in points:
        (x, low), (_, high) = (_place(axes, point.parameters, y) for y in sorted((point.rank, point.bound)))
        spans[point.adapter] = x - 3.5, low - 3.5, x + 3.5, high + 3.5
    groups: list[list[str]] = []
    for adapter in sorted(spans, key=lambda each: spans[each][0]):
        touching = [group for group in groups if any(_overlap(spans[adapter], spans[other]) for other in group)]
        groups = [group for group in groups if group not in touching]
        groups.append([*(other for group in touching for other in group), adapter])
    return {adapter: 7.0 * (k - (len(group) - 1) / 2) for group in groups for k, adapter in enumerate(group)}


def _names(
    axes: Axes,
    points: list[Point],
    names: Mapping[str, str],
    shifts: Mapping[str, float],
    boxes: list[tuple[float, ...]],
) -> list[tuple[float, float] | None]:
    """Left middle of each name, beside, above or below its points; None where there is no free place."""
    left, bottom, right, top = np.array(axes.get_window_extent().extents) * 72 / layout.figure_of(axes).dpi
    taken, places = list(boxes), []
    for point in points:
        size, half = 72 * layout.text_width(names[point.adapter], 6.5), 4.0
        rank, bound = (_place(axes, point.parameters, y, shifts[point.adapter]) for y in (point.rank, point.bound))
        candidates = (
            (rank[0] + 5, rank[1]),
            (rank[0] - 5 - size, rank[1]),
            (bound[0] + 5, bound[1]),
            (bound[0] - 5 - size, bound[1]),
            (rank[0] - size / 2, rank[1] - 9),
            (bound[0] - size / 2, bound[1] + 9),
        )
        for x, y in candidates:
            box = x, y - half, x + size, y + half
            inside = left + 2 <= box[0] and box[2] <= right and bottom - 1 <= box[1] and box[3] <= top + 4
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                places.append((x, y))
                break
        else:
            places.append(None)
    return places


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@layout.in_style
def optimal_blocks(
    *, model: str | None = None, width: str = "neurips", title: str | None = None, ax: Axes | None = None
) -> Figure:
    """N(b)/R = (m+n)/b + b, the parameters that BoRA trains per unit of the rank bound R = br (§3.3), against b.

    Diamonds: every b that divides m and n; filled: the best of them, which the legend names. Ring: the paper's
    rule ⌊√n⌋, whether it divides or not. Dashed: where the minima over real b lie, b = √(m+n).

    Parameters
    ----------
    model : a name in :data:`bora_analysis.catalogue.architectures.ARCHITECTURES`: a curve for each shape. By
        default the query projections of the paper's five models.
    width, title, ax : see :mod:`bora_analysis.figures`.
    """
    shapes = _shapes(model)
    axes = layout.one_axes(width, 2.9, ax)
    looks: list[style.Look] = []
    sums: set[int] = set()
    furthest = 4 * max(blocks_of.optimal_blocks(*shape).optimum for shape in shapes.values())
    for nth, (name, (m, n)) in enumerate(shapes.items()):
        found = blocks_of.optimal_blocks(m, n)
        valid = [b for b in found.valid if b <= furthest]
        curve = np.geomspace(1, valid[-1], 200)
        colour = layout.sequence(style.method_look("bora").colour, nth, len(shapes))
        chosen = f"b = {' or '.join(map(str, found.best))}" + (" (tie)" if len(found.best) > 1 else "")
        # Two shapes of one m + n share their curve: the dashes let both show.
        dash = (3.0, 3.0) if m + n in sums else ()
        sums.add(m + n)
        look = style.Look(f"{name}: {chosen}", colour, "D", dash, True)
        looks.append(look)
        line = {**layout.line(look), "marker": "", "linewidth": 0.9}
        axes.plot(curve, (m + n) / curve + curve, zorder=2, gid=f"curve:{name}", **line)
        for kind, blocks in (("valid", valid), ("best", list(found.best))):
            y = [float(found.parameters(b)) for b in blocks]
            best = kind == "best"
            axes.plot(blocks, y, gid=f"{kind}:{name}", zorder=4 if best else 3, **_diamond(colour, best=best))
        if found.paper is not None:
            axes.plot([found.paper], [float(found.parameters(found.paper))], gid=f"rule:{name}", **_RULE, zorder=5)
    layout.doubling_axis(axes, 2 ** np.arange(int(np.log2(furthest * 1.1)) + 1))
    axes.set_xlim(0.9, furthest * 1.1)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    where = np.array([low / 4, high])
    axes.plot(where, 2 * where, gid="optimum", **_OPTIMUM)
    axes.set_ylim(low, high)
    axes.set_xlabel("blocks b")
    axes.set_ylabel("parameters per unit of rank\n(m+n)/b + b")
    marks = _diamond(style.GREY, best=False), _diamond(style.GREY, best=True), _RULE, _OPTIMUM
    key = [Line2D([], [], **mark) for mark in marks]
    axes.legend(key, ["divides m and n", "fewest parameters", "⌊√n⌋", "√(m+n)"], loc="upper right", fontsize=6.5)
    return layout.finished(axes, ax, title, looks, linewidth=0.9)


_RULE: dict[str, Any] = {
    "color": "black",
    "marker": "o",
    "linestyle": "",
    "markersize": 7,
    "markerfacecolor": "none",
    "markeredgewidth": 0.7,
}
_OPTIMUM: dict[str, Any] = {"color": layout.GUIDE, "lw": 0.6, "ls": (0, (4, 2)), "zorder": 1}


def _diamond(colour: str, *, best: bool) -> dict[str, Any]:
    look = style.Look("", colour, "D", (), filled=best)
    return {**layout.line(look), "linestyle": "", "markersize": 5.0 if best else 2.6}


def _shapes(model: str | None) -> dict[str, tuple[int, int]]:
    """Label → (m, n), the smallest first."""
    if model is None:
        known = {label: architecture(name).projections["q"][1:] for name, label in style.MODELS.items()}
        shapes = {f"{label} {m}×{n}": (m, n) for label, (m, n) in known.items()}
    else:
        by_shape: dict[tuple[int, int], list[str]] = {}
        for projection, (_, m, n) in architecture(model).projections.items():
            by_shape.setdefault((m, n), []).append(projection)
        shapes = {f"{', '.join(names)} {m}×{n}": (m, n) for (m, n), names in by_shape.items()}
    return dict(sorted(shapes.items(), key=lambda item: sum(item[1])))
