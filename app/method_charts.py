"""Charts of the pages on methods (lab, budget, paper): numbers in, Altair out.

Log axes are given positive data only; colours, labels and markers are those of the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

import altair as alt
import pandas as pd
from charts import SHAPES, dark, readable

from bora_analysis import style

DASHED = [4, 3]
#: Name of the data in the specs of :func:`sweep_specs`.
SWEEP = "sweep"


def guide() -> str:
    """Grey of lines that are no data, readable on either background."""
    return "#A0A4A8" if dark() else style.GREY


def on_screen(colour: str) -> str:
    """The figures' colour, made light enough where the page is dark."""
    return readable(colour, dark())


def colour_scale(methods: Sequence[str]) -> alt.Scale:
    """Method → its colour in the figures. The domain is the methods' labels."""
    looks = [style.method_look(method) for method in methods]
    return alt.Scale(domain=[look.label for look in looks], range=[on_screen(look.colour) for look in looks])


def shape_scale(methods: Sequence[str]) -> alt.Scale:
    looks = [style.method_look(method) for method in methods]
    return alt.Scale(domain=[look.label for look in looks], range=[SHAPES[look.marker] for look in looks])


def legend(**options: Any) -> alt.Legend:
    # Above the chart: beside it, it would leave a phone no room for the data.
    return alt.Legend(orient="top", title=None, symbolStrokeWidth=2, labelLimit=260, **options)


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """With ``label``, the methods' names as in the figures."""
    return frame.assign(label=[style.method_look(method).label for method in frame["method"]])


def spectra(frame: pd.DataFrame, bounds: dict[str, int], threshold: float) -> Any:
    """Singular values of one layer against their index, a line per method, with threshold and rank bounds.

    Parameters
    ----------
    frame : columns method, index, singular_value; only values above zero.
    bounds : method → rank bound.
    """
    methods = list(bounds)
    colour = alt.Color("label:N", scale=colour_scale(methods), legend=legend())
    # A little beyond the last bound, whose rule the edge would cut in half.
    scale = alt.Scale(domain=[0, 1.02 * max(bounds.values())], nice=False)
    x = alt.X("index:Q", title="index k", scale=scale, axis=alt.Axis(tickMinStep=1, grid=False))
    y = alt.Y("singular_value:Q", title="singular value σₖ", scale=alt.Scale(type="log"), axis=log_axis())
    tooltip = [
        alt.Tooltip("label:N", title="method"),
        alt.Tooltip("index:Q", title="k"),
        alt.Tooltip("singular_value:Q", title="σₖ", format=".12g"),
    ]
    shape = alt.Shape("label:N", scale=shape_scale(methods), legend=legend())
    dots = alt.OverlayMarkDef(filled=True, size=34 if len(frame) < 200 else 12, opacity=1)
    curves = alt.Chart(labelled(frame)).mark_line(strokeWidth=1.8, point=dots)
    curves = curves.encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip)
    edges = labelled(pd.DataFrame({"method": methods, "bound": list(bounds.values())}))
    # Equal bounds lie on one another: dashes of different lengths let both colours show.
    edges["dash"] = [f"{k}" for k in range(len(edges))]
    dashes = alt.StrokeDash(
        "dash:N", legend=None, scale=alt.Scale(domain=list(edges["dash"]), range=[[2, 6], [6, 6], [3, 9]])
    )
    bound = (
        alt.Chart(edges)
        .mark_rule(strokeWidth=1.5)
        .encode(
            x="bound:Q",
            color=colour,
            strokeDash=dashes,
            tooltip=[alt.Tooltip("label:N", title="method"), alt.Tooltip("bound:Q", title="rank bound")],
        )
    )
    layers: list[Any] = [curves, bound]
    if threshold > 0:
        layers += _level(threshold, f"τ = {threshold:g}")
    return alt.layer(*layers).properties(height=340)


