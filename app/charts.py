"""Charts of adapters, from the tidy tables: the same colours, markers and names as the figures for a paper.

Every function takes a frame and gives a :class:`Chart`; none of them reads or computes a tensor.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd

from app import palette, vega
from app.pictures import Picture
from bora_analysis import style
from bora_analysis.analysis.views import sigma_limits, spreads
from bora_analysis.linalg import Array
from bora_analysis.metrics import METRICS
from bora_analysis.style import Look
from bora_analysis.threshold import Threshold

#: Between the cells of a heat map.
GAP = {"strokeWidth": 1, "cornerRadius": 2}


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


def spectrum(
    curves: pd.DataFrame,
    looks: Mapping[str, Look],
    threshold: Threshold,
    limits: Mapping[str, float],
    null: pd.DataFrame | None = None,
) -> vega.Chart:
    """``views.curves``, σ logarithmic: line, band where there are several modules, threshold, bounds.

    Parameters
    ----------
    limits : ``views.limits_of``; a threshold that differs between adapters is a line of each.
    null : ``views.null_curves``: dotted, with its band.
    """
    floor, ceiling = vega.half_decades(*sigma_limits(curves["median"], curves["largest"], *limits.values()))
    ends = {"y": "median", "low": "least", "high": "largest"}
    shown = vega.dressed(curves, looks, curve=_curves(curves), floor=floor, **_at_least(floor, curves, ends))
    several = bool((curves["modules"] > 1).any())
    x = vega.index_axis(curves["index"], curves["bound"])
    title = "singular value σ" + (", median and range" if several else "")
    y = vega.number("y", title, scale=vega.log_scale(domain=[floor, ceiling]), axis=vega.decades(floor, ceiling))
    colour, shape, dash = vega.by_adapter(shown, looks)
    more = {"least": "least", "largest": "largest", "modules": "modules"} if several else {}
    tips = vega.tooltip(shown, label="adapter", index="index", median="median σ" if several else "σ", **more)
    each = {"x": x, "color": colour, "detail": vega.category("curve")}
    lowest = min((limit for limit in limits.values() if limit > 0), default=floor)
    above, data = vega.threshold_line(threshold.value if threshold.absolute else lowest, threshold.formula)
    if not threshold.absolute:  # the words stand at the lowest of the lines
        each_own = pd.DataFrame({"adapter": [*limits], "y": [max(limit, floor) for limit in limits.values()]})
        above[0] = vega.layer("limits", vega.rule(1.2, strokeDash=[5, 4]), y=vega.number("y"), color=colour)
        data["limits"] = vega.dressed(each_own, looks)
    layers = [
        vega.layer("curves", vega.line(2, clip=True), **each, y=y, strokeDash=dash),
        vega.layer("ends", vega.rule(1, opacity=0.7), x=x, color=colour, y=y, y2={"field": "floor"}),
        *vega.markers("ends", shown, 70, x=x, y=y, color=colour, shape=shape),
        vega.layer("curves", vega.point(90, opacity=0), **each, y=y, tooltip=tips),
        *above,
    ]
    if several:
        band = {"type": "area", "opacity": 0.16, "clip": True}
        layers.insert(0, vega.layer("curves", band, **each, y=vega.number("low"), y2={"field": "high"}))
    if null is not None and len(null):
        places = {name: name for name in ("mean", "low", "high")}
        kept = null.drop(columns=list(places))
        dotted = vega.dressed(kept, looks, curve=_curves(null), **_at_least(floor, null, places))
        own = {"x": x, "color": colour, "detail": vega.category("curve")}
        area = {"type": "area", "opacity": 0.3, "clip": True}
        mean = vega.number("mean")
        layers[:0] = [
            vega.layer("null", area, **own, y=vega.number("low"), y2={"field": "high"}),
            vega.layer("null", vega.line(1.5, clip=True, strokeDash=vega.DOTTED), **own, y=mean),
        ]
        data["null"] = dotted
    data |= {"curves": shown, "ends": shown[shown["index"] == shown["bound"]]}
    return vega.layered(430 + vega.legend_height(shown, vega.WHOLE), layers, data)


def _curves(frame: pd.DataFrame) -> list[str]:
    """A name for each curve: an adapter has one for each bound."""
    return [f"{adapter} {bound}" for adapter, bound in zip(frame["adapter"], frame["bound"], strict=True)]


def _at_least(floor: float, frame: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, Array]:
    """Name → a column of the frame, none of whose values lies below the floor."""
    return {name: np.fmax(frame[column].to_numpy(float), floor) for name, column in columns.items()}


def over_layers(table: pd.DataFrame, metric: str, looks: Mapping[str, Look]) -> vega.Chart:
    """A metric of ``views.by_layer``, with the rank bound where the metric counts directions below it."""
    values, up = vega.vertical(table[metric], metric == "energy" and spreads(table[metric]))
    shown = vega.dressed(table, looks, y=values)
    x = vega.number("layer", "layer", axis={"tickMinStep": 1, "format": "d", "grid": False}, scale=vega.SPAN)
    y = vega.number("y", metric_title(metric), **up)
    colour, shape, dash = vega.by_adapter(shown, looks)
    named = {metric: METRICS[metric].label, "rank_bound": "bound", "modules": "modules"}
    tips = vega.tooltip(shown, label="adapter", layer="layer", **named)
    layers = [
        vega.layer("layers", vega.line(1.5, clip=True), x=x, y=y, color=colour, strokeDash=dash),
        *vega.markers(
            "layers", shown, vega.marker_size(shown["layer"]), x=x, y=y, color=colour, shape=shape, tooltip=tips
        ),
    ]
    if metric == "effective_rank":
        dashed = vega.line(1, strokeDash=vega.DASHED)
        layers.insert(0, vega.layer("layers", dashed, x=x, y=vega.number("rank_bound"), color=colour))
    return vega.layered(340 + vega.legend_height(shown, vega.HALF), layers, {"layers": shown})


def runs(means: pd.DataFrame, metric: str, looks: Mapping[str, Look]) -> vega.Chart:
    """A metric against the training step, a line per run; columns adapter, step and the metric."""
    values, up = vega.vertical(means[metric], spreads(means[metric]))
    shown = vega.dressed(means, looks, y=values)
    colour, shape, dash = vega.by_adapter(shown, looks)
    x, y = vega.step_axis("step", "training step", means["step"]), vega.number("y", metric_title(metric), **up)
    tips = vega.tooltip(shown, label="run", step="step", **{metric: METRICS[metric].label})
    lines = vega.layer("runs", vega.line(2), x=x, y=y, color=colour, strokeDash=dash)
    points = vega.markers("runs", shown, 55, x=x, y=y, color=colour, shape=shape, tooltip=tips)
    return vega.layered(320 + vega.legend_height(shown, vega.WHOLE), [lines, *points], {"runs": shown})


def heatmap(cells: pd.DataFrame, metric: str, chosen: tuple[str, str]) -> vega.Chart:
    """A metric over layers and projections; a click on a cell is the selection ``cell``.

    The colours begin at 0, or are logarithmic and say so; the numbers stand in the cells where these have room.

    Parameters
    ----------
    cells : columns layer (text), projection, modules and the metric, in the order of the axes.
    chosen : layer and projection of the cell to frame until one is clicked. From then on the browser frames what was
        clicked, so that a click need not send the chart again: one with a selection is drawn anew whenever it is sent.
    """
    names, projections = list(dict.fromkeys(cells["layer"])), style.projections_in_order(cells["projection"])
    height = 38 * max(2, len(projections)) + 150
    logarithmic = spreads(cells[metric])
    gradient = {
        "labelExpr": "format(datum.value, '.4~r')",
        "tickCount": 5,
        "gradientLength": {"expr": "min(width, 320)"},
        "titleLimit": 600,
    }
    key = {"title": metric_title(metric) + (", logarithmic" if logarithmic else ""), "orient": "top", **gradient}
    # About fifteen labels have room on a phone; every layer is in its cell's tooltip.
    every = max(1, -(-len(names) // 16))
    bare = {"ticks": False, "domain": False}
    x_axis, y_axis = {"labelAngle": 0, "values": names[::every], **bare}, {"labelLimit": 120, **bare}
    x = {"field": "layer", "type": "ordinal", "sort": names, "title": "layer", "axis": x_axis}
    y = vega.category("projection", sort=projections, axis={"title": None, **y_axis})
    named = {metric: METRICS[metric].label, "modules": "modules in the cell"}
    tips = vega.tooltip(cells, layer="layer", projection="projection", **named)
    scale = {"scheme": "viridis", "type": "log" if logarithmic else "linear", "zero": not logarithmic, "nice": False}
    # A gap between cells where they have room: of 500 layers nothing else would be seen.
    gap = {name: {"expr": f"width / {len(names)} >= 5 ? {size} : 0"} for name, size in GAP.items()}
    cell = {"type": "rect", "cursor": "pointer", "stroke": palette.theme().ground, **gap}
    grid = vega.layer("cells", cell, x=x, y=y, color=vega.number(metric, scale=scale, legend=key), tooltip=tips)
    room = {"test": f"width / {len(names)} > 6.5 * datum.characters + 6", "value": 1}
    ink = {"condition": {"test": "datum.ink == 'white'", "value": "white"}, "value": "black"}
    text = {"type": "text", "fontSize": 11}
    numbers = vega.layer(
        "numbers", text, x=x, y=y, text=vega.category("text"), color=ink, opacity={"condition": room, "value": 0}
    )
    ring = {"type": "rect", "fillOpacity": 0, "stroke": style.VERMILLION, "strokeWidth": 3, "cornerRadius": 2}
    until = {"condition": {"test": "length(data('cell_store'))", "value": 0}, "value": 1}
    frames = vega.layer("chosen", ring, x=x, y=y, opacity=until), vega.layer("cells", ring, x=x, y=y)
    frames[1]["transform"] = [{"filter": {"param": "cell", "empty": False}}]
    click = {"type": "point", "fields": ["layer", "projection"], "toggle": False}
    here = cells[(cells["layer"] == chosen[0]) & (cells["projection"] == chosen[1])]
    params = [{"name": "cell", "select": click, "views": ["grid"]}]
    layers = [{**grid, "name": "grid"}, numbers, *frames]
    data = {"cells": cells, "chosen": here, "numbers": _numbers(cells, metric, logarithmic)}
    return vega.layered(height, layers, data, params=params)


def _numbers(cells: pd.DataFrame, metric: str, logarithmic: bool) -> pd.DataFrame:
    """What stands in the cells of a heat map: text and its ink, and how many characters the longest has."""
    known: Any = cells[cells[metric].notna()]
    values = known[metric].to_numpy(float)
    texts = [f"{value:.0f}" if value == round(value) and value < 1e4 else f"{value:.3g}" for value in values]
    places = np.log(values) if logarithmic else values
    low = places.min() if logarithmic else min(0.0, places.min(initial=0.0))
    span = float(places.max(initial=low) - low) or 1.0
    inks = [style.ink_on_viridis(float(share)) for share in (places - low) / span]
    more = {"text": texts, "ink": inks, "characters": max(map(len, texts), default=0)}
    return known[["layer", "projection"]].assign(**more)


def families(
    table: pd.DataFrame,
    titles: Mapping[str, str],
    *,
    bold: str | None = None,
    threshold: tuple[float, str] | None = None,
    logarithmic: bool | None = None,
    null: pd.DataFrame | None = None,
) -> vega.Chart:
    """A family of lines, coloured by a number (depth, slot, step), with one of them, or a mean, in bold.

    Parameters
    ----------
    titles : column → title, of the x axis, the y axis and the colours.
    bold : the name of the bold line in its tooltip; the column ``bold`` is then true in its rows.
    threshold : the value to be marked, where y is a singular value, and what it is called.
    logarithmic : whether the y axis is; by default for singular values, and where the values spread.
    null : columns x, mean, low, high: dotted, with its band.
    """
    x, y, by = titles
    if logarithmic is None:
        logarithmic = y == "singular_value" or spreads(table[y])
    values, axis = vega.vertical(table[y], logarithmic, *(threshold[:1] if threshold else ()))
    shown = table.assign(y=values)
    across, up = vega.step_axis(x, titles[x], table[x]), vega.number("y", titles[y], **axis)
    named = sorted(table[by].unique().tolist())
    key = {"title": titles[by], "orient": "top", "format": "d", "symbolOpacity": 1}
    if len(named) <= 12:  # each has its entry
        each = 34 + 8 * max(len(str(int(value))) for value in named)
        key |= {"values": named, "type": "symbol", "columns": {"expr": f"max(1, floor(width / {each}))"}}
    else:
        key |= {"type": "gradient", "gradientLength": {"expr": "min(width, 320)"}, "tickCount": 6}
    shades = {"name": "viridis", "extent": list(palette.theme().viridis)}
    ends = [float(table[by].min()), float(table[by].max())]
    colour = vega.number(by, scale={"scheme": shades, "domain": ends}, legend=key)
    tips = vega.tooltip(shown, **{name: titles[name] for name in (by, x, y)})
    thin = {"x": across, "y": up, "color": colour, "detail": vega.category(by)}
    layers = [
        vega.layer("lines", vega.line(1.5, opacity=0.9), **thin),
        vega.layer("lines", vega.point(28, opacity=0.9), **thin, tooltip=tips),
    ]
    data = {"lines": shown}
    if bold is not None:
        data = {"lines": shown[~shown["bold"]], "bold": shown[shown["bold"]].assign(bold_name=bold)}
        heavy, tips = {"x": across, "y": up}, [vega.category("bold_name", titles[by]), *tips[1:]]
        layers += [
            vega.layer("bold", vega.line(3, color=palette.theme().ink), **heavy),
            vega.layer("bold", vega.point(45, color=palette.theme().ink), **heavy, tooltip=tips),
        ]
    if threshold is not None:
        above, more = vega.threshold_line(*threshold)
        layers, data = layers + above, data | more
    if null is not None and len(null):
        grey, floor = palette.theme().guide, values.min() if logarithmic else -np.inf
        beside = null.assign(**{name: np.fmax(null[name], floor) for name in ("mean", "low", "high")})
        area = {"type": "area", "opacity": 0.3, "clip": True, "color": grey}
        dotted = vega.line(1.8, clip=True, strokeDash=vega.DOTTED, color=grey)
        named = {x: titles[x], "mean": "mean of random factors", "low": "least", "high": "largest"}
        dots = vega.point(40, opacity=0)
        layers[:0] = [
            vega.layer("null", area, x=across, y=vega.number("low"), y2={"field": "high"}),
            vega.layer("null", dotted, x=across, y=vega.number("mean")),
        ]
        layers.append(vega.layer("null", dots, x=across, y=vega.number("mean"), tooltip=vega.tooltip(null, **named)))
        data |= {"null": beside}
    return vega.layered(400, layers, data)


def ranks_by_step(table: pd.DataFrame) -> vega.Chart:
    """Mean ranks of B', Σ', A' against the step; columns step, factor, rank."""
    # Equal ranks are common: the widest line lies below, so that all show.
    strokes = {
        "bound": (palette.theme().guide, 12.0, 0.35),
        "A′": (style.GREEN, 8.0, 1.0),
        "Σ′": (style.VERMILLION, 4.5, 1.0),
        "B′": (style.BLUE, 1.8, 1.0),
    }
    colours = {factor: palette.on_screen(colour) for factor, (colour, _, _) in reversed(strokes.items())}
    each = {
        "x": vega.step_axis("step", "training step", table["step"]),
        "y": vega.number("rank", "rank, mean over the modules", scale={"zero": True}),
        "color": vega.scaled("factor", colours, vega.legend(symbolType="square", symbolSize=120)),
        "tooltip": vega.tooltip(table, factor="factor", step="step", rank="rank"),
    }
    layers = []
    for factor, (_, width, opacity) in strokes.items():
        marks = vega.line(width, opacity=opacity, strokeCap="round"), vega.point((width + 4) ** 2, opacity=opacity)
        layers += [vega.layer("ranks", mark, f"datum.factor == '{factor}'", **each) for mark in marks]
    return vega.layered(340, layers, {"ranks": table})


