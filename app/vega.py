"""What charts for the screen are made of: specifications, marks, axes and legends, in the looks of the figures.

A specification is plain Vega-Lite and depends on as little as possible, the data stand beside it under names: while
only data change, the browser updates the picture that it has, which takes a tenth of drawing it anew. So the ends of
logarithmic axes lie on half decades, and a threshold is data. A logarithmic axis has only positive numbers: what is
smaller than the floor of the axis, and 0, lies on it, and the tooltip tells the value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from pandas.api.types import is_numeric_dtype

from app import palette
from app.palette import on_screen
from bora_analysis import style
from bora_analysis.analysis.views import bounds_spread, sigma_limits
from bora_analysis.linalg import Array
from bora_analysis.style import Look

Spec = dict[str, Any]

# matplotlib's letters → the shapes of Vega, in which any other is a path in a square from −1 to 1.
SHAPES = {
    "o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "<": "triangle-left",
    ">": "triangle-right", "P": "cross", "d": "M0,-1L0.55,0L0,1L-0.55,0Z",
    "X": "M-1,-0.5L-0.5,-1L0,-0.5L0.5,-1L1,-0.5L0.5,0L1,0.5L0.5,1L0,0.5L-0.5,1L-1,0.5L-0.5,0Z",
    "p": "M0,-1L0.95,-0.31L0.59,0.81L-0.59,0.81L-0.95,-0.31Z",
    "h": "M0,-1L0.87,-0.5L0.87,0.5L0,1L-0.87,0.5L-0.87,-0.5Z",
    "8": "M-0.41,-1L0.41,-1L1,-0.41L1,0.41L0.41,1L-0.41,1L-1,0.41L-1,-0.41Z",
    "*": "M0,-1L0.22,-0.31L0.95,-0.31L0.36,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.36,0.12L-0.95,-0.31L-0.22,-0.31Z",
}  # fmt: skip
DASHED, DOTTED = [4, 3], [1.5, 2.5]
#: About the widths, in pixels, of a chart's plot over the whole page and over half of it, in a window of 1280.
WHOLE, HALF = 740, 340
#: A legend of more entries is written small, each in at most as many characters.
FEW, SHORT = 8, 20
#: A scale that ends a little beyond the data, wherever these lie.
SPAN = {"zero": False, "nice": False, "padding": 8}


@dataclass(frozen=True, eq=False)
class Chart:
    """A Vega-Lite specification, and the frames that it names as its data."""

    spec: Spec
    data: Mapping[str, pd.DataFrame]

    @cached_property
    def datasets(self) -> dict[str, Any]:
        """The frames as Arrow has them: by column, which takes a tenth of ``Table.from_pandas`` with pandas' notes."""
        import pyarrow as pa

        return {
            name: pa.table({str(column): pa.array(values, from_pandas=True) for column, values in frame.items()})
            for name, frame in self.data.items()
        }


def draw(chart: Chart, key: str, alt: str, **options: Any) -> Any:
    """Put a chart on the page, as wide as its place. ``alt`` is what a screen reader says."""
    spec = {**chart.spec, "config": _words(), "datasets": chart.datasets}
    return st.vega_lite_chart(spec=spec, width="stretch", key=key, alt=alt, **options)


def _words() -> Spec:
    """Axes and legends in a grey that can be read: Streamlit's own has a contrast of 3.7 on white."""
    grey = palette.theme().guide
    return {key: {"labelColor": grey, "titleColor": grey} for key in ("axis", "legend")}


# Layers, marks and encodings -----------------------------------------------------------------------------------------


def layered(height: int, layers: Sequence[Spec], data: Mapping[str, pd.DataFrame], **more: Any) -> Chart:
    """Layers that lie on one another, with their data by name."""
    return Chart({"layer": list(layers), "height": height, **more}, data)


def layer(data: str, mark: str | Spec, *filters: str, **encoding: Any) -> Spec:
    """One layer: the name of its data, its mark, and the rows that it shows.

    One without a tooltip says so: the browser would show the names of its fields.
    """
    if "tooltip" not in encoding:
        mark = {**({"type": mark} if isinstance(mark, str) else mark), "tooltip": None}
    made: Spec = {"data": {"name": data}, "mark": mark, "encoding": encoding}
    return {**made, "transform": [{"filter": words} for words in filters]} if filters else made


def point(size: float, **more: Any) -> Spec:
    """A filled marker."""
    return {"type": "point", "size": size, "filled": True, "opacity": 1, **more}


def line(width: float, **more: Any) -> Spec:
    return {"type": "line", "strokeWidth": width, **more}