def _level(value: float, text: str) -> list[Any]:
    here = alt.Chart(pd.DataFrame({"singular_value": [value], "text": [text]})).encode(y="singular_value:Q")
    words = here.mark_text(align="left", baseline="top", dx=4, dy=3, color=guide())
    return [here.mark_rule(color=guide(), strokeDash=DASHED), words.encode(x=alt.value(0), text="text:N")]


def log_axis() -> alt.Axis:
    """Labels at powers of ten, short: "1e-3" takes less room than "0.001"."""
    return alt.Axis(format="~g", tickCount=6, grid=True)


def blocks_axis(blocks: Sequence[int]) -> alt.X:
    """b on a log₂ axis, labelled where the values are."""
    few = [b for b in blocks if not b & (b - 1)] or list(blocks)
    return alt.X(
        "blocks:Q",
        title="blocks b",
        scale=alt.Scale(type="log", base=2, nice=False, padding=12),
        axis=alt.Axis(values=few, format="d", grid=False),
    )


@lru_cache(maxsize=32)
def sweep_specs(blocks: tuple[int, ...], optimum: float, chosen: int, night: bool) -> tuple[dict[str, Any], ...]:
    """Vega-Lite of the sweep's three charts, without the data: rank, parameters, parameters per unit of rank.

    To build and check a chart takes Altair longer than the sweep; a new seed changes nothing but the data.
    ``blocks`` and ``night`` (the theme, as :func:`dark` has it) are what the charts depend on besides.
    """
    charts = (
        sweep_ranks(blocks, optimum, chosen),
        sweep_price(blocks, "parameters", "parameters (m+n+b²)r", optimum, chosen),
        sweep_price(blocks, "parameters_per_rank", "parameters per unit of bound", optimum, chosen),
    )
    return tuple(chart.to_dict() for chart in charts)


def with_sweep(spec: dict[str, Any], frame: pd.DataFrame) -> dict[str, Any]:
    """A chart of :func:`sweep_specs` with its data, a table of ``lab_model.sweep``."""
    return {**deepcopy(spec), "datasets": {**spec["datasets"], SWEEP: frame}}


def sweep_ranks(blocks: Sequence[int], optimum: float, chosen: int) -> Any:
    """Rank bound (open) and measured rank (filled) of BoRA against b."""
    colour = style.method_look("bora").colour
    tooltip = [
        alt.Tooltip("blocks:Q", title="b"),
        alt.Tooltip("rank_bound:Q", title="bound"),
        alt.Tooltip("measured_rank:Q", title="measured rank"),
    ]
    base = alt.Chart(alt.NamedData(SWEEP)).encode(x=blocks_axis(blocks), tooltip=tooltip)
    rings = alt.OverlayMarkDef(
        shape="diamond", filled=False, stroke=colour, fill="transparent", size=150, strokeWidth=1.4, opacity=1
    )
    bound = base.mark_line(color=colour, strokeWidth=1.2, strokeDash=DASHED, point=rings)
    measured = base.mark_point(shape="diamond", filled=True, color=colour, size=45, opacity=1)
    layers = [bound.encode(y=alt.Y("rank_bound:Q", title="rank of ΔW")), measured.encode(y="measured_rank:Q")]
    return alt.layer(_chosen(chosen), *layers, *_marks(optimum)).properties(height=260)


def sweep_price(blocks: Sequence[int], column: str, title: str, optimum: float, chosen: int) -> Any:
    """One price of BoRA against b, on a log axis; a column of ``lab_model.sweep``."""
    colour = style.method_look("bora").colour
    base = alt.Chart(alt.NamedData(SWEEP)).encode(
        x=blocks_axis(blocks),
        y=alt.Y(f"{column}:Q", title=title, scale=alt.Scale(type="log"), axis=alt.Axis(format="~s", tickCount=5)),
        tooltip=[
            alt.Tooltip("blocks:Q", title="b"),
            alt.Tooltip("parameters:Q", format=","),
            alt.Tooltip("rank_bound:Q", title="rank bound"),
            alt.Tooltip("parameters_per_rank:Q", title="parameters per rank", format=".12g"),
        ],
    )
    dots = alt.OverlayMarkDef(shape="diamond", filled=True, color=colour, size=60, opacity=1)
    line = base.mark_line(color=colour, strokeWidth=1.2, point=dots)
    return alt.layer(_chosen(chosen), line, *_marks(optimum)).properties(height=260)


