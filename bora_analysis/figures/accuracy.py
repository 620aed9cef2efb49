"""Figure 3: ablations, ranks and blocks, tuning granularity, from the paper's tables."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .. import style
from . import drawing as layout
from . import page
from .own_runs import own_panels

_BORA, _LORA = style.method_look("bora"), style.method_look("lora")
# Method in table 7 → its look: BoRA's colour; the ablations open, with markers of their own.
_ABLATIONS = {
    "bora": style.Look("BoRA", _BORA.colour, _BORA.marker, (), True),
    "bora-no-exp": style.Look("BoRA w.o. Exp", style.shade(_BORA.colour, 2), "^", (), False),
    "bora-no-norm": style.Look("BoRA w.o. Norm", style.shade(_BORA.colour, 1), "v", (), False),
}
_LORA_LOOK = style.Look("LoRA", _LORA.colour, _LORA.marker, (), True)


@page.in_style
def figure3(
    accuracy: Any,
    *,
    y: str | None = None,
    paper: pd.DataFrame | None = None,
    width: str = "neurips",
    height: float | None = None,
    font: str | None = None,
    title: str | None = None,
) -> Figure:
    """Average accuracy on mathematical reasoning, as figure 3 of BoRA (arXiv 2508.06953), from its tables 7, 9 and 8.

    (a) BoRA without the exponential or the normalisation, per model. (b) BoRA over b, a line and a marker per r;
    dashed, with that marker open at the left end, LoRA of that r. (c) LoRA and BoRA over the adapted projections. No
    axis begins at 0, so nothing is drawn as a bar. Of your own runs the panels that they have something for: means over
    the seeds, with standard deviations, and how many runs of an experiment are missing.

    Parameters
    ----------
    accuracy : rows of the paper's tables; columns table, model, method, r, blocks, target, task, value, of which the
        rows with the task "Avg" are drawn. Or your own: folders with runs of ``bora-analysis train`` or
        ``experiment``, or a frame or CSV file, such as an experiment's ``runs.csv``, with the columns method (lora,
        bora, bora-no-exp, bora-no-norm), r, blocks, target and value, and where they differ model and seed.
    y : which metric of the runs, where they have several.
    paper : the paper's tables, of which the same panels are drawn above those of your runs.
    width, height, font, title : see :mod:`bora_analysis.figures`; on a narrow page the panels stand one above the
        other.
    """
    ours = not (isinstance(accuracy, pd.DataFrame) and "table" in accuracy)
    below = ""
    if not ours:
        rows = [_Row("", _PAPER_LABEL, _of_paper(accuracy))]
    else:
        own = own_panels(accuracy, y)
        rows = [_Row("", own.label, own.panels)]
        if paper is not None:
            rows = [_Row("", "accuracy in the paper (%)", _of_paper(paper)), _Row("own runs", own.label, own.panels)]
        model = (
            f"own runs: {layout.escaped(*style.shortened([own.model], 40))}" if paper is not None and own.model else ""
        )
        below = ", ".join(filter(None, [model, own.absent]))
    kept = [k for k in range(len(_PANELS)) if rows[-1].averages[k] is not None]
    narrow = page.inches(width) < 4.5
    shares = [_PANELS[k].tall if narrow else _PANELS[k].wide for k in kept]
    high = 0.3 + 1.7 * sum(shares) * len(rows) if narrow else 2.35 * len(rows)
    figure = page.blank(width, high, height)
    if narrow:  # a panel of the paper above one's own
        heights = [share for share in shares for _ in rows]
        grid = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False).reshape(len(kept), len(rows)).T
    else:
        grid = figure.subplots(len(rows), len(kept), width_ratios=shares, squeeze=False)
    methods: set[str] = set()
    for of_row, row in zip(grid, rows, strict=True):
        for axes, k, letter in zip(of_row, kept, "abc", strict=False):
            panel = _PANELS[k]
            panel.draw(axes, row.averages[k], row.label)
            axes.set_title(f"({letter}) {row.head or panel.head}", size=8, loc="left")
            if not narrow and panel.draw is _targets:
                for tick in axes.get_xticklabels():
                    tick.set(rotation=35, ha="right", rotation_mode="anchor")
            methods |= set(row.averages[k]["method"])
    if below:
        figure.supxlabel(below, size=7)
    looks = {"lora": _LORA_LOOK, **_ABLATIONS}
    return layout.finish(figure, title, [look for method, look in looks.items() if method in methods], linestyle="")


class _Row(NamedTuple):
    """What the panels of a row have as their head in place of their own, their metric, and their rows."""

    head: str
    label: str
    averages: list[Any]


_PAPER_LABEL = "accuracy (%)"


def _of_paper(accuracy: Any) -> list[Any]:
    return [_averages(accuracy, table) for table in (7, 9, 8)]


def _averages(accuracy: Any, table: int) -> Any:
    if accuracy.empty:
        raise ValueError("nothing to draw: the table has no rows")
    rows = accuracy[(accuracy["table"] == table) & (accuracy["task"] == "Avg")]
    if rows.empty:
        raise ValueError(f"figure3 is drawn from the Avg rows of the paper's tables 7, 8 and 9; table {table} has none")
    return rows


def _ablations(axes: Axes, rows: Any, label: str) -> None:
    models = list(dict.fromkeys(rows["model"]))
    digits = 2 if rows["value"].abs().max() > 2 else 4
    spread = rows["sd"] if "sd" in rows and (rows["sd"] > 0).any() else None
    middle = (len(_ABLATIONS) - 1) / 2
    for nth, (method, look) in enumerate(_ABLATIONS.items()):
        mine = rows[rows["method"] == method].set_index("model")["value"]
        if mine.empty:
            continue
        y = [models.index(model) * (len(_ABLATIONS) + 1) + nth for model in mine.index]
        axes.plot(mine.to_numpy(), y, gid=f"a:{method}", **{**layout.line(look), "linestyle": "", "clip_on": False})
        for x, at in zip(mine, y, strict=True):
            text: dict[str, Any] = {"textcoords": "offset points", "size": 6}
            beside = {"xytext": (4, 0), "va": "center_baseline"}
            above = {"xytext": (0, 4), "va": "bottom", "ha": "center"}  # a bar would go through a text beside it
            axes.annotate(f"{x:.{digits}f}", (x, at), **text, **(beside if spread is None else above))
        _bars(axes, mine, y, rows[rows["method"] == method], look.colour, "x")
    centres = [k * (len(_ABLATIONS) + 1) + middle for k in range(len(models))]
    names = [style.MODELS.get(str(model), str(model).rpartition("/")[2]) for model in models]
    names = [layout.escaped(name) for name in style.shortened(names, 16)] if len(names) > 1 else [""]
    axes.set_yticks(centres, names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(centres[-1] + middle + 0.7, centres[0] - middle - 0.7)
    for before, after in pairwise(centres):
        axes.axhline((before + after) / 2, color="0.85", lw=0.5)
    aside = 0.0 if spread is None else spread
    low, high = (rows["value"] - aside).min(), (rows["value"] + aside).max()
    room = (high - low) or 1.0
    axes.set_xlim(low - 0.06 * room, high + (0.42 if spread is None else 0.06) * room)
    axes.xaxis.set_major_locator(MaxNLocator(5 if digits == 2 else 3, steps=[1, 2, 5, 10]))
    axes.set_xlabel(label)


def _blocks(axes: Axes, rows: Any, label: str) -> None:
    ranks = sorted(rows["r"].unique())
    low, high = rows["value"].min(), rows["value"].max()
    room = (high - low) or 1.0
    shades = [layout.sequence(_BORA.colour, k, len(ranks)) for k in range(len(ranks))]
    blocks = sorted(rows[rows["method"] == "bora"]["blocks"].unique())
    left = blocks[0] / 1.25
    ends = []
    for nth, (r, colour) in enumerate(zip(ranks, shades, strict=True)):
        mine = rows[(rows["r"] == r) & (rows["method"] == "bora")].sort_values("blocks")
        if mine.empty:
            continue
        marker = style.MARKERS[nth % len(style.MARKERS)]
        look = style.Look("", colour, marker, (), True)
        axes.plot(mine["blocks"], mine["value"], gid=f"b:{r}", **{**layout.line(look), "markersize": 3.2})
        hollow = {**layout.line(style.Look("", colour, marker, (), False)), "markersize": 3.2, "clip_on": False}
        lora = rows[(rows["r"] == r) & (rows["method"] == "lora")]["value"]
        for level in lora:
            axes.axhline(level, color=colour, lw=0.7, ls=(0, (4, 2)), zorder=1, gid=f"b:lora:{r}")
            axes.plot([left], [level], gid=f"b:lora:mark:{r}", **hollow)
        _bars(axes, mine["blocks"], mine["value"], mine, colour, "y")
        ends.append((r, colour, mine["blocks"].iloc[-1], mine["value"].iloc[-1]))
    layout.doubling_axis(axes, blocks)
    axes.set_xlim(left, blocks[-1] * 1.25)
    if "sd" not in rows:
        axes.set_ylim(low - 0.05 * room, high + 0.05 * room)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    # Each at the end of its line; where two would touch, moved up or down, with a hairline to its line.
    for (r, colour, last, end), at in zip(ends, layout.apart([end[3] for end in ends], 0.085 * room), strict=True):
        x = blocks[-1] * 1.42
        axes.plot([last * 1.06, x * 0.97], [end, at], color=colour, lw=0.5, clip_on=False, gid=f"b:end:{r}")
        axes.text(x, at, f"r = {r}", size=6, color=colour, va="center_baseline", gid=f"b:label:{r}")
    dashed = "\n(dashed: LoRA of the same r)" if (rows["method"] == "lora").any() else ""
    axes.set_xlabel(f"blocks b{dashed}")
    axes.set_ylabel(label)


def _targets(axes: Axes, rows: Any, label: str) -> None:
    targets = list(dict.fromkeys(rows["target"]))
    aside = 0.05 if "sd" in rows else 0.0  # so that no bar hides the other
    for method, look, shift in (("lora", _LORA_LOOK, -aside), ("bora", _ABLATIONS["bora"], aside)):
        mine = rows[rows["method"] == method]
        if mine.empty:
            continue
        at = [targets.index(target) + shift for target in mine["target"]]  # ascending, as the rows are
        axes.plot(at, mine["value"], gid=f"c:{method}", **{**layout.line(look), "linewidth": 0.7})
        _bars(axes, at, mine["value"], mine, look.colour, "y")
    axes.set_xticks(range(len(targets)), targets)
    axes.set_xlim(-0.4, len(targets) - 0.6)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_ylabel(label)


def _bars(axes: Axes, x: Any, y: Any, rows: Any, colour: str, along: str) -> None:
    """Standard deviations over seeds, of rows that have them."""
    if "sd" in rows and (rows["sd"] > 0).any():
        axes.errorbar(x, y, **{f"{along}err": rows["sd"].to_numpy()}, fmt="none", ecolor=colour, elinewidth=0.7)


class _Panel(NamedTuple):
    head: str
    draw: Callable[[Axes, Any, str], None]
    tall: float
    wide: float


_PANELS = (
    _Panel("ablations", _ablations, 1.0, 1.1),
    _Panel("rank and blocks", _blocks, 1.1, 1.1),
    _Panel("projections", _targets, 0.9, 1.0),
)
