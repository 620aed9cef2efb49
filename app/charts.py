"""Charts for the screen, from the tidy tables: the same colours, markers and names as the figures for a paper.

Every function takes a frame and gives a :class:`Chart`; none of them reads or computes a tensor. A specification is
plain Vega-Lite and depends on as little as possible, the data stand beside it under names: while only data change, the
browser updates the picture that it has, which takes a tenth of drawing it anew. So the ends of logarithmic axes lie on
half decades, and a threshold is data. A logarithmic axis has only positive numbers: what is smaller than the floor of
the axis, and 0, lies on it, and the tooltip tells the value.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from bora_analysis import style
from bora_analysis.metrics import METRICS
from bora_analysis.style import Look

Array = NDArray[Any]
Spec = dict[str, Any]

# matplotlib's letters → the shapes of Vega, in which any other is a path in a square from −1 to 1.
SHAPES = {
    "o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "<": "triangle-left",
    ">": "triangle-right", "P": "cross", "d": "M0,-1L0.55,0L0,1L-0.55,0Z",
    "X": "M-1,-0.5L-0.5,-1L0,-0.5L0.5,-1L1,-0.5L0.5,0L1,0.5L0.5,1L0,0.5L-0.5,1L-1,0.5L-0.5,0Z",
    "p": "M0,-1L0.95,-0.31L0.59,0.81L-0.59,0.81L-0.95,-0.31Z",
    "h": "M0,-1L0.87,-0.5L0.87,0.5L0,1L-0.87,0.5L-0.87,-0.5Z",
    "*": "M0,-1L0.22,-0.31L0.95,-0.31L0.36,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.36,0.12L-0.95,-0.31L-0.22,-0.31Z",
}  # fmt: skip
_BACKGROUND = {False: "#FFFFFF", True: "#14171A"}
_MUTED = {False: "#666666", True: "#A0A6AC"}
# About the widths, in pixels, of a chart's plot over the whole page and over half of it, in a window of 1280.
_WHOLE, _HALF = 740, 340
# Full precision: what is rounded in a tooltip cannot be checked against the table.
_EXACT = ".10~g"


@dataclass(frozen=True, eq=False)
class Chart:
    """A Vega-Lite specification, and the frames that it names as its data."""

    spec: Spec
    data: Mapping[str, pd.DataFrame]


def draw(chart: Chart, key: str, alt: str, **options: Any) -> Any:
    """Put a chart on the page, as wide as its place. ``alt`` is what a screen reader says."""
    import pyarrow as pa

    datasets = {name: pa.Table.from_pandas(frame, preserve_index=False) for name, frame in chart.data.items()}
    spec = {**chart.spec, "datasets": datasets}
    return st.vega_lite_chart(spec=spec, width="stretch", key=key, alt=alt, **options)


def layered(height: int, *layers: Spec, **more: Any) -> Spec:
    """A specification of layers that lie on one another."""
    return {"layer": list(layers), "height": height, **more}


def layer(data: str, mark: str | Spec, *filters: str, **encoding: Any) -> Spec:
    """One layer: the name of its data, its mark, and the rows that it shows."""
    made: Spec = {"data": {"name": data}, "mark": mark, "encoding": encoding}
    return {**made, "transform": [{"filter": words} for words in filters]} if filters else made


def number(field: str, title: str | None = None, **more: Any) -> Spec:
    """A field as a quantity."""
    return {"field": field, "type": "quantitative", **({"title": title} if title is not None else {}), **more}


def category(field: str, title: str | None = None, **more: Any) -> Spec:
    """A field as a name."""
    return {"field": field, "type": "nominal", **({"title": title} if title is not None else {}), **more}


def looks_of(frame: pd.DataFrame) -> dict[str, Look]:
    """Adapter → look, from the whole table, before anything is left out of it."""
    pairs: Any = frame[["adapter", "method"]].drop_duplicates()
    return style.looks(pairs.itertuples(index=False, name=None))


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


def dark() -> bool:
    """Whether the visitor's theme is dark."""
    return st.context.theme.type == "dark"


