"""Figures of what a rank costs: measured and possible rank against parameters, and the best number of blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from .. import style
from ..analysis import optimal_blocks as blocks_of
from ..analysis import views
from ..analysis.groups import Group
from ..catalogue.architectures import architecture
from . import data, page
from . import drawing as layout


@dataclass(frozen=True)
class Point:
    """One adapter: all its parameters, and means over its modules; or its outcome, as both."""

    adapter: str
    parameters: float
    bound: float
    rank: float
    spread: float = 0.0


@page.in_style
def pareto(
    table: data.Source,
    *,
    y: str | None = None,
    outcome: Any = None,
    lower: bool | None = None,
    group: Group | None = None,
    width: str = "neurips",
    height: float | None = None,
    font: str | None = None,
    title: str | None = None,
    labels: data.Labels | None = None,
    ax: Axes | None = None,
) -> Figure:
    """What a rank costs: mean rank bound (open) and mean effective rank (filled) against trained parameters.

    With ``y`` and ``outcome``: what the parameters bring, such as accuracy, and its Pareto front, the adapters that no
    other one with at most as many parameters reaches. A rank is no outcome and has no front.

    Every point stands at its numbers. Adapters at one place have one name for all. The names stand beside the points
    where there is room for all of them; otherwise numbers do, and the names stand in the legend.

    Parameters
    ----------
    table : the layer metrics, or what they can be made from. ``effective_rank`` is for the threshold in it.
    y : a column of ``outcome``.
    outcome : a frame, or a CSV or JSON file, with the columns ``adapter`` and ``y``. Several rows of an adapter (seeds)
        give their mean, and a line from the lowest to the highest.
    lower : whether lower values are better, as for a perplexity.
    group : "seed", for adapters whose names differ in their seed alone, or adapter → group: each is one point, its mean
        over the members, with a bar of their standard deviation; ``outcome`` has the members' or the groups' names.
    width, height, font, title, labels, ax : see :mod:`bora_analysis.figures`.
    """
    given = data.opened(table, "layer_metrics", labels, group=group)
    table, looks = given.table, given.looks
    costs = given.means(views.costs(views.last_steps(table)), [], ["parameters", "rank_bound", "effective_rank"])
    columns = ("adapter", "parameters", "rank_bound", "effective_rank", "effective_rank_sd")
    points = [Point(*row) for row in zip(*(costs[name].tolist() for name in columns), strict=True)]
    values = data.outcomes(outcome, y, [point.adapter for point in points], given.groups)
    axes = page.one_axes(width, 2.7, height, ax)
    layout.parameter_axis(axes, [point.parameters for point in points])
    if values is None:
        _rank_axis(axes, [value for point in points for value in (point.bound, point.rank)])
        name, formula = style.metric_label("effective_rank", data.threshold_of(table), "|").split("|")
        kinds = [style.Look("rank bound", style.GREY, "o", (), False)]
        told = ", mean ± sd over seeds" if given.grouped else ""
        kinds.append(style.Look(f"{name} {formula}{told}", style.GREY, "o", (), True))
    else:
        means = values.mean()
        points = [replace(each, bound=means[each.adapter], rank=means[each.adapter], spread=0.0) for each in points]
        line = "standard deviation" if given.grouped else "lowest to highest"
        spread = style.Look(f"mean {y}; line: {line}", style.GREY, "o", (), True)
        kinds = [spread] if (values.size() > 1).any() else []
        _outcome_axis(axes, points, values, str(y), bool(lower), given.grouped)
    figure = layout.finished(axes, ax, title, kinds, linestyle="")
    names = {point.adapter: looks[point.adapter].label for point in points}
    outcome = values is not None
    if not _drawn(axes, points, looks, names, outcome, optional=True):
        names = {point.adapter: str(k) for k, point in enumerate(points, 1)}
        adapters = [replace(looks[each], filled=True, label=f"{k}  {looks[each].label}") for each, k in names.items()]
        for legend in (*figure.legends, axes.get_legend()) if ax is None else [axes.get_legend()]:
            if legend is not None:
                legend.remove()
        layout.finished(axes, ax, title, [*kinds, *adapters], linestyle="")
        _drawn(axes, points, looks, names, outcome, optional=False)
    return figure


def _drawn(
    axes: Axes,
    points: list[Point],
    looks: Mapping[str, style.Look],
    names: Mapping[str, str],
    outcome: bool,
    *,
    optional: bool,
) -> bool:
    """Draw the points and their names; where these are optional and have no room, nothing. Whether it was drawn."""
    # From here on nothing moves: places in points on the page are known.
    page.figure_of(axes).draw_without_rendering()
    groups = _groups(axes, points)
    texts = [", ".join(names[point.adapter] for point in group) for group in groups]
    places = _names(axes, points, groups, texts)
    if None in places and optional:
        return False
    for point in points:
        look = looks[point.adapter]
        axes.plot([point.parameters] * 2, [point.rank, point.bound], color=look.colour, lw=0.8, zorder=1)
        x, y, spread = ([each] for each in (point.parameters, point.rank, point.spread))
        layout.deviations(axes, x, y, spread, look.colour, f"sd:{point.adapter}")
        ranks = [("bound", point.bound, False, 5.5), ("rank", point.rank, True, 3.6)]
        for kind, y, filled, size in [("outcome", point.rank, True, 5.0)] if outcome else ranks:
            options = {**layout.line(replace(look, filled=filled)), "markersize": size, "linestyle": ""}
            axes.plot([point.parameters], [y], gid=f"{kind}:{point.adapter}", zorder=3, clip_on=False, **options)
    for (point, *_), text, place in zip(groups, texts, places, strict=True):
        if place is None:
            continue
        # From the point and not from the page: axes that a caller gave may move later.
        away = np.array(place) - _place(axes, point.parameters, point.rank)
        options = {"textcoords": "offset points", "size": 6.5, "va": "center", "color": looks[point.adapter].colour}
        options["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
        if abs(away[1]) > 12 and point.rank == point.bound:
            side = float(np.clip(-away[0] / (72 * layout.text_width(text, 6.5)), 0, 1)), float(away[1] < 0)
            line = {"arrowstyle": "-", "lw": 0.4, "color": style.GREY, "shrinkA": 0, "shrinkB": 3}
            options["arrowprops"] = line | {"relpos": side}
        at = point.parameters, point.rank
        note = axes.annotate(layout.escaped(text), at, away, annotation_clip=False, **options)
        note.set_in_layout(False)
    return True


def _outcome_axis(axes: Axes, points: list[Point], values: Any, y: str, lower: bool, grouped: bool) -> None:
    """The axis of an outcome, how far its values spread, and the front."""
    for point in points:
        own = values.get_group(point.adapter)
        ends = (own.mean() - own.std(), own.mean() + own.std()) if grouped else (own.min(), own.max())
        spread = {"color": style.GREY, "lw": 0.7, "zorder": 1, "gid": f"spread:{point.adapter}"}
        axes.plot([point.parameters] * 2, ends, **spread)
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.parameters, each.rank if lower else -each.rank)):
        if not front or (point.rank < front[-1].rank if lower else point.rank > front[-1].rank):
            front.append(point)
    x, level = [point.parameters for point in front], [point.rank for point in front]
    x = [*x, axes.get_xlim()[1]]
    axes.step(x, [*level, level[-1]], where="post", color="0.6", lw=0.8, ls=(0, (4, 2)), zorder=0, gid="front")
    axes.margins(y=0.15)
    axes.set_ylabel(layout.escaped(f"{y}\n(dashed: Pareto front)"))


def _rank_axis(axes: Axes, ranks: list[float]) -> None:
    if views.ranks_spread(ranks):
        axes.set_yscale("log", base=2)
        axes.set_ylim(min(ranks) / 1.25, max(ranks) * 1.25)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        layout.rank_axis(axes, max(ranks))
    axes.set_ylabel("rank, mean over the modules")


def _place(axes: Axes, x: float, y: float) -> Any:
    """Where a point of the axes lies on the page, in points."""
    return axes.transData.transform((x, y)) * 72 / page.figure_of(axes).dpi


def _groups(axes: Axes, points: list[Point]) -> list[list[Point]]:
    """Adapters whose points lie on one another: both are less than half a marker apart."""

    def ends(point: Point) -> Any:
        return np.concatenate([_place(axes, point.parameters, y) for y in (point.rank, point.bound)])

    groups: list[list[Point]] = []
    for point in points:
        for group in groups:
            if np.abs(ends(point) - ends(group[0])).max() < 2.5:
                group.append(point)
                break
        else:
            groups.append([point])
    return groups


def _names(
    axes: Axes, points: list[Point], groups: list[list[Point]], texts: list[str]
) -> list[tuple[float, float] | None]:
    """Left middle of the name of each group, beside, above or below its points; None where there is no free place."""
    left, bottom, right, top = np.array(axes.get_window_extent().extents) * 72 / page.figure_of(axes).dpi
    taken, places = [], []
    for point in points:
        ends = [_place(axes, point.parameters, y) for y in (point.rank, point.bound)]
        taken.append((*(np.min(ends, axis=0) - 3.5), *(np.max(ends, axis=0) + 3.5)))
    for (point, *_), text in zip(groups, texts, strict=True):
        size, half = 72 * layout.text_width(text, 6.5), 4.0
        rank, bound = (_place(axes, point.parameters, y) for y in (point.rank, point.bound))
        candidates = [(x, end[1]) for end in (rank, bound) for x in (end[0] + 5, end[0] - 5 - size)]
        for away in (9, 17, 25):  # further ones have a line to their point
            candidates += [(rank[0] - size * k, rank[1] - away) for k in (0.5, 0, 1)]
            candidates += [(bound[0] - size * k, bound[1] + away) for k in (0.5, 0, 1)]
            if point.rank != point.bound:
                break
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


@page.in_style
def optimal_blocks(
    *,
    model: str | None = None,
    width: str = "neurips",
    height: float | None = None,
    font: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Which number of blocks b is cheapest: parameters that BoRA trains per unit of the rank bound R = br, against b.

    One m×n matrix takes N(b) = (m+n)r + b²r parameters, so that N(b)/R = (m+n)/b + b (§3.3): few blocks need a large r
    for the same bound, many make Σ large. Lower is cheaper; at another r the curve is the same.

    Open markers, of another kind for each curve: every b that divides m and n, and so can be trained; filled: the best
    of them, which the legend names.
    Ring: the paper's rule ⌊√n⌋, whether it divides or not. Dashed: where the minima over real b lie, b = √(m+n).

    Parameters
    ----------
    model : a name in :data:`bora_analysis.catalogue.architectures.ARCHITECTURES`: a curve for each shape. By
        default the query projections of the paper's five models.
    width, height, font, title, ax : see :mod:`bora_analysis.figures`.
    """
    shapes = _shapes(model)
    axes = page.one_axes(width, 3.15, height, ax)
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
        marker = style.MARKERS[nth % len(style.MARKERS)]
        look = style.Look(f"{name}: {chosen}", colour, marker, dash, True)
        looks.append(look)
        line = {**layout.line(look), "marker": "", "linewidth": 0.9}
        axes.plot(curve, (m + n) / curve + curve, zorder=2, gid=f"curve:{name}", **line)
        for kind, blocks in (("valid", valid), ("best", list(found.best))):
            y = [float(found.parameters(b)) for b in blocks]
            best = kind == "best"
            axes.plot(blocks, y, gid=f"{kind}:{name}", zorder=4 if best else 3, **_mark(colour, marker, best=best))
        if found.paper is not None:
            axes.plot([found.paper], [float(found.parameters(found.paper))], gid=f"rule:{name}", **_RULE, zorder=5)
    layout.doubling_axis(axes, 2 ** np.arange(int(np.log2(furthest * 1.1)) + 1))
    axes.set_xlim(0.9, furthest * 1.1)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    where = np.array([low / 4, high])
    axes.plot(where, 2 * where, gid="optimum", **_OPTIMUM)
    axes.set_ylim(low, high)
    axes.set_xlabel("blocks b\nlower is cheaper: rank bound R = br\ntakes R times this in each matrix")
    axes.set_ylabel("parameters per unit of rank\n(m+n)/b + b")
    marks = *(_mark(style.GREY, "D", best=best) for best in (False, True)), _RULE, _OPTIMUM
    words = [
        "open: b that divides m and n",
        "filled: the cheapest of them",
        "the paper's rule ⌊√n⌋",
        "least over real b: √(m+n)",
    ]
    key = [Line2D([], [], **mark) for mark in marks]
    axes.legend(
        key,
        words,
        loc="upper right",
        fontsize=6.5,
    )
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


def _mark(colour: str, marker: str, *, best: bool) -> dict[str, Any]:
    look = style.Look("", colour, marker, (), filled=best)
    return {**layout.line(look), "linestyle": "", "markersize": 5.0 if best else 3.0}


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
