"""Figure 3: ablations, ranks and blocks, tuning granularity, from the paper's tables."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .. import style
from . import drawing as layout

_BORA, _LORA = style.method_look("bora"), style.method_look("lora")
# Method in table 7 → its look: BoRA's colour and marker, the ablations open.
_ABLATIONS = {
    "bora": style.Look("BoRA", _BORA.colour, _BORA.marker, (), True),
    "bora-no-exp": style.Look("BoRA w.o. Exp", style.shade(_BORA.colour, 2), _BORA.marker, (), False),
    "bora-no-norm": style.Look("BoRA w.o. Norm", style.shade(_BORA.colour, 1), _BORA.marker, (), False),
}
_LORA_LOOK = style.Look("LoRA", _LORA.colour, _LORA.marker, (), True)


@layout.in_style
def figure3(accuracy: pd.DataFrame, *, width: str = "neurips", title: str | None = None) -> Figure:
    """Average accuracy on mathematical reasoning, as figure 3 of BoRA (arXiv 2508.06953), from its tables 7, 9 and 8.

    (a) BoRA without the exponential or the normalisation, per model. (b) BoRA over b, a line per r; dashed in the same
    shade, LoRA of that r. (c) LoRA and BoRA over the adapted projections. No axis begins at 0, so nothing is drawn as a
    bar.

    Parameters
    ----------
    accuracy : rows of the paper's tables; columns table, model, method, r, blocks, target, task, value. Only the rows
        with the task "Avg" are drawn.
    width, title : see :mod:`bora_analysis.figures`; on a narrow page the panels stand one above the other.
    """
    averages = [_averages(accuracy, table) for table in (7, 9, 8)]
    narrow = layout.inches(width) < 4.5
    figure = layout.blank(width, 5.4 if narrow else 2.35)
    if narrow:
        panels = figure.subplots(3, 1, height_ratios=(1, 1.1, 0.9))
    else:
        panels = figure.subplots(1, 3, width_ratios=(1.1, 1.1, 1))
    heads = "(a) ablations", "(b) rank and blocks", "(c) projections"
    for axes, head, draw, rows in zip(panels, heads, (_ablations, _blocks, _targets), averages, strict=True):
        draw(axes, rows)
        axes.set_title(head, size=8, loc="left")
    if not narrow:
        for label in panels[2].get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")
    return layout.finish(figure, title, [_LORA_LOOK, *_ABLATIONS.values()], linestyle="")


def _averages(accuracy: Any, table: int) -> Any:
    if accuracy.empty:
        raise ValueError("nothing to draw: the table has no rows")
    rows = accuracy[(accuracy["table"] == table) & (accuracy["task"] == "Avg")]
    if rows.empty:
        raise ValueError(f"figure3 is drawn from the Avg rows of the paper's tables 7, 8 and 9; table {table} has none")
    return rows


def _ablations(axes: Axes, rows: Any) -> None:
    models = list(dict.fromkeys(rows["model"]))
    middle = (len(_ABLATIONS) - 1) / 2
    for nth, (method, look) in enumerate(_ABLATIONS.items()):
        mine = rows[rows["method"] == method].set_index("model")["value"]
        y = [models.index(model) * (len(_ABLATIONS) + 1) + nth for model in mine.index]
        axes.plot(mine.to_numpy(), y, gid=f"a:{method}", **{**layout.line(look), "linestyle": "", "clip_on": False})
        for x, at in zip(mine, y, strict=True):
            text = {"xytext": (4, 0), "textcoords": "offset points", "va": "center_baseline", "size": 6}
            axes.annotate(f"{x:.2f}", (x, at), **text)
    centres = [k * (len(_ABLATIONS) + 1) + middle for k in range(len(models))]
    axes.set_yticks(centres, [layout.escaped(style.MODELS.get(str(model), str(model))) for model in models])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(centres[-1] + middle + 0.7, centres[0] - middle - 0.7)
    for before, after in pairwise(centres):
        axes.axhline((before + after) / 2, color="0.85", lw=0.5)
    low, high = rows["value"].min(), rows["value"].max()
    axes.set_xlim(low - 0.06 * (high - low), high + 0.42 * (high - low))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_xlabel("accuracy (%)")


def _blocks(axes: Axes, rows: Any) -> None:
    ranks = sorted(rows["r"].unique())
    low, high = rows["value"].min(), rows["value"].max()
    shades = [layout.sequence(_BORA.colour, k, len(ranks)) for k in range(len(ranks))]
    ends = []
    for r, colour in zip(ranks, shades, strict=True):
        mine = rows[(rows["r"] == r) & (rows["method"] == "bora")].sort_values("blocks")
        look = style.Look("", colour, _BORA.marker, (), True)
        axes.plot(mine["blocks"], mine["value"], gid=f"b:{r}", **{**layout.line(look), "markersize": 3.2})
        lora = rows[(rows["r"] == r) & (rows["method"] == "lora")]["value"]
        for level in lora:
            axes.axhline(level, color=colour, lw=0.7, ls=(0, (4, 2)), zorder=1, gid=f"b:lora:{r}")
        ends.append(mine["value"].iloc[-1])
    blocks = sorted(rows[rows["method"] == "bora"]["blocks"].unique())
    layout.doubling_axis(axes, blocks)
    axes.set_xlim(blocks[0] / 1.25, blocks[-1] * 1.25)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for r, colour, at in zip(ranks, shades, layout.apart(ends, 0.075 * (high - low)), strict=True):
        axes.text(blocks[-1] * 1.32, at, f"r = {r}", size=6, color=colour, va="center_baseline")
    axes.set_xlabel("blocks b\n(dashed: LoRA of the same r)")
    axes.set_ylabel("accuracy (%)")


def _targets(axes: Axes, rows: Any) -> None:
    targets = list(dict.fromkeys(rows["target"]))
    for method, look in (("lora", _LORA_LOOK), ("bora", _ABLATIONS["bora"])):
        mine = rows[rows["method"] == method]
        at = [targets.index(target) for target in mine["target"]]
        axes.plot(at, mine["value"], gid=f"c:{method}", **{**layout.line(look), "linewidth": 0.7})
    axes.set_xticks(range(len(targets)), targets)
    axes.set_xlim(-0.4, len(targets) - 0.6)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_ylabel("accuracy (%)")