def rule(width: float, **more: Any) -> Spec:
    """A straight line across the plot."""
    return {"type": "rule", "strokeWidth": width, **more}


def words(align: str, baseline: str, **more: Any) -> Spec:
    """Text in the plot."""
    return {"type": "text", "align": align, "baseline": baseline, "color": palette.theme().guide, **more}


def number(field: str, title: str | None = None, **more: Any) -> Spec:
    """A field as a quantity."""
    return {"field": field, "type": "quantitative", **({"title": title} if title is not None else {}), **more}


def category(field: str, title: str | None = None, **more: Any) -> Spec:
    """A field as a name."""
    return {"field": field, "type": "nominal", **({"title": title} if title is not None else {}), **more}


def tooltip(frame: pd.DataFrame, **titles: str | Spec) -> list[Spec]:
    """What a tooltip says: field → its title. Numbers in full: a rounded one cannot be checked against the table."""
    return [
        title
        if isinstance(title, dict)
        else number(field, title, format=",.12~g")
        if is_numeric_dtype(frame[field])
        else category(field, title)
        for field, title in titles.items()
    ]


# Colours, shapes and legends -----------------------------------------------------------------------------------------


def legend(labels: Sequence[str] = (), **more: Any) -> Spec:
    """Above the chart, in as many columns as these labels leave: beside it, it would leave a phone no room.

    Every label has its entry: Vega would drop what is beyond thirty, or would overlap. Many labels are written small
    and cut in their middle.
    """
    made = {"title": None, "orient": "top", "labelLimit": 340, "symbolOpacity": 1, "symbolStrokeWidth": 2}
    made |= {"symbolLimit": 0, "labelOverlap": False}
    if labels:
        made["columns"] = {"expr": f"max(1, floor(width / {_legend_width(labels)}))"}
    if len(labels) > FEW:
        short = dict(zip(labels, style.shortened(labels, SHORT), strict=True))
        made |= {"labelFontSize": 10, "rowPadding": 0, "labelExpr": f"{json.dumps(short)}[datum.value]"}
        more = {**more, "symbolSize": 40}
    return made | more


def _legend_width(labels: Sequence[str]) -> int:
    """Pixels that the longest label takes in a legend, symbol and gap with it."""
    longest = max(map(len, labels), default=0)
    return 28 + 6 * min(SHORT, longest) if len(labels) > FEW else min(290, 40 + 7 * longest)