def picture(shown: Picture, title: str, names: tuple[str, str]) -> vega.Chart:
    """A matrix as an image with lines between its blocks; titles of the colours, the rows and the columns."""
    m, n = shown.size
    top = float(shown.image.max(initial=0.0)) or 1.0
    bare = {"grid": False, "format": ",d", "tickCount": 4, "tickMinStep": 1}
    x = vega.number("x", names[1], scale={"domain": [0, n], "nice": False}, axis=bare)
    y = vega.number("y", names[0], scale={"domain": [0, m], "nice": False, "reverse": True}, axis=bare)
    place = {"width": {"expr": "width"}, "height": {"expr": "height"}, "align": "left", "baseline": "top"}
    painted = {"type": "image", **place, "aspect": False, "smooth": False}
    gradient = {"format": ".3~g", "gradientLength": 180, "titleLimit": 400, "tickCount": 3}
    key = {"title": title, "orient": "top", **gradient}
    colour = vega.number("value", scale={"scheme": "viridis", "zero": True, "nice": False}, legend=key)
    border = vega.rule(0.8, color=palette.OVER_PICTURE, opacity=0.55)
    layers = [
        vega.layer("image", painted, x=x, y=y, url={"field": "url", "type": "nominal"}),
        vega.layer("key", vega.point(1, opacity=0), x=x, y=y, color=colour),
        vega.layer("rows", border, y=y),
        vega.layer("columns", border, x=x),
    ]
    data = {
        "image": pd.DataFrame({"x": [0.0], "y": [0.0], "url": [_png(shown.image / top)]}),
        "key": pd.DataFrame({"x": [0.0, 0.0], "y": [0.0, 0.0], "value": [0.0, top]}),
        "rows": pd.DataFrame({"y": np.asarray(shown.rows, dtype=float)}),
        "columns": pd.DataFrame({"x": np.asarray(shown.columns, dtype=float)}),
    }
    return vega.layered(430, layers, data)


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
