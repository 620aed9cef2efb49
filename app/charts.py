"""Charts for the screen, from the tidy tables: the same colours, markers and names as the figures for a paper.

Every function takes a frame and gives an Altair chart; none of them reads or computes a tensor. A logarithmic axis has
only positive numbers: what is smaller than the floor of the axis, and 0, lies on it, and the tooltip tells the value.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from bora_analysis import style
from bora_analysis.style import Look

Array = NDArray[Any]

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
# Full precision: what is rounded in a tooltip cannot be checked against the table.
_EXACT = ".10~g"


def looks_of(frame: pd.DataFrame) -> dict[str, Look]:
    """Adapter → look, from the whole table, before anything is left out of it."""
    pairs: Any = frame[["adapter", "method"]].drop_duplicates()
    return style.looks(pairs.itertuples(index=False, name=None))


def metric_name(metric: str) -> str:
    """A metric in a menu, and so in the URL: without its formula, which has the threshold in it.

    >>> metric_name("stable_rank"), metric_name("energy_rank_99")
    ('stable rank', 'energy rank, 99 %')
    """
    name, formula = style.METRICS[metric]
    return f"{name}, {formula.partition(' of')[0]}" if metric.startswith("energy_rank") else name


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


def spectrum(table: pd.DataFrame, looks: Mapping[str, Look], threshold: float, night: bool) -> Any:
    """σ against its index, logarithmic: line, band where there are several modules, threshold, bounds.

    Parameters
    ----------
    table : of :func:`curves`.
    """
    medians = table["median"].to_numpy(float)
    floor, ceiling = _log_ends(medians[medians > 0], table["largest"].to_numpy(float), threshold)
    shown = table.assign(
        label=_labels(table, looks),
        curve=table["adapter"] + " " + table["bound"].astype(str),
        y=np.fmax(table["median"], floor),
        low=np.fmax(table["least"], floor),
        high=np.fmax(table["largest"], floor),
        floor=floor,
    )
    several = bool((table["modules"] > 1).any())
    x = _index_axis(table["index"], table["bound"])
    title = "singular value σ" + (", median and range" if several else "")
    scale = alt.Scale(type="log", domain=[floor, ceiling], nice=False)
    y = alt.Y("y:Q", title=title, scale=scale, axis=_decades(scale))
    colour, shape, dash = _encodings(shown, looks, night)
    tips = [
        alt.Tooltip("label:N", title="adapter"),
        alt.Tooltip("index:Q"),
        alt.Tooltip("median:Q", title="median σ" if several else "σ", format=_EXACT),
    ]
    if several:
        tips += [alt.Tooltip("least:Q", format=_EXACT), alt.Tooltip("largest:Q", format=_EXACT)]
        tips += [alt.Tooltip("modules:Q", title="modules")]
    base = alt.Chart(shown).encode(x=x, detail="curve:N", color=colour)
    at_end = shown[shown["index"] == shown["bound"]]
    ends = alt.Chart(at_end).encode(x=x, color=colour)
    layers: list[Any] = []
    if several:
        layers.append(base.mark_area(opacity=0.16, clip=True).encode(y=alt.Y("low:Q"), y2="high:Q"))
    layers += [
        base.mark_line(strokeWidth=2, clip=True).encode(y=y, strokeDash=dash),
        ends.mark_rule(strokeWidth=1, opacity=0.7).encode(y=y, y2="floor:Q"),
        *_markers(at_end, looks, night, 70, x=x, y=y, color=colour, shape=shape),
        base.mark_point(size=90, opacity=0, filled=True).encode(y=y, tooltip=tips),
        *_threshold(threshold, "y", night),
    ]
    return _layered(430, *layers)


def over_layers(table: pd.DataFrame, metric: str, threshold: float, looks: Mapping[str, Look], night: bool) -> Any:
    """A metric over the layers, with the rank bound where the metric counts directions below it.

    Parameters
    ----------
    table : columns adapter, layer, modules, rank_bound and the metric; one row per adapter and layer.
    """
    values = table[metric].to_numpy(float)
    positive = values[values > 0]
    logarithmic = metric == "energy" and positive.size > 0 and float(positive.max() / positive.min()) > 20
    shown = table.assign(label=_labels(table, looks), y=table[metric])
    if logarithmic:
        shown["y"], scale = _log_scale(values, None)
    else:
        scale = alt.Scale(zero=True)
    name = style.metric_label(metric, threshold, "  ")
    axis = _decades(scale) if logarithmic else alt.Axis()
    x = alt.X(
        "layer:Q",
        title="layer",
        axis=alt.Axis(tickMinStep=1, format="d", grid=False),
        scale=alt.Scale(zero=False, nice=False, padding=8),
    )
    y = alt.Y("y:Q", title=name, scale=scale, axis=axis)
    colour, shape, dash = _encodings(shown, looks, night)
    tips = [
        alt.Tooltip("label:N", title="adapter"),
        alt.Tooltip("layer:Q"),
        alt.Tooltip(f"{metric}:Q", title=style.METRICS[metric][0], format=_EXACT),
        alt.Tooltip("rank_bound:Q", title="bound", format=_EXACT),
        alt.Tooltip("modules:Q", title="modules"),
    ]
    base = alt.Chart(shown).encode(x=x, color=colour)
    layers: list[Any] = []
    if metric == "effective_rank":
        layers.append(base.mark_line(strokeWidth=1, strokeDash=[4, 3], opacity=0.8).encode(y=alt.Y("rank_bound:Q")))
    layers += [
        base.mark_line(strokeWidth=1.5, clip=True).encode(y=y, strokeDash=dash),
        *_markers(shown, looks, night, 55, x=x, y=y, color=colour, shape=shape, tooltip=tips),
    ]
    return _layered(340, *layers)


def runs(means: pd.DataFrame, metric: str, threshold: float, looks: Mapping[str, Look], night: bool) -> Any:
    """A metric against the training step, a line per run.

    Parameters
    ----------
    means : columns adapter, step and the metric.
    """
    shown = means.assign(label=_labels(means, looks))
    colour, shape, dash = _encodings(shown, looks, night)
    span = alt.Scale(zero=False, nice=False, padding=8)
    x = alt.X("step:Q", title="training step", axis=_step_axis(means["step"]), scale=span)
    y = alt.Y(f"{metric}:Q", title=style.metric_label(metric, threshold, "  "))
    tips = [alt.Tooltip("label:N", title="run"), alt.Tooltip("step:Q"), alt.Tooltip(f"{metric}:Q", format=_EXACT)]
    base = alt.Chart(shown).encode(x=x, y=y, color=colour)
    points = _markers(shown, looks, night, 55, x=x, y=y, color=colour, shape=shape, tooltip=tips)
    return _layered(320, base.mark_line(strokeWidth=2).encode(strokeDash=dash), *points)


def heatmap(cells: pd.DataFrame, metric: str, threshold: float, chosen: tuple[str, str], night: bool) -> Any:
    """A metric over layers and projections; a click on a cell is the selection ``cell``.

    Parameters
    ----------
    cells : columns layer (text), projection, modules and the metric, in the order of the axes.
    chosen : layer and projection of the cell to frame.
    """
    layers = list(dict.fromkeys(cells["layer"]))
    projections = style.projections_in_order(cells["projection"])
    values = cells[metric].to_numpy(float)
    positive = values[values > 0]
    spreads = positive.size == values.size and values.size and float(positive.max() / positive.min()) > 100
    scale = alt.Scale(scheme="viridis", type="log" if spreads else "linear", zero=False)
    name = style.metric_label(metric, threshold, "  ")
    legend = alt.Legend(
        title=name,
        orient="top",
        format="~g",
        tickCount=5,
        gradientLength=alt.ExprRef("min(width, 320)"),
        titleLimit=600,
    )
    click = alt.selection_point(name="cell", fields=["layer", "projection"], toggle=False)
    # About fifteen labels have room on a phone; every layer is in its cell's tooltip.
    every = max(1, -(-len(layers) // 16))
    x = alt.X(
        "layer:O",
        sort=layers,
        title="layer",
        axis=alt.Axis(labelAngle=0, values=layers[::every], ticks=False, domain=False),
    )
    y = alt.Y("projection:N", sort=projections, title=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=120))
    base = alt.Chart(cells).encode(x=x, y=y)
    tips = [
        alt.Tooltip("layer:N"),
        alt.Tooltip("projection:N"),
        alt.Tooltip(f"{metric}:Q", title=style.METRICS[metric][0], format=_EXACT),
        alt.Tooltip("modules:Q", title="modules in the cell"),
    ]
    grid = (
        base.mark_rect(cursor="pointer", cornerRadius=2, stroke=_BACKGROUND[night], strokeWidth=1)
        .encode(color=alt.Color(f"{metric}:Q", scale=scale, legend=legend), tooltip=tips)
        .add_params(click)
    )
    here = cells[(cells["layer"] == chosen[0]) & (cells["projection"] == chosen[1])]
    frame = (
        alt.Chart(here)
        .mark_rect(fillOpacity=0, stroke=style.VERMILLION, strokeWidth=3, cornerRadius=2, tooltip=None)
        .encode(x=x, y=y)
    )
    return _layered(38 * max(2, len(projections)) + 150, grid, frame)


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
) -> Any:
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
    logarithmic = positive.size > 0 and float(positive.max() / positive.min()) > 20
    shown = table.assign(y=values)
    if threshold is not None or logarithmic:
        shown["y"], scale = _log_scale(values, threshold)
        logarithmic = True
    else:
        scale = alt.Scale(zero=True)
    span = alt.Scale(zero=False, nice=False, padding=8)
    across = alt.X(f"{x}:Q", title=titles[0], axis=_step_axis(table[x]), scale=span)
    up = alt.Y("y:Q", title=titles[1], scale=scale, axis=_decades(scale) if logarithmic else alt.Axis())
    named = sorted(table[by].unique().tolist())
    named = named[:: -(-len(named) // 8)]
    legend = alt.Legend(title=titles[2], orient="top", format="d", values=named, symbolOpacity=1)
    ends = [float(table[by].min()), float(table[by].max())]
    # The brightest yellow is lost on white, the darkest violet on black.
    shades = alt.SchemeParams(name="viridis", extent=[0.2, 1.0] if night else [0.0, 0.92])
    colour = alt.Color(f"{by}:Q", scale=alt.Scale(scheme=shades, domain=ends), legend=legend)
    tips = [
        alt.Tooltip(f"{by}:N", title=titles[2]),
        alt.Tooltip(f"{x}:Q", title=titles[0]),
        alt.Tooltip(f"{y}:Q", title=titles[1], format=_EXACT),
    ]
    thin = shown[~shown["bold"]] if "bold" in shown else shown
    base = alt.Chart(thin).encode(x=across, y=up, detail=f"{by}:N", color=colour)
    layers: list[Any] = [
        base.mark_line(strokeWidth=1.5, opacity=0.9),
        base.mark_point(size=28, filled=True, opacity=0.9).encode(tooltip=tips),
    ]
    if bold is not None and "bold" in shown:
        ink = _ink(night)
        heavy = alt.Chart(shown[shown["bold"]].assign(bold_name=bold)).encode(x=across, y=up)
        layers += [
            heavy.mark_line(strokeWidth=3, color=ink),
            heavy.mark_point(size=45, filled=True, color=ink, opacity=1).encode(
                tooltip=[alt.Tooltip("bold_name:N", title=titles[2]), *tips[1:]]
            ),
        ]
    if threshold is not None:
        layers += _threshold(threshold, "y", night)
    return _layered(400, *layers)


def ranks_by_step(table: pd.DataFrame, night: bool) -> Any:
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
    x = alt.X(
        "step:Q",
        title="training step",
        axis=_step_axis(table["step"]),
        scale=alt.Scale(zero=False, nice=False, padding=8),
    )
    y = alt.Y("rank:Q", title="rank, mean over the modules", scale=alt.Scale(zero=True))
    legend = alt.Legend(title=None, orient="top", symbolType="square", symbolSize=120, symbolOpacity=1)
    scale = alt.Scale(domain=list(strokes)[::-1], range=[readable(c, night) for c, _ in strokes.values()][::-1])
    tips = [alt.Tooltip("factor:N"), alt.Tooltip("step:Q"), alt.Tooltip("rank:Q", format=_EXACT)]
    colour = alt.Color("factor:N", scale=scale, legend=legend)
    layers: list[Any] = []
    for factor, (_, width) in strokes.items():
        base = alt.Chart(table[table["factor"] == factor]).encode(x=x, y=y, color=colour, tooltip=tips)
        opacity = 0.35 if factor == "bound" else 1.0
        layers.append(base.mark_line(strokeWidth=width, opacity=opacity, strokeCap="round"))
        layers.append(base.mark_point(size=(width + 4) ** 2, filled=True, opacity=opacity))
    return _layered(340, *layers)


def picture(
    image: Array,
    size: tuple[int, int],
    lines: tuple[Sequence[float], Sequence[float]],
    title: str,
    names: tuple[str, str],
) -> Any:
    """A matrix as an image with lines between its blocks. Row 1 is at the top.

    Parameters
    ----------
    image : (rows, columns), not negative; any resolution.
    size : m, n of the matrix, for the axes.
    lines : row and column positions of the lines, in entries of the matrix.
    title : of the colours.
    names : of the rows and the columns.
    """
    from matplotlib import colormaps  # here: the other pages go without it
    from PIL import Image

    m, n = size
    top = float(image.max(initial=0.0))
    pixels = np.round(255 * colormaps["viridis"](image / (top or 1.0))[..., :3]).astype(np.uint8)
    buffer = BytesIO()
    # Enlarged here, since browsers smooth what they enlarge.
    grow = tuple(max(1, -(-512 // edge)) for edge in image.shape)
    Image.fromarray(np.repeat(np.repeat(pixels, grow[0], 0), grow[1], 1)).save(buffer, "png", compress_level=1)
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    bare = alt.Axis(grid=False, format=",d", tickCount=4, tickMinStep=1)
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, n], nice=False), title=names[1], axis=bare)
    y = alt.Y("y:Q", scale=alt.Scale(domain=[0, m], nice=False, reverse=True), title=names[0], axis=bare)
    painted = (
        alt.Chart(pd.DataFrame({"x": [0.0], "y": [0.0], "url": [url]}))
        .mark_image(
            width=alt.ExprRef("width"), height=alt.ExprRef("height"), aspect=False, align="left", baseline="top"
        )
        .encode(x=x, y=y, url="url:N")
    )
    scale = alt.Scale(scheme="viridis", domain=[0, top or 1.0])
    legend = alt.Legend(title=title, orient="top", format=".3~g", gradientLength=180, titleLimit=400, tickCount=3)
    key = (
        alt.Chart(pd.DataFrame({"x": [0.0, 0.0], "y": [0.0, 0.0], "value": [0.0, top]}))
        .mark_point(opacity=0)
        .encode(x=x, y=y, color=alt.Color("value:Q", scale=scale, legend=legend))
    )
    places: tuple[tuple[dict[str, Any], Sequence[float]], ...] = (({"y": y}, lines[0]), ({"x": x}, lines[1]))
    rules = [
        alt.Chart(pd.DataFrame({name: list(at) for name in axis}))
        .mark_rule(color="#FFFFFF", opacity=0.55, strokeWidth=0.8)
        .encode(**axis)
        for axis, at in places
        if len(at)
    ]
    return _layered(430, painted, key, *rules)


def _index_axis(index: pd.Series, bounds: pd.Series) -> alt.X:
    """Logarithmic where the bounds lie so far apart that the shortest curve would be a stroke."""
    most, least = float(index.max()), float(bounds.min())
    wide = most > 40 * least
    scale = alt.Scale(type="log" if wide else "linear", domain=[1 if wide else 0, most * 1.02], nice=False)
    axis = alt.Axis(tickMinStep=1, grid=False, format="d", labelOverlap=True)
    return alt.X("index:Q", title="index of the singular value", axis=axis, scale=scale)


def _step_axis(values: pd.Series) -> alt.Axis:
    """Whole numbers; the very ones that there are, if they are few."""
    stops = sorted(int(value) for value in values.unique())
    axis = alt.Axis(tickMinStep=1, format="d", grid=False, labelOverlap=True)
    if len(stops) <= 12:
        axis.values = stops
    return axis


class _Trusted(alt.LayerChart):
    """A chart that is not held against Vega-Lite's schema each time it is drawn, which took most of a redraw."""

    def to_dict(self, validate: bool = True, **options: Any) -> dict[str, Any]:
        return super().to_dict(validate=False, **options)


