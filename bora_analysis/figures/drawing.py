"""What figures have in common: axes, ticks, legends, cells, and text that may hold anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, MultipleLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from .. import style
from ..analysis.views import bounds_spread
from . import page

Array = NDArray[Any]

GUIDE = "0.45"  # grey of threshold lines and their labels


def finish(figure: Figure, title: str | None, looks: Sequence[style.Look], **changes: Any) -> Figure:
    """The figure, with a legend above the axes, in as many columns as fit, and the title if there is one.

    ``changes`` are options of the lines in which the figure departs from :func:`line`.
    """
    if looks:
        columns, rows = _columns(looks, figure.get_figwidth() - 0.1)
        if not (isinstance(figure, page.PaperFigure) and figure.high):  # what the legend takes, the axes keep
            figure.set_figheight(figure.get_figheight() + 0.13 * (rows - 1))
        _legend(figure, looks, changes, loc="outside upper center", ncols=columns)
    if title is not None:
        figure.suptitle(escaped(title))
    return figure


def finished(axes: Axes, given: Axes | None, title: str | None, looks: Sequence[style.Look], **changes: Any) -> Figure:
    """The figure of its only axes, with legend and title as :func:`finish` makes them.

    Of axes that the caller gave, both belong to the axes: the legend stands above them and is as wide as they are.
    """
    figure = page.figure_of(axes)
    if given is None:
        return finish(figure, title, looks, **changes)
    columns, rows = _columns(looks, axes.get_window_extent().width / figure.dpi)
    before = axes.get_legend()
    _legend(axes, looks, changes, loc="lower center", bbox_to_anchor=(0.5, 1.0), borderaxespad=1.3, ncols=columns)
    if before is not None:  # a second legend replaces the first
        axes.add_artist(before)
    if title is not None:
        axes.set_title(escaped(title), pad=13 + 10.0 * rows)
    return figure


def _columns(looks: Sequence[style.Look], room: float) -> tuple[int, int]:
    """Columns and rows of a legend in ``room`` inches, the rows of equal length."""
    each = max(text_width(look.label, 7) for look in looks) + 0.42
    rows = -(-len(looks) // int(np.clip(room // each, 1, len(looks))))
    return -(-len(looks) // rows), rows


def _legend(place: Figure | Axes, looks: Sequence[style.Look], changes: Mapping[str, Any], **options: Any) -> None:
    handles = [Line2D([], [], **{**line(look), **(changes if look is not NULL else {})}) for look in looks]
    legend = place.legend(handles, ["·"] * len(looks), **options)
    # Set afterwards: a legend drops labels that begin with an underscore.
    for text, look in zip(legend.get_texts(), looks, strict=True):
        text.set_text(escaped(look.label))


def line(look: style.Look) -> dict[str, Any]:
    """Options of a line in an adapter's look."""
    return {
        "color": look.colour,
        "marker": look.marker,
        "linestyle": (0, look.dash) if look.dash else "-",
        "markerfacecolor": look.colour if look.filled else "white",
        "markeredgecolor": "white" if look.filled else look.colour,
        "markeredgewidth": 0.3 if look.filled else 0.8,
        "markersize": 4 if look.filled else 3.4,
    }


def bound_lines(axes: Axes, bounds: Mapping[str, float], looks: Mapping[str, style.Look]) -> None:
    """A thin dashed line at each adapter's bound; adapters that share a bound take turns in its dashes."""
    sharing: dict[float, list[str]] = {}
    for adapter, bound in bounds.items():
        sharing.setdefault(bound, []).append(adapter)
    for bound, adapters in sharing.items():
        for k, adapter in enumerate(adapters):
            dashes = (-6.0 * k, (4.0, 2.0 + 6.0 * (len(adapters) - 1)))
            axes.axhline(bound, color=looks[adapter].colour, lw=0.6, ls=dashes, zorder=1, gid=f"bound:{adapter}")


