"""Columns of any table with one row per module, over the layers, a line per projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from .. import style
from ..analysis import views
from . import drawing as layout
from . import page


@page.in_style
def over_layers(
    table: Any,
    columns: Mapping[str, str],
    *,
    bounds: Mapping[str, str] | None = None,
    width: str = "neurips",
    title: str | None = None,
) -> Figure:
    """Panels beside each other, one for each column; modules without a layer are left out where others have one.

    Parameters
    ----------
    table : columns layer, projection and those that are drawn; several modules of a layer and projection are averaged.
    columns : column → label of its axis.
    bounds : column → column of an upper bound, thin and dashed.
    width, title : see :mod:`bora_analysis.figures`.

    Raises
    ------
    ValueError
        A table without rows.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"layer": [0, 1], "projection": ["q", "q"], "rank": [3, 5]})
    >>> [axes.get_ylabel() for axes in over_layers(table, {"rank": "rank kept"}).axes]
    ['rank kept']
    """
    if table.empty:
        raise ValueError("nothing to draw: the table has no rows")
    placed = table["layer"].notna().any()
    means = table[table["layer"].notna()] if placed else table.assign(layer=0)
    layers = sorted(int(layer) for layer in means["layer"].unique())
    looks = style.series_looks(style.projections_in_order(means["projection"]))
    figure = page.blank(width, 1.9)
    for axes, (column, label) in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns.items(), strict=True):
        logarithmic = views.spreads(means[column].dropna())
        axes.set_yscale("log" if logarithmic else "linear")
        for name, look in looks.items():
            mine = means[means["projection"] == name].astype({"layer": int}).groupby("layer")
            line = mine[column].mean()
            axes.plot(line.index, line, gid=f"{column}:{name}", lw=0.8, **layout.line(look))
            if bounds and column in bounds:
                bound = mine[bounds[column]].mean()
                axes.plot(bound.index, bound, color=look.colour, lw=0.6, ls=(0, (4, 2)), zorder=1)
        if not logarithmic and float(means[column].min()) >= 0:
            axes.set_ylim(bottom=0)
        layout.layer_axis(axes, layers if placed else [])
        axes.set_xlabel("layer")
        axes.set_ylabel(label)
    return layout.finish(figure, title, list(looks.values()))
