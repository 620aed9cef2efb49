"""The subspace similarity of two adapters, from the table of its grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .. import style
from . import data, page
from . import drawing as layout
from .heat import heat_cells


@page.in_style
def similarity(
    table: data.Source,
    *,
    projection: str | None = None,
    module: str | None = None,
    above_chance: bool | None = None,
    width: str = "neurips",
    font: str | None = None,
    title: str | None = None,
    labels: data.Labels | None = None,
) -> Figure:
    """φ(i, j) of two adapters as heat maps, left and right, as figure 3 of LoRA (arXiv 2106.09685).

    The cells are squares, unless a panel would be thinner than half an inch. The colour scale is φ's own, 0 to 1. Each
    panel says what two random subspaces would give at its far corner.

    Parameters
    ----------
    table : the grid of :func:`bora_analysis.similarity`, its whole result, or two adapters. Several modules are
        averaged; shown are the i and j that all of them have.
    projection : by default "q", else "qkv", else the one with most layers.
    module : this one alone.
    above_chance : shows φ(i, j) − max(i, j)/d, what is left of φ without that of two random subspaces of ℝᵈ: 0 where
        the adapters have no more in common than chance.
    width, font, title, labels : see :mod:`bora_analysis.figures`.
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
    # Side by side, or one below the other where that would make wide panels too low.
    paper = page.inches(width)
    below = (paper - 1.2) / 2 * tall / across < 0.5
    room = paper - 1.1 if below else (paper - 1.2) / 2
    cell = min(room / across, 2.4 / tall)
    square = cell * min(tall, across) >= 0.5
    body = cell * tall if square else float(np.clip(room * tall / across, 0.6, 2.4))
    names = [str(shown[f"adapter_{x}"].iloc[0]) for x in "ab"]
    names = [data.relabelled(names, labels).get(name, name) for name in names]
    # About 0.075 inches a letter, and "i, " before the name.
    lengths = max(body, 0.8), room
    first, second = (
        layout.escaped(style.shortened(names, int(length / 0.075) - 3)[k]) for k, length in enumerate(lengths)
    )
    figure = page.blank(width, (2 * body + 1.1) if below else body + 0.75)
    panels: Any = figure.subplots(2 if below else 1, 1 if below else 2, sharex=True, sharey=True)
    norm, beneath = Normalize(0, 1), False
    for axes, side in zip(panels, ("left", "right"), strict=True):
        mine = shown[shown["side"] == side]
        mine = mine.assign(phi=mine["phi"] - mine["random"]) if above_chance else mine
        grid = mine.pivot_table(index="i", columns="j", values="phi", aggfunc="mean").to_numpy(float)
        beneath |= bool(grid.min() < 0)
        heat_cells(axes, grid, norm, 0.0, None).set_gid(f"phi:{side}")
        axes.set_aspect("equal" if square else "auto")
        head = f"{side}, chance {'taken off: ' if above_chance else ''}at most {mine['random'].max():.2g}"
        if layout.text_width(head, 7) > max(cell * across, room):
            head = head.replace(", ", "\n", 1)
        axes.set_title(head, size=7, loc="left", pad=2.5)
        if not below or side == "right":
            axes.set_xlabel(f"j, {second}")
        if below:
            axes.set_ylabel(f"i, {first}")
        for axis, most in ((axes.xaxis, across), (axes.yaxis, tall)):
            axis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
            ticks = [t for t in axis.get_major_locator().tick_values(1, most) if 1 <= t <= most] or [1]
            axis.set_ticks([t - 1 for t in ticks], [f"{t:.0f}" for t in ticks])
    panels[0].set_ylabel(f"i, {first}")
    panels[0].set_ylim(tall - 0.5, -0.5)
    label = ("φ(i, j) − chance" if above_chance else "φ(i, j)") + (
        f", {layout.plain(projection)}" if projection else ""
    )
    label += f", mean of {count}" if count > 1 else ""
    more = {"extend": "min"} if beneath else {}  # the first colour stands also for what is less than chance
    layout.colour_bar(figure, ScalarMappable(norm, "viridis"), list(panels), label, 1.0, 20, **more)
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