def threshold_line(axes: Axes, threshold: float, axis: str) -> None:
    """A dashed line across the axes at a value of the ``"x"`` or ``"y"`` axis, the value written at its end."""
    line = axes.axvline if axis == "x" else axes.axhline
    line(threshold, color=GUIDE, lw=0.6, ls=(0, (4, 2)), zorder=1, gid="threshold")
    options: dict[str, Any] = {"textcoords": "offset points", "size": 7, "color": GUIDE}
    if axis == "x":
        where = {"xy": (threshold, 1), "xycoords": ("data", "axes fraction"), "xytext": (0, 2), "ha": "center"}
    else:
        where = {"xy": (1, threshold), "xycoords": ("axes fraction", "data"), "xytext": (2, 0), "va": "center"}
    axes.annotate(f"{threshold:g}", **where, **options)


#: The legend's line of a null.
NULL = style.Look("null: random factors", style.GREY, "", (1.0, 1.2), True)


def null_band(axes: Axes, x: Any, null: Any, colour: str, name: str) -> None:
    """Mean of a null, dotted, and its range over the draws; columns mean, low, high."""
    axes.fill_between(x, null["low"], null["high"], color=colour, alpha=0.3, lw=0, zorder=1, gid=f"null band:{name}")
    axes.plot(x, null["mean"], color=colour, lw=1.0, ls=(0, NULL.dash), zorder=2, gid=f"null:{name}")


def own_threshold(axes: Axes, limit: float, end: float, colour: str, adapter: str) -> None:
    """A dashed line at the σ that is the threshold for one adapter, as far as its spectrum goes."""
    axes.hlines(limit, 1, end, color=colour, lw=0.8, ls=(0, (4, 2)), zorder=1, gid=f"threshold:{adapter}")


def threshold_text(axes: Axes, text: str) -> None:
    """What the dashed lines are."""
    place: dict[str, Any] = {"xy": (1, 1), "xycoords": "axes fraction", "xytext": (-3, -3), "ha": "right", "va": "top"}
    axes.annotate(f"dashes: {text}", textcoords="offset points", size=7, color=GUIDE, **place)


def rank_axis(axes: Axes, top: float) -> None:
    """The y axis of a count, from 0 to ``top``. Ticks at multiples of a power of two, as most bounds br are."""
    top = max(top, 1.0)
    axes.set_ylim(-0.03 * top, 1.08 * top)
    axes.yaxis.set_major_locator(MultipleLocator(2 ** max(0, int(np.ceil(np.log2(top / 4.5))))))


def layer_axis(axes: Axes, layers: Sequence[int]) -> None:
    """The x axis of layers; a lone tick "–" where no module has one."""
    if not layers:
        axes.set_xticks([0], ["–"])
        layers = [0]
    elif len(layers) == 1:
        axes.set_xticks(layers)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 4, 5, 8, 10]))
    margin = 0.75 * least_gap(layers)
    axes.set_xlim(min(layers) - margin, max(layers) + margin)


def least_gap(layers: Sequence[int]) -> int:
    """Least distance of two layers."""
    return int(np.diff(layers).min()) if len(layers) > 1 else 1


def index_axis(axes: Axes, bounds: Sequence[int]) -> None:
    """The x axis of indices, logarithmic (base 2) where the bounds lie far apart."""
    most = max(bounds)
    if bounds_spread(bounds):
        doubling_axis(axes, 2 ** np.arange(int(np.log2(most)) + 1))
        axes.set_xlim(0.93, most * 1.15)
    else:
        axes.set_xlim(1 - 0.03 * most, 1.03 * most + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 4, 5, 8, 10]))