def _marks(optimum: float) -> list[Any]:
    """√(m+n)."""
    where = alt.Chart(pd.DataFrame({"blocks": [optimum], "text": ["√(m+n)"]})).encode(x="blocks:Q")
    text = where.mark_text(align="right", baseline="top", dx=-4, color=guide())
    return [where.mark_rule(color=guide(), strokeDash=DASHED), text.encode(text="text:N", y=alt.value(2))]


def _chosen(blocks: int) -> Any:
    """A band at the b of the controls."""
    here = alt.Chart(pd.DataFrame({"blocks": [blocks]})).mark_rule(color=guide(), strokeWidth=7, opacity=0.25)
    return here.encode(x="blocks:Q")


def pareto(frame: pd.DataFrame, front: pd.DataFrame, budget: int, methods: Sequence[str]) -> Any:
    """Rank bound against parameters, a point per (method, r, b); the front as a line, the budget as a rule.

    Parameters
    ----------
    frame : fields of :class:`bora_analysis.cost.Choice`. front : those of its rows that no cheaper one reaches.
    """
    x = alt.X(
        "parameters:Q",
        title="trained parameters",
        scale=alt.Scale(type="log", nice=False, padding=14),
        axis=alt.Axis(format="~s", tickCount=6),
    )
    y = alt.Y(
        "rank_bound:Q",
        title="rank bound, mean over the matrices",
        scale=alt.Scale(type="log", base=2, nice=False, padding=14),
        axis=alt.Axis(format="~g", tickCount=8),
    )
    tooltip = [
        alt.Tooltip("label:N", title="method"),
        alt.Tooltip("r:Q"),
        alt.Tooltip("blocks:Q", title="b"),
        alt.Tooltip("parameters:Q", format=","),
        alt.Tooltip("rank_bound:Q", title="rank bound", format=",.12g"),
        alt.Tooltip("macs_per_token:Q", title="MACs per token", format=","),
    ]
    points = (
        alt.Chart(labelled(frame))
        .mark_point(filled=True, size=42, opacity=1)
        .encode(
            x=x,
            y=y,
            color=alt.Color("label:N", scale=colour_scale(methods), legend=legend(columns=7)),
            shape=alt.Shape("label:N", scale=shape_scale(methods), legend=legend(columns=7)),
            tooltip=tooltip,
        )
    )
    line = alt.Chart(labelled(front)).mark_line(
        color=guide(), strokeWidth=1.2, interpolate="step-after", strokeDash=DASHED
    )
    limit = alt.Chart(pd.DataFrame({"parameters": [budget], "text": ["budget"]}))
    rule = limit.mark_rule(color=guide(), strokeWidth=1.5).encode(x="parameters:Q")
    text = limit.mark_text(align="right", baseline="top", dx=-4, color=guide())
    note = text.encode(x="parameters:Q", y=alt.value(2), text="text:N")
    return alt.layer(line.encode(x=x, y=y), points, rule, note).properties(height=380)