def curves(spectra: pd.DataFrame) -> pd.DataFrame:
    """Median and range over the modules at each index, of spectra at one step per adapter.

    Up to three rank bounds of one adapter have a curve each, as where k and v are narrower than q; more share one, in
    which a module counts as 0 beyond its own bound.
    """
    parts = []
    for adapter, rows in spectra.groupby("adapter", sort=False):
        bound = rows.groupby("module", sort=False)["index"].transform("max")
        kinds = [rows[bound == b] for b in bound.unique()] if bound.nunique() <= 3 else [rows]
        for part in kinds:
            stack = part.pivot(index="module", columns="index", values="singular_value").fillna(0.0).to_numpy()
            stack = np.where(stack > 1e-16 * stack.max(axis=1, keepdims=True), stack, 0.0)
            parts.append(
                pd.DataFrame(
                    {
                        "adapter": adapter,
                        "bound": stack.shape[1],
                        "modules": len(stack),
                        "index": np.arange(1, stack.shape[1] + 1),
                        "median": np.median(stack, axis=0),
                        "least": stack.min(axis=0),
                        "largest": stack.max(axis=0),
                    }
                )
            )
    columns = ["adapter", "bound", "modules", "index", "median", "least", "largest"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def spectrum(table: pd.DataFrame, looks: Mapping[str, Look], threshold: float, night: bool) -> Chart:
    """σ against its index, logarithmic: line, band where there are several modules, threshold, bounds.

    Parameters
    ----------
    table : of :func:`curves`.
    """
    medians = table["median"].to_numpy(float)
    floor, ceiling = _log_ends(medians[medians > 0], table["largest"].to_numpy(float), threshold)
    shown = table.assign(
        label=_labels(table, looks),
        filled=_filled(table, looks),
        curve=table["adapter"] + " " + table["bound"].astype(str),
        y=np.fmax(table["median"], floor),
        low=np.fmax(table["least"], floor),
        high=np.fmax(table["largest"], floor),
        floor=floor,
    )
    several = bool((table["modules"] > 1).any())
    x = _index_axis(table["index"], table["bound"])
    y = number(
        "y",
        "singular value σ" + (", median and range" if several else ""),
        scale=_log_scale(floor, ceiling),
        axis=_decades(floor, ceiling),
    )
    colour, shape, dash = _encodings(shown, looks, night)
    tips = [
        category("label", "adapter"),
        number("index", "index"),
        number("median", "median σ" if several else "σ", format=_EXACT),
    ]
    if several:
        tips += [number("least", "least", format=_EXACT), number("largest", "largest", format=_EXACT)]
        tips += [number("modules", "modules")]
    each = {"x": x, "color": colour, "detail": category("curve")}
    layers = [
        layer("curves", {"type": "line", "strokeWidth": 2, "clip": True}, **each, y=y, strokeDash=dash),
        layer(
            "ends", {"type": "rule", "strokeWidth": 1, "opacity": 0.7}, x=x, color=colour, y=y, y2={"field": "floor"}
        ),
        *_markers("ends", shown, night, 70, x=x, y=y, color=colour, shape=shape),
        layer("curves", {"type": "point", "size": 90, "opacity": 0, "filled": True}, **each, y=y, tooltip=tips),
        *_threshold(night),
    ]
    if several:
        band = {"type": "area", "opacity": 0.16, "clip": True}
        layers.insert(0, layer("curves", band, **each, y=number("low"), y2={"field": "high"}))
    ends = shown[shown["index"] == shown["bound"]]
    height = 430 + _legend_height(shown, _WHOLE)
    return Chart(layered(height, *layers), {"curves": shown, "ends": ends, "threshold": _threshold_data(threshold)})


def over_layers(table: pd.DataFrame, metric: str, looks: Mapping[str, Look], night: bool) -> Chart:
    """A metric over the layers, with the rank bound where the metric counts directions below it.

    Parameters
    ----------
    table : columns adapter, layer, modules, rank_bound and the metric; one row per adapter and layer.
    """
    values = table[metric].to_numpy(float)
    positive = values[values > 0]
    logarithmic = metric == "energy" and positive.size > 0 and float(positive.max() / positive.min()) > 20
    shown = table.assign(label=_labels(table, looks), filled=_filled(table, looks), y=values)
    shown["y"], vertical = _vertical(values, logarithmic)
    x = number(
        "layer",
        "layer",
        axis={"tickMinStep": 1, "format": "d", "grid": False},
        scale={"zero": False, "nice": False, "padding": 8},
    )
    y = number("y", metric_title(metric), **vertical)
    colour, shape, dash = _encodings(shown, looks, night)
    tips = [
        category("label", "adapter"),
        number("layer", "layer"),
        number(metric, METRICS[metric].label, format=_EXACT),
        number("rank_bound", "bound", format=_EXACT),
        number("modules", "modules"),
    ]
    layers = [
        layer("layers", {"type": "line", "strokeWidth": 1.5, "clip": True}, x=x, y=y, color=colour, strokeDash=dash),
        *_markers("layers", shown, night, 55, x=x, y=y, color=colour, shape=shape, tooltip=tips),
    ]
    if metric == "effective_rank":
        dashed = {"type": "line", "strokeWidth": 1, "strokeDash": [4, 3], "opacity": 0.8}
        layers.insert(0, layer("layers", dashed, x=x, y=number("rank_bound"), color=colour))
    return Chart(layered(340 + _legend_height(shown, _HALF), *layers), {"layers": shown})


def runs(means: pd.DataFrame, metric: str, looks: Mapping[str, Look], night: bool) -> Chart:
    """A metric against the training step, a line per run.

    Parameters
    ----------
    means : columns adapter, step and the metric.
    """
    shown = means.assign(label=_labels(means, looks), filled=_filled(means, looks))
    colour, shape, dash = _encodings(shown, looks, night)
    x = number("step", "training step", axis=_step_axis(means["step"]), scale=_SPAN)
    y = number(metric, metric_title(metric))
    tips = [category("label", "run"), number("step", "step"), number(metric, METRICS[metric].label, format=_EXACT)]
    line = layer("runs", {"type": "line", "strokeWidth": 2}, x=x, y=y, color=colour, strokeDash=dash)
    points = _markers("runs", shown, night, 55, x=x, y=y, color=colour, shape=shape, tooltip=tips)
    return Chart(layered(320 + _legend_height(shown, _WHOLE), line, *points), {"runs": shown})


def heatmap(cells: pd.DataFrame, metric: str, chosen: tuple[str, str], night: bool) -> Chart:
    """A metric over layers and projections; a click on a cell is the selection ``cell``.

    Parameters
    ----------
    cells : columns layer (text), projection, modules and the metric, in the order of the axes.
    chosen : layer and projection of the cell to frame until one is clicked. From then on the browser frames what was
        clicked, so that a click need not send the chart again: one with a selection is drawn anew whenever it is sent.
    """
    layers = list(dict.fromkeys(cells["layer"]))
    projections = style.projections_in_order(cells["projection"])
    values = cells[metric].to_numpy(float)
    positive = values[values > 0]
    spreads = positive.size == values.size and values.size and float(positive.max() / positive.min()) > 100
    legend = {
        "title": metric_title(metric),
        "orient": "top",
        "format": "~g",
        "tickCount": 5,
        "gradientLength": {"expr": "min(width, 320)"},
        "titleLimit": 600,
    }
    # About fifteen labels have room on a phone; every layer is in its cell's tooltip.
    every = max(1, -(-len(layers) // 16))
    bare = {"ticks": False, "domain": False}
    x = {
        "field": "layer",
        "type": "ordinal",
        "sort": layers,
        "title": "layer",
        "axis": {"labelAngle": 0, "values": layers[::every], **bare},
    }
    y = {
        "field": "projection",
        "type": "nominal",
        "sort": projections,
        "title": None,
        "axis": {"labelLimit": 120, **bare},
    }
    tips = [
        category("layer", "layer"),
        category("projection", "projection"),
        number(metric, METRICS[metric].label, format=_EXACT),
        number("modules", "modules in the cell"),
    ]
    scale = {"scheme": "viridis", "type": "log" if spreads else "linear", "zero": False}
    cell = {"type": "rect", "cursor": "pointer", "cornerRadius": 2, "stroke": _BACKGROUND[night], "strokeWidth": 1}
    grid = layer("cells", cell, x=x, y=y, color=number(metric, scale=scale, legend=legend), tooltip=tips)
    ring = {"type": "rect", "fillOpacity": 0, "stroke": style.VERMILLION, "strokeWidth": 3, "cornerRadius": 2}
    ring = {**ring, "tooltip": None}
    until = {"condition": {"test": "length(data('cell_store'))", "value": 0}, "value": 1}
    frames = layer("chosen", ring, x=x, y=y, opacity=until), layer("cells", ring, x=x, y=y)
    frames[1]["transform"] = [{"filter": {"param": "cell", "empty": False}}]
    click = {"type": "point", "fields": ["layer", "projection"], "toggle": False}
    here = cells[(cells["layer"] == chosen[0]) & (cells["projection"] == chosen[1])]
    spec = layered(
        38 * max(2, len(projections)) + 150,
        {**grid, "name": "grid"},
        *frames,
        params=[{"name": "cell", "select": click, "views": ["grid"]}],
    )
    return Chart(spec, {"cells": cells, "chosen": here})


def families(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    by: str,
    titles: tuple[str, str, str],
    night: bool,
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
    values = table[y].to_numpy(float)
    positive = values[values > 0]
    spreads = positive.size > 0 and float(positive.max() / positive.min()) > 20
    shown = table.copy()
    shown["y"], vertical = _vertical(values, threshold is not None or spreads, threshold)
    across = number(x, titles[0], axis=_step_axis(table[x]), scale=_SPAN)
    up = number("y", titles[1], **vertical)
    named = sorted(table[by].unique().tolist())
    named = named[:: -(-len(named) // 6)]
    legend = {"title": titles[2], "orient": "top", "format": "d", "values": named, "symbolOpacity": 1}
    # The brightest yellow is lost on white, the darkest violet on black.
    shades = {"name": "viridis", "extent": [0.2, 1.0] if night else [0.0, 0.92]}
    ends = [float(table[by].min()), float(table[by].max())]
    colour = number(by, scale={"scheme": shades, "domain": ends}, legend=legend)
    tips = [category(by, titles[2]), number(x, titles[0]), number(y, titles[1], format=_EXACT)]
    thin = {"x": across, "y": up, "color": colour, "detail": category(by)}
    layers = [
        layer("lines", {"type": "line", "strokeWidth": 1.5, "opacity": 0.9}, **thin),
        layer("lines", {"type": "point", "size": 28, "filled": True, "opacity": 0.9}, **thin, tooltip=tips),
    ]
    data = {"lines": shown}
    if bold is not None and "bold" in shown:
        data = {"lines": shown[~shown["bold"]], "bold": shown[shown["bold"]].assign(bold_name=bold)}
        ink = "#E8E6E3" if night else "#1A1A1A"
        heavy = {"x": across, "y": up}
        point = {"type": "point", "size": 45, "filled": True, "color": ink, "opacity": 1}
        layers += [
            layer("bold", {"type": "line", "strokeWidth": 3, "color": ink}, **heavy),
            layer("bold", point, **heavy, tooltip=[category("bold_name", titles[2]), *tips[1:]]),
        ]
    if threshold is not None:
        layers += _threshold(night)
        data["threshold"] = _threshold_data(threshold)
    return Chart(layered(400, *layers), data)


def ranks_by_step(table: pd.DataFrame, night: bool) -> Chart:
    """Mean ranks of B', Σ', A' against the step.

    Parameters
    ----------
    table : columns step, factor, rank.
    """
    # Equal ranks are common: the widest line lies below, so that all show.
    strokes = {
        "bound": (_MUTED[night], 12.0),
        "A′": (style.GREEN, 8.0),
        "Σ′": (style.VERMILLION, 4.5),
        "B′": (style.BLUE, 1.8),
    }
    x = number("step", "training step", axis=_step_axis(table["step"]), scale=_SPAN)
    y = number("rank", "rank, mean over the modules", scale={"zero": True})
    tips = [category("factor", "factor"), number("step", "step"), number("rank", "rank", format=_EXACT)]
    colour = category(
        "factor",
        scale={
            "domain": list(strokes)[::-1],
            "range": [readable(colour, night) for colour, _ in strokes.values()][::-1],
        },
        legend={"title": None, "orient": "top", "symbolType": "square", "symbolSize": 120, "symbolOpacity": 1},
    )
    layers = []
    for factor, (_, width) in strokes.items():
        only = f"datum.factor == '{factor}'"
        opacity = 0.35 if factor == "bound" else 1.0
        line = {"type": "line", "strokeWidth": width, "opacity": opacity, "strokeCap": "round"}
        point = {"type": "point", "size": (width + 4) ** 2, "filled": True, "opacity": opacity}
        layers += [layer("ranks", mark, only, x=x, y=y, color=colour, tooltip=tips) for mark in (line, point)]
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
    painted = {
        "type": "image",
        "width": {"expr": "width"},
        "height": {"expr": "height"},
        "aspect": False,
        "align": "left",
        "baseline": "top",
        "smooth": False,
    }
    legend = {
        "title": title,
        "orient": "top",
        "format": ".3~g",
        "gradientLength": 180,
        "titleLimit": 400,
        "tickCount": 3,
    }
    colour = number("value", scale={"scheme": "viridis", "zero": True, "nice": False}, legend=legend)
    rule = {"type": "rule", "color": "#FFFFFF", "opacity": 0.55, "strokeWidth": 0.8}
    spec = layered(
        430,
        layer("image", painted, x=x, y=y, url={"field": "url", "type": "nominal"}),
        layer("key", {"type": "point", "opacity": 0}, x=x, y=y, color=colour),
        layer("rows", rule, y=y),
        layer("columns", rule, x=x),
    )
    return Chart(
        spec,
        {
            "image": pd.DataFrame({"x": [0.0], "y": [0.0], "url": [_png(image / top)]}),
            "key": pd.DataFrame({"x": [0.0, 0.0], "y": [0.0, 0.0], "value": [0.0, top]}),
            "rows": pd.DataFrame({"y": np.asarray(lines[0], dtype=float)}),
            "columns": pd.DataFrame({"x": np.asarray(lines[1], dtype=float)}),
        },
    )


def _png(image: Array) -> str:
    """Numbers in [0, 1] as an image in viridis, a byte for each, as the address of its data."""
    from matplotlib import colormaps  # here: the other pages go without it
    from PIL import Image

    pixels = Image.fromarray(np.round(255 * image).astype(np.uint8))
    pixels.putpalette(colormaps["viridis"](np.arange(256), bytes=True)[:, :3].tobytes())
    buffer = BytesIO()
    pixels.save(buffer, "png", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


_SPAN = {"zero": False, "nice": False, "padding": 8}


def _index_axis(index: pd.Series, bounds: pd.Series) -> Spec:
    """Logarithmic where the bounds lie so far apart that the shortest curve would be a stroke."""
    most, least = float(index.max()), float(bounds.min())
    wide = most > 40 * least
    return number(
        "index",
        "index of the singular value",
        axis={"tickMinStep": 1, "grid": False, "format": "d", "labelOverlap": True},
        scale={"type": "log" if wide else "linear", "domain": [1 if wide else 0, most * 1.02], "nice": False},
    )


def _step_axis(values: pd.Series) -> Spec:
    """Whole numbers; the very ones that there are, if they are few."""
    stops = sorted(int(value) for value in values.unique())
    axis = {"tickMinStep": 1, "format": "d", "grid": False, "labelOverlap": True}
    return {**axis, "values": stops} if len(stops) <= 12 else axis


def _labels(table: pd.DataFrame, looks: Mapping[str, Look]) -> list[str]:
    return [looks[adapter].label for adapter in table["adapter"]]


def _filled(table: pd.DataFrame, looks: Mapping[str, Look]) -> list[bool]:
    return [looks[adapter].filled for adapter in table["adapter"]]


def _encodings(shown: pd.DataFrame, looks: Mapping[str, Look], night: bool) -> tuple[Spec, Spec, Spec]:
    """Colour, shape and dash by the label, with one legend."""
    adapters = list(dict.fromkeys(shown["adapter"]))
    here = [looks[adapter] for adapter in adapters]
    domain = [look.label for look in here]
    legend = {
        "title": None,
        "orient": "top",
        "labelLimit": 340,
        "symbolSize": 90,
        "symbolOpacity": 1,
        "symbolStrokeWidth": 2,
        "columns": {"expr": f"max(1, floor(width / {_legend_width(domain)}))"},
    }
    colours = [readable(look.colour, night) for look in here]
    shapes = [SHAPES[look.marker] for look in here]
    dashes = [[2 * x for x in look.dash] or [1, 0] for look in here]
    return (
        category("label", scale={"domain": domain, "range": colours}, legend=legend),
        category("label", scale={"domain": domain, "range": shapes}, legend=legend),
        # By another field: Vega-Lite would merge its (absent) legend with that of the label.
        category("adapter", scale={"domain": adapters, "range": dashes}, legend=None),
    )


def _legend_width(labels: Sequence[str]) -> int:
    """Pixels that the longest label takes in a legend, symbol and gap with it."""
    return min(290, 40 + 7 * max(map(len, labels), default=0))


def _legend_height(shown: pd.DataFrame, width: int) -> int:
    """Pixels of a legend's rows after the first, where the chart is about that wide: its height is for the whole."""
    labels = list(dict.fromkeys(shown["label"]))
    columns = max(1, width // _legend_width(labels))
    return 20 * (-(-len(labels) // columns) - 1)


def _markers(data: str, shown: pd.DataFrame, night: bool, size: int, **encodings: Any) -> list[Spec]:
    """Filled and open markers, as the figures have them."""
    full = {"type": "point", "size": size, "opacity": 1, "filled": True}
    open_ = {**full, "filled": False, "fill": _BACKGROUND[night], "strokeWidth": 1.8}
    layers = []
    if shown["filled"].any():
        layers.append(layer(data, full, "datum.filled", **encodings))
    if not shown["filled"].all():
        layers.append(layer(data, open_, "!datum.filled", **encodings))
    return layers


def readable(colour: str, night: bool) -> str:
    """The colour; on a dark ground mixed with white as far as a contrast of 3 (WCAG 2.2, 1.4.11) needs it.

    >>> readable("#000000", False), readable("#D55E00", True), readable("#000000", True)
    ('#000000', '#D55E00', '#666666')
    """
    if not night:
        return colour
    ground = _luminance(_BACKGROUND[True])
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    for share in np.linspace(0, 1, 21):
        mixed = "#" + "".join(f"{round(c + share * (255 - c)):02X}" for c in channels)
        if (_luminance(mixed) + 0.05) / (ground + 0.05) >= 3:
            return mixed
    return "#FFFFFF"


def _luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _decades(low: float, high: float) -> Spec:
    """Powers of ten only; of many some. Where the axis has fewer than two, Vega's own choice."""
    powers = [float(10.0**k) for k in range(int(np.ceil(np.log10(low))), int(np.floor(np.log10(high))) + 1)]
    if len(powers) < 2:
        return {"format": "~g", "tickCount": 4}
    powers = powers[:: -(-len(powers) // 8)]
    labels = " : ".join(f"datum.value == {p!r} ? '{_power(p)}'" for p in powers) + " : ''"
    return {"values": powers, "labelExpr": labels}


def _power(value: float) -> str:
    """10⁻³ for 0.001; 1 and 10 as they are."""
    exponent = round(np.log10(value))
    if exponent in (0, 1):
        return f"{value:.0f}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _log_scale(low: float, high: float) -> Spec:
    return {"type": "log", "domain": [low, high], "nice": False}


def _half_decades(low: float, high: float) -> tuple[float, float]:
    """The next half decades below and above: ends that stay while the numbers between them move."""
    below, above = np.floor(2 * np.log10(low)) / 2, np.ceil(2 * np.log10(high)) / 2
    return float(10**below), float(10**above)


def _log_ends(medians: Array, largest: Array, threshold: float) -> tuple[float, float]:
    """Ends of an axis of σ that shows all medians above 0, all maxima and the threshold; two decades at least."""
    low = min(threshold, float(medians.min(initial=threshold))) / 1.5
    high = max(threshold, float(largest.max(initial=threshold))) * 1.2
    widen = max(1.0, float(np.sqrt(100 * low / high)))
    return _half_decades(low / widen, high * widen)


def _vertical(values: Array, logarithmic: bool, threshold: float | None = None) -> tuple[Array, Spec]:
    """The values, none below the floor of a logarithmic axis, and the scale and the axis."""
    if not logarithmic:
        return values, {"scale": {"zero": True}}
    positive = values[values > 0]
    if threshold is not None:
        low, high = _log_ends(positive, values, threshold)
    else:
        low, high = _half_decades(float(positive.min()) / 1.1, float(positive.max()) * 1.1)
    return np.fmax(values, low), {"scale": _log_scale(low, high), "axis": _decades(low, high)}


def _threshold(night: bool) -> list[Spec]:
    line = {"type": "rule", "strokeDash": [5, 4], "color": _MUTED[night], "strokeWidth": 1.2}
    words = {
        "type": "text",
        "align": "left",
        "baseline": "top",
        "dy": 4,
        "dx": 3,
        "color": _MUTED[night],
        "fontSize": 12,
    }
    here = number("y")
    place = {"y": here, "x": {"value": 0}, "text": category("text")}
    return [
        layer("threshold", line, y=here),
        # A rim in the colour of the ground, where a curve passes behind the words.
        layer("threshold", {**words, "stroke": _BACKGROUND[night], "strokeWidth": 4}, **place),
        layer("threshold", words, **place),
    ]


def _threshold_data(threshold: float) -> pd.DataFrame:
    return pd.DataFrame({"y": [threshold], "text": [f"τ = {threshold:g}"]})