def _layered(height: int, *layers: Any) -> Any:
    return _Trusted(layer=list(layers), height=height)


def _labels(table: pd.DataFrame, looks: Mapping[str, Look]) -> list[str]:
    return [looks[adapter].label for adapter in table["adapter"]]


def _encodings(shown: pd.DataFrame, looks: Mapping[str, Look], night: bool) -> tuple[Any, Any, Any]:
    """Colour, shape and dash by the label, with one legend."""
    here = [looks[adapter] for adapter in dict.fromkeys(shown["adapter"])]
    domain = [look.label for look in here]
    legend = alt.Legend(
        title=None,
        orient="top",
        labelLimit=340,
        symbolSize=90,
        symbolOpacity=1,
        symbolStrokeWidth=2,
        columns=alt.ExprRef("max(1, floor(width / 290))"),
    )

    def scale(values: list[Any]) -> alt.Scale:
        return alt.Scale(domain=domain, range=values)

    return (
        alt.Color("label:N", scale=scale([readable(look.colour, night) for look in here]), legend=legend),
        alt.Shape("label:N", scale=scale([SHAPES[look.marker] for look in here]), legend=legend),
        # By another field: Vega-Lite would merge its (absent) legend with that of the label.
        alt.StrokeDash(
            "adapter:N",
            scale=alt.Scale(
                domain=list(dict.fromkeys(shown["adapter"])),
                range=[[2 * x for x in look.dash] or [1, 0] for look in here],
            ),
            legend=None,
        ),
    )