def adapters_pareto(frame: pd.DataFrame, looks: dict[str, style.Look]) -> Any:
    """Chosen adapters: mean rank bound (open) and mean effective rank (filled) against parameters.

    Parameters
    ----------
    frame : columns adapter, parameters, rank_bound, effective_rank.
    """
    order = list(looks)
    scale = alt.Scale(domain=order, range=[on_screen(looks[adapter].colour) for adapter in order])
    shapes = alt.Scale(domain=order, range=[SHAPES[looks[adapter].marker] for adapter in order])
    x = alt.X(
        "parameters:Q",
        title="trained parameters",
        scale=alt.Scale(type="log", nice=False, padding=30),
        axis=alt.Axis(format="~s", tickCount=4),
    )
    long = frame.melt(["adapter", "parameters"], ["rank_bound", "effective_rank"], "kind", "rank")
    long["kind"] = long["kind"].map({"rank_bound": "rank bound", "effective_rank": "effective rank"})
    colour = alt.Color("adapter:N", scale=scale, legend=legend(columns=1))
    points = alt.Chart(long).encode(
        x=x,
        y=alt.Y("rank:Q", title="rank, mean over the modules"),
        color=colour,
        shape=alt.Shape("adapter:N", scale=shapes, legend=legend(columns=1)),
        tooltip=[
            "adapter:N",
            "kind:N",
            alt.Tooltip("rank:Q", format=".12g"),
            alt.Tooltip("parameters:Q", format=","),
        ],
    )
    spans = (
        alt.Chart(frame).mark_rule(strokeWidth=1.2).encode(x=x, y="rank_bound:Q", y2="effective_rank:Q", color=colour)
    )
    open_, filled = (points.transform_filter(alt.datum.kind == kind) for kind in ("rank bound", "effective rank"))
    return alt.layer(
        spans, open_.mark_point(size=110, filled=False, opacity=1), filled.mark_point(size=70, filled=True, opacity=1)
    ).properties(height=320)


def block_price(frame: pd.DataFrame, rules: pd.DataFrame) -> Any:
    """N(b)/R = (m+n)/b + b against b, a line per shape.

    Parameters
    ----------
    frame : columns shape, blocks, price, best (whether it is the least of its shape).
    rules : columns shape, blocks, price: the paper's ⌊√n⌋, whether it divides or not.
    """
    shapes = list(dict.fromkeys(frame["shape"]))
    colours = [on_screen(style.shade(style.method_look("bora").colour, k)) for k in range(len(shapes))]
    colour = alt.Color("shape:N", scale=alt.Scale(domain=shapes, range=colours), legend=legend(columns=2))
    y = alt.Y(
        "price:Q",
        title="parameters per unit of rank",
        scale=alt.Scale(type="log"),
        axis=alt.Axis(format="~s", tickCount=6),
    )
    tooltip = [
        alt.Tooltip("shape:N"),
        alt.Tooltip("blocks:Q", title="b"),
        alt.Tooltip("price:Q", title="(m+n)/b + b", format=",.12g"),
    ]
    base = alt.Chart(frame).encode(x=blocks_axis(sorted(set(frame["blocks"]))), y=y, color=colour, tooltip=tooltip)
    lines = base.mark_line(strokeWidth=1.2)
    points = base.mark_point(shape="diamond", size=36, filled=True, opacity=1)
    best = base.transform_filter(alt.datum.best).mark_point(shape="diamond", size=170, filled=True, opacity=1)
    layers: list[Any] = [lines, points, best]
    if not rules.empty:
        ring = alt.Chart(rules).mark_point(shape="circle", size=330, filled=False, color=guide(), opacity=1)
        layers.append(ring.encode(x="blocks:Q", y="price:Q", tooltip=tooltip))
    return alt.layer(*layers).properties(height=340)


def ablations(rows: pd.DataFrame) -> alt.Chart:
    """Figure 3 (a): BoRA without the exponential or the normalisation; columns name, variant, value."""
    colour = style.method_look("bora").colour
    names = ["BoRA", "w.o. Exp", "w.o. Norm"]
    return (
        alt.Chart(rows)
        .mark_point(size=110, filled=True, opacity=1)
        .encode(
            x=_accuracy("x"),
            y=alt.Y("name:N", title=None, sort=None, axis=alt.Axis(labelLimit=110, grid=True)),
            color=alt.Color(
                "variant:N",
                scale=alt.Scale(
                    domain=names, range=[colour, on_screen(style.shade(colour, 2)), on_screen(style.shade(colour, 1))]
                ),
                legend=legend(),
            ),
            shape=alt.Shape(
                "variant:N",
                scale=alt.Scale(domain=names, range=["diamond", "triangle-up", "triangle-down"]),
                legend=legend(),
            ),
            tooltip=["name:N", "variant:N", alt.Tooltip("value:Q", title="accuracy (%)", format=".2f")],
        )
        .properties(height=300)
    )


