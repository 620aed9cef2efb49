"""Charts of adapters, from the tidy tables: the same colours, markers and names as the figures for a paper.

Every function takes a frame and gives a :class:`Chart`; none of them reads or computes a tensor.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd

from app.chart_parts import (
    DASHED,
    SPAN,
    Chart,
    by_adapter,
    category,
    dark,
    decades,
    dressed,
    ground,
    guide,
    half_decades,
    index_axis,
    ink,
    layer,
    layered,
    legend,
    legend_height,
    line,
    log_scale,
    markers,
    number,
    on_screen,
    point,
    rule,
    scaled,
    step_axis,
    threshold_line,
    tooltip,
    vertical,
)
from bora_analysis import style
from bora_analysis.analysis.views import sigma_limits, spreads
from bora_analysis.linalg import Array
from bora_analysis.metrics import METRICS
from bora_analysis.style import Look

# About the widths, in pixels, of a chart's plot over the whole page and over half of it, in a window of 1280.
_WHOLE, _HALF = 740, 340


def metric_name(metric: str) -> str:
    """A metric in a menu, and so in the URL: without its formula.

    >>> metric_name("stable_rank"), metric_name("energy_rank_99")
    ('stable rank', 'energy rank, 99 %')
    """
    row = METRICS[metric]
    return f"{row.label}, {row.formula.partition(' of')[0]}" if metric.startswith("energy_rank") else row.label


def metric_title(metric: str) -> str:
    """A metric on an axis. The threshold is τ there: a number would be another specification with each move of it.

    >>> metric_title("effective_rank")
    'effective rank  #{σ > τ}'
    """
    return "  ".join((METRICS[metric].label, METRICS[metric].formula))


def spectrum(curves: pd.DataFrame, looks: Mapping[str, Look], threshold: float) -> Chart:
    """σ against its index, logarithmic: line, band where there are several modules, threshold, bounds.

    Parameters
    ----------
    curves : of :func:`bora_analysis.analysis.views.curves`.
    """
    floor, ceiling = half_decades(*sigma_limits(curves["median"], curves["largest"], threshold))
    shown = dressed(curves, looks).assign(
        curve=curves["adapter"] + " " + curves["bound"].astype(str),
        y=np.fmax(curves["median"], floor),
        low=np.fmax(curves["least"], floor),
        high=np.fmax(curves["largest"], floor),
        floor=floor,
    )
    several = bool((curves["modules"] > 1).any())
    x = index_axis(curves["index"], curves["bound"])
    title = "singular value σ" + (", median and range" if several else "")
    y = number("y", title, scale=log_scale(domain=[floor, ceiling]), axis=decades(floor, ceiling))
    colour, shape, dash = by_adapter(shown, looks)
    more = {"least": "least", "largest": "largest", "modules": "modules"} if several else {}
    tips = tooltip(shown, label="adapter", index="index", median="median σ" if several else "σ", **more)
    each = {"x": x, "color": colour, "detail": category("curve")}
    above, data = threshold_line(threshold)
    layers = [
        layer("curves", line(2, clip=True), **each, y=y, strokeDash=dash),
        layer("ends", rule(1, opacity=0.7), x=x, color=colour, y=y, y2={"field": "floor"}),
        *markers("ends", shown, 70, x=x, y=y, color=colour, shape=shape),
        layer("curves", point(90, opacity=0), **each, y=y, tooltip=tips),
        *above,
    ]
    if several:
        band = {"type": "area", "opacity": 0.16, "clip": True}
        layers.insert(0, layer("curves", band, **each, y=number("low"), y2={"field": "high"}))
    height = 430 + legend_height(shown["label"].unique().tolist(), _WHOLE)
    return Chart(layered(height, *layers), {"curves": shown, "ends": shown[shown["index"] == shown["bound"]], **data})


def over_layers(table: pd.DataFrame, metric: str, looks: Mapping[str, Look]) -> Chart:
    """A metric over the layers, with the rank bound where the metric counts directions below it.

    Parameters
    ----------
    table : of :func:`bora_analysis.analysis.views.by_layer`.
    """
    values, up = vertical(table[metric], metric == "energy" and spreads(table[metric]))
    shown = dressed(table, looks).assign(y=values)
    x = number("layer", "layer", axis={"tickMinStep": 1, "format": "d", "grid": False}, scale=SPAN)
    y = number("y", metric_title(metric), **up)
    colour, shape, dash = by_adapter(shown, looks)
    named = {metric: METRICS[metric].label, "rank_bound": "bound", "modules": "modules"}
    tips = tooltip(shown, label="adapter", layer="layer", **named)
    layers = [
        layer("layers", line(1.5, clip=True), x=x, y=y, color=colour, strokeDash=dash),
        *markers("layers", shown, 55, x=x, y=y, color=colour, shape=shape, tooltip=tips),
    ]
    if metric == "effective_rank":
        dashed = line(1, strokeDash=DASHED, opacity=0.8)
        layers.insert(0, layer("layers", dashed, x=x, y=number("rank_bound"), color=colour))
    height = 340 + legend_height(shown["label"].unique().tolist(), _HALF)
    return Chart(layered(height, *layers), {"layers": shown})


def runs(means: pd.DataFrame, metric: str, looks: Mapping[str, Look]) -> Chart:
    """A metric against the training step, a line per run.

    Parameters
    ----------
    means : columns adapter, step and the metric.
    """
    shown = dressed(means, looks)
    colour, shape, dash = by_adapter(shown, looks)
    x, y = step_axis("step", "training step", means["step"]), number(metric, metric_title(metric))
    tips = tooltip(shown, label="run", step="step", **{metric: METRICS[metric].label})
    lines = layer("runs", line(2), x=x, y=y, color=colour, strokeDash=dash)
    points = markers("runs", shown, 55, x=x, y=y, color=colour, shape=shape, tooltip=tips)
    height = 320 + legend_height(shown["label"].unique().tolist(), _WHOLE)
    return Chart(layered(height, lines, *points), {"runs": shown})


def heatmap(cells: pd.DataFrame, metric: str, chosen: tuple[str, str]) -> Chart:
    """A metric over layers and projections; a click on a cell is the selection ``cell``.

    Parameters
    ----------
    cells : columns layer (text), projection, modules and the metric, in the order of the axes.
    chosen : layer and projection of the cell to frame until one is clicked. From then on the browser frames what was
        clicked, so that a click need not send the chart again: one with a selection is drawn anew whenever it is sent.
    """
    layers = list(dict.fromkeys(cells["layer"]))
    projections = style.projections_in_order(cells["projection"])
    gradient = {"format": "~g", "tickCount": 5, "gradientLength": {"expr": "min(width, 320)"}, "titleLimit": 600}
    key = {"title": metric_title(metric), "orient": "top", **gradient}
    # About fifteen labels have room on a phone; every layer is in its cell's tooltip.
    every = max(1, -(-len(layers) // 16))
    bare = {"ticks": False, "domain": False}
    x_axis, y_axis = {"labelAngle": 0, "values": layers[::every], **bare}, {"labelLimit": 120, **bare}
    x = {"field": "layer", "type": "ordinal", "sort": layers, "title": "layer", "axis": x_axis}
    y = category("projection", sort=projections, axis={"title": None, **y_axis})
    named = {metric: METRICS[metric].label, "modules": "modules in the cell"}
    tips = tooltip(cells, layer="layer", projection="projection", **named)
    scale = {"scheme": "viridis", "type": "log" if spreads(cells[metric]) else "linear", "zero": False}
    cell = {"type": "rect", "cursor": "pointer", "cornerRadius": 2, "stroke": ground(), "strokeWidth": 1}
    grid = layer("cells", cell, x=x, y=y, color=number(metric, scale=scale, legend=key), tooltip=tips)
    ring = {"type": "rect", "fillOpacity": 0, "stroke": style.VERMILLION, "strokeWidth": 3, "cornerRadius": 2}
    ring = {**ring, "tooltip": None}
    until = {"condition": {"test": "length(data('cell_store'))", "value": 0}, "value": 1}
    frames = layer("chosen", ring, x=x, y=y, opacity=until), layer("cells", ring, x=x, y=y)
    frames[1]["transform"] = [{"filter": {"param": "cell", "empty": False}}]
    click = {"type": "point", "fields": ["layer", "projection"], "toggle": False}
    here = cells[(cells["layer"] == chosen[0]) & (cells["projection"] == chosen[1])]
    params = [{"name": "cell", "select": click, "views": ["grid"]}]
    height = 38 * max(2, len(projections)) + 150
    return Chart(layered(height, {**grid, "name": "grid"}, *frames, params=params), {"cells": cells, "chosen": here})


def families(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    by: str,
    titles: tuple[str, str, str],
    bold: str | None = None,
    threshold: float | None = None,
) -> Chart:
    """A family of lines, coloured by a number (depth, slot, step), with one of them, or a mean, in bold.

    Parameters
    ----------
    table : columns ``x``, ``y`` and ``by``; rows of the bold line have ``bold`` true where there is such a column.
    titles : of the x axis, the y axis and the colours.
    bold : name of the bold line, for the tooltip; None where there is none.
    threshold : to be marked, where y is a singular value.
    """
    values, axis = vertical(table[y], y == "singular_value" or spreads(table[y]), threshold)
    shown = table.assign(y=values)
    across, up = step_axis(x, titles[0], table[x]), number("y", titles[1], **axis)
    named = sorted(table[by].unique().tolist())
    named = named[:: -(-len(named) // 6)]
    key = {"title": titles[2], "orient": "top", "format": "d", "values": named, "symbolOpacity": 1}
    # The brightest yellow is lost on white, the darkest violet on black.
    shades = {"name": "viridis", "extent": [0.2, 1.0] if dark() else [0.0, 0.92]}
    ends = [float(table[by].min()), float(table[by].max())]
    colour = number(by, scale={"scheme": shades, "domain": ends}, legend=key)
    tips = tooltip(shown, **{by: titles[2], x: titles[0], y: titles[1]})
    thin = {"x": across, "y": up, "color": colour, "detail": category(by)}
    layers = [
        layer("lines", line(1.5, opacity=0.9), **thin),
        layer("lines", point(28, opacity=0.9), **thin, tooltip=tips),
    ]
    data = {"lines": shown}
    if bold is not None and "bold" in shown:
        data = {"lines": shown[~shown["bold"]], "bold": shown[shown["bold"]].assign(bold_name=bold)}
        heavy = {"x": across, "y": up}
        layers += [
            layer("bold", line(3, color=ink()), **heavy),
            layer("bold", point(45, color=ink()), **heavy, tooltip=[category("bold_name", titles[2]), *tips[1:]]),
        ]
    if threshold is not None:
        above, more = threshold_line(threshold)
        layers, data = layers + above, {**data, **more}
    return Chart(layered(400, *layers), data)


def ranks_by_step(table: pd.DataFrame) -> Chart:
    """Mean ranks of B', Σ', A' against the step.

    Parameters
    ----------
    table : columns step, factor, rank.
    """
    # Equal ranks are common: the widest line lies below, so that all show.
    strokes = {
        "bound": (guide(), 12.0, 0.35),
        "A′": (style.GREEN, 8.0, 1.0),
        "Σ′": (style.VERMILLION, 4.5, 1.0),
        "B′": (style.BLUE, 1.8, 1.0),
    }
    colours = {factor: on_screen(colour) for factor, (colour, _, _) in reversed(strokes.items())}
    each = {
        "x": step_axis("step", "training step", table["step"]),
        "y": number("rank", "rank, mean over the modules", scale={"zero": True}),
        "color": scaled("factor", colours, legend(symbolType="square", symbolSize=120)),
        "tooltip": tooltip(table, factor="factor", step="step", rank="rank"),
    }
    layers = [
        layer("ranks", mark, f"datum.factor == '{factor}'", **each)
        for factor, (_, width, opacity) in strokes.items()
        for mark in (line(width, opacity=opacity, strokeCap="round"), point((width + 4) ** 2, opacity=opacity))
    ]
    return Chart(layered(340, *layers), {"ranks": table})


def picture(
    image: Array,
    size: tuple[int, int],
    lines: tuple[Sequence[float], Sequence[float]],
    title: str,
    names: tuple[str, str],
) -> Chart:
    """A matrix as an image with lines between its blocks. Row 1 is at the top.

    Parameters
    ----------
    image : (rows, columns), not negative; any resolution.
    size : m, n of the matrix, for the axes.
    lines : row and column positions of the lines, in entries of the matrix.
    title : of the colours.
    names : of the rows and the columns.
    """
    m, n = size
    top = float(image.max(initial=0.0)) or 1.0
    bare = {"grid": False, "format": ",d", "tickCount": 4, "tickMinStep": 1}
    x = number("x", names[1], scale={"domain": [0, n], "nice": False}, axis=bare)
    y = number("y", names[0], scale={"domain": [0, m], "nice": False, "reverse": True}, axis=bare)
    place = {"width": {"expr": "width"}, "height": {"expr": "height"}, "align": "left", "baseline": "top"}
    painted = {"type": "image", **place, "aspect": False, "smooth": False}
    gradient = {"format": ".3~g", "gradientLength": 180, "titleLimit": 400, "tickCount": 3}
    key = {"title": title, "orient": "top", **gradient}
    colour = number("value", scale={"scheme": "viridis", "zero": True, "nice": False}, legend=key)
    border = rule(0.8, color="#FFFFFF", opacity=0.55)
    spec = layered(
        430,
        layer("image", painted, x=x, y=y, url={"field": "url", "type": "nominal"}),
        layer("key", point(1, opacity=0), x=x, y=y, color=colour),
        layer("rows", border, y=y),
        layer("columns", border, x=x),
    )
    data = {
        "image": pd.DataFrame({"x": [0.0], "y": [0.0], "url": [_png(image / top)]}),
        "key": pd.DataFrame({"x": [0.0, 0.0], "y": [0.0, 0.0], "value": [0.0, top]}),
        "rows": pd.DataFrame({"y": np.asarray(lines[0], dtype=float)}),
        "columns": pd.DataFrame({"x": np.asarray(lines[1], dtype=float)}),
    }
    return Chart(spec, data)


def _png(image: Array) -> str:
    """Numbers in [0, 1] as an image in viridis, a byte for each, as the address of its data."""
    from matplotlib import colormaps  # here: the other pages go without it
    from PIL import Image

    import bora_analysis.figures.backend  # noqa: F401  matplotlib, whatever MPLBACKEND says

    colours: Any = colormaps["viridis"](np.arange(256), bytes=True)
    pixels = Image.fromarray(np.round(255 * image).astype(np.uint8))
    pixels.putpalette(colours[:, :3].tobytes())
    buffer = BytesIO()
    pixels.save(buffer, "png", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