def doubling_axis(axes: Axes, ticks: Sequence[int] | Array) -> None:
    """The x axis of numbers that double, with these ticks."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def decades(axis: Axis, low: float, high: float) -> None:
    """At most six labelled powers of ten; unlabelled ticks between them where there are few."""
    span = np.log10(high / low)
    axis.set_major_locator(LogLocator(numticks=7))
    axis.set_minor_locator(LogLocator(subs=tuple(range(2, 10)), numticks=99) if span <= 5 else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def parameter_axis(axes: Axes, parameters: Sequence[float]) -> None:
    """A logarithmic axis of counts: 50k, 100k, 200k."""
    low, high = max(1, min(parameters)), max(parameters)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.8, high * 1.8)
    subs = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(LogLocator(subs=tuple(range(2, 10))))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("trained parameters")


def layer_lines(axes: Axes, curves: Mapping[int | None, Any]) -> None:
    """A thin line per layer, coloured by depth, with the colour bar; grey for modules without a layer.

    Parameters
    ----------
    curves : layer → a series, its index the x.
    """
    numbers = [layer for layer in curves if layer is not None]
    low, high = (min(numbers), max(numbers)) if numbers else (0, 0)
    scale = ScalarMappable(Normalize(low, max(high, low + 1)), "viridis")
    for layer, y in curves.items():
        colour = "0.6" if layer is None else scale.to_rgba(np.array(layer))
        axes.plot(y.index, y, color=colour, lw=0.7, gid=f"layer:{'–' if layer is None else layer}")
    if high > low:
        bar = colour_bar(page.figure_of(axes), scale, [axes], "layer", 1.0, 30)
        bar.locator = MaxNLocator(6, integer=True)


def colour_bar(
    figure: Figure, scale: ScalarMappable, axes: list[Axes], label: str, shrink: float, aspect: float, **more: Any
):
    bar = figure.colorbar(scale, ax=axes, pad=0.02, shrink=shrink, aspect=aspect, **more)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(width=0.4, length=2)
    bar.set_label(label, size=7)
    return bar


def deviations(axes: Axes, x: Any, y: Any, spread: Any, colour: str, name: str) -> None:
    """Bars of a standard deviation; none where it is 0."""
    some = np.asarray(spread, dtype=float) > 0
    if some.any():
        x, y, spread = (np.asarray(each, dtype=float)[some] for each in (x, y, spread))
        drawn = axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=colour, elinewidth=0.8, capsize=1.5, capthick=0.8)
        for part in drawn[2]:
            part.set_gid(name)


def sequence(colour: str, nth: int, count: int) -> str:
    """The nth of ``count`` shades of a colour, from light to dark: for what has an order, such as ranks.

    >>> sequence("#D55E00", 0, 3), sequence("#D55E00", 2, 3)
    ('#E8A673', '#552600')
    """
    return style.mixed(colour, 0.45 - 1.05 * nth / (count - 1)) if count > 1 else colour


def apart(values: Sequence[float], gap: float) -> list[float]:
    """Values moved as little as needed so that no two are closer than ``gap``, in their order: places for labels.

    >>> apart([0.0, 1.0, 1.0], 1.0)
    [-0.3333333333333333, 0.6666666666666667, 1.6666666666666667]
    """
    order = np.argsort(values, kind="stable")
    groups: list[tuple[float, int]] = []  # mean of (value − k · gap) over a run of neighbours that touch, their number
    for k, i in enumerate(order):
        mean, count = values[i] - k * gap, 1
        while groups and groups[-1][0] > mean:
            before, size = groups.pop()
            mean, count = (mean * count + before * size) / (count + size), count + size
        groups.append((mean, count))
    places = [mean for mean, count in groups for _ in range(count)]
    out = [0.0] * len(values)
    for k, i in enumerate(order):
        out[i] = float(places[k] + k * gap)
    return out


def text_width(text: str, size: float) -> float:
    """Inches that a text takes."""
    if not text.strip():
        return 0.0
    return float(TextPath((0, 0), escaped(text), size=size).get_extents().width) / 72


def escaped(text: str) -> str:
    """Text without mathematics: two dollar signs in an adapter's name are no formula."""
    return plain(text).replace("$", r"\$")


def plain(text: str) -> str:
    """Text on one line."""
    return " ".join(str(text).split())