def ranks_and_blocks(bora: pd.DataFrame, lora: pd.DataFrame) -> Any:
    """Figure 3 (b): BoRA over b, a line per r; dashed, LoRA of that r. Columns rank, blocks, value."""
    ranks = list(dict.fromkeys(bora["rank"]))
    # One hue, from light to strong, as r grows; on a dark page the light end is the one that is seen best.
    shades = ["#F6C6A0", "#F0A877", "#E88A4F", "#D55E00", "#A84A00", "#7A3600"][: len(ranks)]
    shades = [on_screen(shade) for shade in reversed(shades)] if dark() else shades
    colour = alt.Color("rank:N", sort=None, scale=alt.Scale(domain=ranks, range=shades), legend=legend(columns=3))
    tooltip = ["rank:N", alt.Tooltip("blocks:Q", title="b"), alt.Tooltip("value:Q", title="accuracy (%)", format=".2f")]
    base = alt.Chart(bora).encode(
        x=blocks_axis(sorted(set(bora["blocks"]))), y=_accuracy("y"), color=colour, tooltip=tooltip
    )
    levels = alt.Chart(lora.assign(method="LoRA")).mark_rule(strokeDash=DASHED, strokeWidth=1.2)
    dashed = levels.encode(y="value:Q", color=colour, tooltip=["method:N", *tooltip[:1], *tooltip[2:]])
    return alt.layer(
        dashed, base.mark_line(strokeWidth=1.8), base.mark_point(shape="diamond", filled=True, size=55, opacity=1)
    ).properties(height=300)


def granularity(rows: pd.DataFrame) -> Any:
    """Figure 3 (c): LoRA and BoRA over the adapted projections; columns method, target, value, params."""
    targets = list(dict.fromkeys(rows["target"]))
    colour = alt.Color("label:N", scale=colour_scale(["lora", "bora"]), legend=legend())
    base = alt.Chart(labelled(rows)).encode(
        x=alt.X(
            "target:N", title="adapted projections", sort=targets, axis=alt.Axis(labelAngle=-35, labelOverlap=False)
        ),
        y=_accuracy("y"),
        color=colour,
        tooltip=[
            alt.Tooltip("label:N", title="method"),
            "target:N",
            alt.Tooltip("params:N", title="#Params"),
            alt.Tooltip("value:Q", title="accuracy (%)", format=".2f"),
        ],
    )
    shape = alt.Shape("label:N", scale=shape_scale(["lora", "bora"]), legend=legend())
    return alt.layer(
        base.mark_line(strokeWidth=1.4), base.mark_point(filled=True, size=70, opacity=1).encode(shape=shape)
    ).properties(height=300)


def _accuracy(channel: str) -> Any:
    kind = alt.X if channel == "x" else alt.Y
    return kind("value:Q", title="accuracy (%)", scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=5))


def runs(rows: pd.DataFrame, title: str, methods: Sequence[str]) -> Any:
    """One task of a table: a row per run, its value, and ± its standard deviation where the paper gives one.

    Parameters
    ----------
    rows : of one model, in the paper's order; columns run, label, value, low, high, params.
    """
    order = list(dict.fromkeys(rows["run"]))
    y = alt.Y("run:N", title=None, sort=order, axis=alt.Axis(labelLimit=180, labelFlush=False, grid=True, ticks=False))
    colour = alt.Color("label:N", scale=colour_scale(methods), legend=None)
    base = alt.Chart(rows).encode(
        y=y,
        color=colour,
        tooltip=[
            "run:N",
            alt.Tooltip("params:N", title="#Params"),
            alt.Tooltip("value:Q", title=title, format=".2f"),
            alt.Tooltip("std:Q", title="standard deviation", format=".2f"),
        ],
    )
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=False, padding=14), axis=alt.Axis(tickCount=6))
    points = base.mark_point(filled=True, size=75, opacity=1).encode(
        x=x, shape=alt.Shape("label:N", scale=shape_scale(methods), legend=None)
    )
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5).encode(x="low:Q", x2="high:Q")
    return alt.layer(bars, points).properties(height=26 * len(order) + 50)