def legend_height(shown: pd.DataFrame, width: int) -> int:
    """Pixels of a legend's rows after the first, where the chart is about that wide: its height is for the whole."""
    labels = shown["label"].unique().tolist()
    columns = max(1, width // _legend_width(labels))
    return (13 if len(labels) > FEW else 20) * (-(-len(labels) // columns) - 1)


def scaled(field: str, look: Mapping[str, Any], key: Spec | None, **more: Any) -> Spec:
    """A field as a name, each of whose values has its colour, shape or dash."""
    return category(field, scale={"domain": list(look), "range": list(look.values())}, legend=key, **more)


def by_method(methods: Sequence[str], *keys: Spec | None) -> dict[str, Spec]:
    """Colour and shape by ``label``, the methods' names in the figures; with their legend, or the one given."""
    looks = [style.method_look(method) for method in methods]
    (key,) = keys or (legend([look.label for look in looks]),)
    return {
        "color": scaled("label", {look.label: on_screen(look.colour) for look in looks}, key),
        "shape": scaled("label", {look.label: SHAPES[look.marker] for look in looks}, key),
    }


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """With ``label``, the methods' names as in the figures."""
    return frame.assign(label=[style.method_look(method).label for method in frame["method"]])


def dressed(frame: pd.DataFrame, looks: Mapping[str, Look], **more: Any) -> pd.DataFrame:
    """With ``label`` and ``filled`` of each row's adapter, and further columns; numbered anew."""
    each = [looks[adapter] for adapter in frame["adapter"].tolist()]
    columns = {str(name): column.array for name, column in frame.items()}
    looked = {"label": [look.label for look in each], "filled": [look.filled for look in each]}
    return pd.DataFrame({**columns, **looked, **more})  # in one go: each later column takes pandas half a millisecond


def by_adapter(shown: pd.DataFrame, looks: Mapping[str, Look]) -> tuple[Spec, Spec, Spec]:
    """Colour, shape and dash by the label, with one legend."""
    here = {adapter: looks[adapter] for adapter in dict.fromkeys(shown["adapter"])}
    key = legend([look.label for look in here.values()], symbolSize=90)
    return (
        scaled("label", {look.label: on_screen(look.colour) for look in here.values()}, key),
        scaled("label", {look.label: SHAPES[look.marker] for look in here.values()}, key),
        # By another field: Vega-Lite would merge its (absent) legend with that of the label.
        scaled("adapter", {name: [2 * x for x in look.dash] or [1, 0] for name, look in here.items()}, None),
    )


def markers(data: str, shown: pd.DataFrame, size: int, **encodings: Any) -> list[Spec]:
    """Filled and open markers, as the figures have them."""
    rings = point(size, filled=False, fill=palette.theme().ground, strokeWidth=1.8)
    layers = {
        True: layer(data, point(size), "datum.filled", **encodings),
        False: layer(data, rings, "!datum.filled", **encodings),
    }
    return [layers[filled] for filled in sorted(shown["filled"].unique(), reverse=True)]


def marker_size(places: pd.Series) -> int:
    """Of markers side by side: beyond 64 of them whole ones would be a ribbon that hides the line."""
    return 55 if places.nunique() <= 64 else 10


# Axes ----------------------------------------------------------------------------------------------------------------


def index_axis(index: pd.Series, bounds: pd.Series) -> Spec:
    """Logarithmic where the bounds lie far apart, as in the figure."""
    wide, most = bounds_spread(bounds), float(index.max())
    scale: Spec = {"domain": [1 if wide else 0, most * (1.06 if wide else 1.02)], "nice": False}
    axis: Spec = {"tickMinStep": 1, "grid": False, "format": "d", "labelOverlap": True}
    if wide:
        scale |= {"type": "log", "base": 2}
        axis["values"] = [2**k for k in range(int(np.log2(most)) + 1)]
    return number("index", "index of the singular value", axis=axis, scale=scale)


def step_axis(field: str, title: str, values: pd.Series) -> Spec:
    """Whole numbers; the very ones that there are, if they are few."""
    stops = sorted(int(value) for value in values.unique())
    axis = {"tickMinStep": 1, "format": "d", "grid": False, "labelOverlap": True}
    return number(field, title, axis={**axis, "values": stops} if len(stops) <= 12 else axis, scale=SPAN)


def blocks_axis(blocks: Sequence[int]) -> Spec:
    """b on a log₂ axis, labelled where the values are."""
    few = [int(b) for b in blocks if not b & (b - 1)] or [int(b) for b in blocks]
    axis = {"values": few, "format": "d", "grid": False, "labelOverlap": True}
    return number("blocks", "blocks b", scale=log_scale(base=2, padding=12), axis=axis)


def log_scale(**more: Any) -> Spec:
    return {"type": "log", "nice": False, **more}


def log_number(field: str, title: str, ticks: int, form: str = "~s", **scale: Any) -> Spec:
    """A quantity on a logarithmic axis with about as many ticks."""
    return number(field, title, scale=log_scale(**scale), axis={"format": form, "tickCount": ticks})


def vertical(values: Any, logarithmic: bool, *thresholds: float) -> tuple[Array, Spec]:
    """The values, none below the floor of a logarithmic axis, and the scale and the axis."""
    values = np.asarray(values, dtype=float)
    if not logarithmic:
        return values, {"scale": {"zero": True}}
    low, high = half_decades(*sigma_limits(values, values, *thresholds))
    return np.fmax(values, low), {"scale": log_scale(domain=[low, high]), "axis": decades(low, high)}


def half_decades(low: float, high: float) -> tuple[float, float]:
    """The next half decades below and above: ends that stay while the numbers between them move."""
    below, above = np.floor(2 * np.log10(low)) / 2, np.ceil(2 * np.log10(high)) / 2
    return float(10**below), float(10**above)


def decades(low: float, high: float) -> Spec:
    """Powers of ten only, written 10⁻³; of many some. Where the axis has fewer than two, Vega's own choice."""
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


def threshold_line(threshold: float, formula: str) -> tuple[list[Spec], dict[str, pd.DataFrame]]:
    """A threshold on the y axis: its layers, and its data."""
    here = number("y")
    place = {"y": here, "x": {"value": 0}, "text": category("text")}
    text = words("left", "top", dx=3, dy=4, fontSize=12)
    layers = [
        layer("threshold", rule(1.2, strokeDash=[5, 4], color=palette.theme().guide), y=here),
        # A rim in the colour of the ground, where a curve passes behind the words.
        layer("threshold", {**text, "stroke": palette.theme().ground, "strokeWidth": 4}, **place),
        layer("threshold", text, **place),
    ]
    return layers, {"threshold": pd.DataFrame({"y": [threshold], "text": [f"τ = {formula}"]})}