def _markers(shown: pd.DataFrame, looks: Mapping[str, Look], night: bool, size: int, **encodings: Any) -> list[Any]:
    """Filled and open markers, as the figures have them."""
    filled = np.array([looks[adapter].filled for adapter in shown["adapter"]], dtype=bool)
    layers = []
    for part, ground in ((shown[filled], None), (shown[~filled], _BACKGROUND[night])):
        if len(part):
            options: dict[str, Any] = (
                {"filled": True} if ground is None else {"filled": False, "fill": ground, "strokeWidth": 1.8}
            )
            layers.append(alt.Chart(part).mark_point(size=size, opacity=1, **options).encode(**encodings))
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


def _ink(night: bool) -> str:
    return "#E8E6E3" if night else "#1A1A1A"


def _decades(scale: alt.Scale) -> alt.Axis:
    """Powers of ten only; of many some. Where the axis has fewer than two, Vega's own choice."""
    low, high = scale.to_dict()["domain"]
    powers = [float(10.0**k) for k in range(int(np.ceil(np.log10(low))), int(np.floor(np.log10(high))) + 1)]
    if len(powers) < 2:
        return alt.Axis(format="~g", tickCount=4)
    powers = powers[:: -(-len(powers) // 8)]
    labels = " : ".join(f"datum.value == {p!r} ? '{_power(p)}'" for p in powers) + " : ''"
    return alt.Axis(values=powers, labelExpr=labels)


def _power(value: float) -> str:
    """10⁻³ for 0.001; 1 and 10 as they are."""
    exponent = round(np.log10(value))
    if exponent in (0, 1):
        return f"{value:.0f}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _log_ends(medians: Array, largest: Array, threshold: float) -> tuple[float, float]:
    """Ends of an axis of σ that shows all medians above 0, all maxima and the threshold; two decades at least."""
    low = min(threshold, float(medians.min(initial=threshold))) / 3
    high = max(threshold, float(largest.max(initial=threshold))) * 2
    widen = max(1.0, float(np.sqrt(100 * low / high)))
    return low / widen, high * widen


def _log_scale(values: Array, threshold: float | None) -> tuple[Array, alt.Scale]:
    """The values, none below the floor of the logarithmic axis, and the axis."""
    positive = values[values > 0]
    if threshold is not None:
        low, high = _log_ends(positive, values, threshold)
    else:
        low, high = float(positive.min()) / 1.5, float(positive.max()) * 1.5
    return np.fmax(values, low), alt.Scale(type="log", domain=[low, high], nice=False)


def _threshold(threshold: float, axis: str, night: bool) -> list[Any]:
    data = pd.DataFrame({axis: [threshold], "text": [f"τ = {threshold:g}"]})
    line = alt.Chart(data).mark_rule(strokeDash=[5, 4], color=_MUTED[night], strokeWidth=1.2).encode(y=f"{axis}:Q")
    words = (
        alt.Chart(data)
        .mark_text(align="left", baseline="top", dy=4, dx=3, color=_MUTED[night], fontSize=12)
        .encode(y=f"{axis}:Q", x=alt.value(0), text="text:N")
    )
    return [line, words]
