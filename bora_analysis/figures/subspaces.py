"""The subspace similarity of two adapters, from the table of its grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .. import style
from . import data
from . import drawing as layout


@layout.in_style
def similarity(
    table: data.Source,
    *,
    projection: str | None = None,
    module: str | None = None,
    width: str = "neurips",
    title: str | None = None,
    labels: data.Labels | None = None,
) -> Figure:
    """φ(i, j) of two adapters as heat maps, left and right, as figure 3 of LoRA (arXiv 2106.09685).

    The colour scale is φ's own, 0 to 1. Each panel says what two random subspaces would give at its far corner.

    Parameters
    ----------
    table : the grid of :func:`bora_analysis.similarity`, its whole result, or two adapters. Several modules are
        averaged; shown are the i and j that all of them have.
    projection : by default "q", else "qkv", else the one with most layers.
    module : this one alone.
    width, title, labels : see :mod:`bora_analysis.figures`.
    """
    table = _grid(table)
    if table.empty:
        raise ValueError("nothing to draw: the table has no rows (one of the adapters is zero in every module)")
    if module is None:
        projection = projection or data.default_projection(table)
    shown = data.narrowed(table, projection=projection, module=module)
    count = shown["module"].nunique()
    # Those that every module has: a mean over fewer would jump.
    sizes = shown.groupby("module")[["i", "j"]].max().min()
    shown = shown[(shown["i"] <= sizes["i"]) & (shown["j"] <= sizes["j"])]
    tall, across = int(sizes["i"]), int(sizes["j"])
    room = (layout.inches(width) - 1.2) / 2
    body = float(np.clip(room * tall / across, 1.0, 2.4))
    names = [str(shown[f"adapter_{x}"].iloc[0]) for x in "ab"]
    names = [data.relabelled(names, labels).get(name, name) for name in names]
    # About 0.075 inches a letter, and "i, " before the name.
    first, second = (
        layout.escaped(style.shortened(names, int(length / 0.075) - 3)[k]) for k, length in enumerate((body, room))
    )
    figure = layout.blank(width, body + 0.75)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    norm = Normalize(0, 1)
    for axes, side in zip(panels, ("left", "right"), strict=True):
        mine = shown[shown["side"] == side]
        grid = mine.pivot_table(index="i", columns="j", values="phi", aggfunc="mean").to_numpy(float)
        layout.heat_cells(axes, grid, norm, 0.0, None).set_gid(f"phi:{side}")
        chance = mine["random"].max()
        axes.set_title(f"{side}, chance at most {chance:.2g}", size=7, loc="left", pad=2.5)
        axes.set_xlabel(f"j, {second}")
        for axis, count in ((axes.xaxis, across), (axes.yaxis, tall)):
            axis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
            ticks = [t for t in axis.get_major_locator().tick_values(1, count) if 1 <= t <= count] or [1]
            axis.set_ticks([t - 1 for t in ticks], [f"{t:.0f}" for t in ticks])
    panels[0].set_ylabel(f"i, {first}")
    panels[0].set_ylim(tall - 0.5, -0.5)
    label = "φ(i, j)" + (f", {layout.plain(projection)}" if projection else "")
    label += f", mean of {count}" if count > 1 else ""
    layout.colour_bar(figure, ScalarMappable(norm, "viridis"), list(panels), label, 1.0, 20)
    return layout.finish(figure, title, [])


def _grid(source: data.Source) -> pd.DataFrame:
    """The table of φ: itself, the first of what :func:`bora_analysis.similarity` returns, or made of two adapters."""
    if isinstance(source, pd.DataFrame):
        return source
    pair = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    if len(pair) != 2:
        raise ValueError(f"similarity shows two adapters; got {len(pair)}")
    if isinstance(pair[0], pd.DataFrame):
        return pair[0]
    from ..analysis.subspaces import similarity as compare

    return compare(*pair, i=64, j=64).grid
