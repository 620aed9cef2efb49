"""A column of a table with one row per module, over the layers, a line per projection: on the screen and on paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from app import vega
from bora_analysis import style
from bora_analysis.analysis.views import spreads


def by_projection(table: pd.DataFrame, column: str, title: str, bound: str | None = None) -> vega.Chart:
    """Means over the modules of each layer and projection; modules without a layer are left out.

    Parameters
    ----------
    table : columns layer, projection, module, the column, and that of its bound.
    """
    looks = style.series_looks(style.projections_in_order(table["projection"]))
    placed = table[table["layer"].notna()].astype({"layer": int})
    wanted = {name: (name, "mean") for name in (column, bound) if name}
    groups = placed.groupby(["projection", "layer"], sort=True)
    means: Any = groups.agg(**wanted, modules=("module", "size")).reset_index()
    values, up = vega.vertical(means[column], bool(len(means)) and spreads(means[column].dropna()))
    shown = vega.dressed(means.rename(columns={"projection": "adapter"}), looks, y=values)
    x = vega.number("layer", "layer", axis={"tickMinStep": 1, "format": "d", "grid": False}, scale=vega.SPAN)
    y = vega.number("y", title, **up)
    colour, shape, dash = vega.by_adapter(shown, looks)
    tips = vega.tooltip(shown, label="projection", layer="layer", **{column: title, "modules": "modules"})
    layers = [
        vega.layer("layers", vega.line(1.5, clip=True), x=x, y=y, color=colour, strokeDash=dash),
        *vega.markers(
            "layers", shown, vega.marker_size(shown["layer"]), x=x, y=y, color=colour, shape=shape, tooltip=tips
        ),
    ]
    if bound:
        dashed = vega.line(1, strokeDash=vega.DASHED, opacity=0.8)
        layers.insert(0, vega.layer("layers", dashed, x=x, y=vega.number(bound), color=colour))
    return vega.layered(300 + vega.legend_height(shown, 340), layers, {"layers": shown})


def figure(table: pd.DataFrame, columns: Mapping[str, str], bounds: Mapping[str, str] | None = None) -> Any:
    """The same for a paper; parameters as for :func:`bora_analysis.figures.over_layers.over_layers`."""
    from bora_analysis.figures.over_layers import over_layers  # here: the page goes without matplotlib

    return over_layers(table, columns, bounds=bounds)
