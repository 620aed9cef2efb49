"""Charts of the pages on methods (lab, budget, paper): numbers in, :class:`charts.Chart` out.

Log axes are given positive data only; colours, labels and markers are those of the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from app.charts import SHAPES, Chart, Spec, category, dark, layer, layered, number, readable
from bora_analysis import style

DASHED = [4, 3]


def guide() -> str:
    """Grey of lines that are no data, readable on either background."""
    return "#A0A4A8" if dark() else style.GREY


def on_screen(colour: str) -> str:
    """The figures' colour, made light enough where the page is dark."""
    return readable(colour, dark())


def colour_scale(methods: Sequence[str]) -> Spec:
    """Method → its colour in the figures. The domain is the methods' labels."""
    looks = [style.method_look(method) for method in methods]
    return {"domain": [look.label for look in looks], "range": [on_screen(look.colour) for look in looks]}


def shape_scale(methods: Sequence[str]) -> Spec:
    looks = [style.method_look(method) for method in methods]
    return {"domain": [look.label for look in looks], "range": [SHAPES[look.marker] for look in looks]}


def legend(**options: Any) -> Spec:
    # Above the chart: beside it, it would leave a phone no room for the data.
    return {"orient": "top", "title": None, "symbolStrokeWidth": 2, "symbolOpacity": 1, "labelLimit": 260, **options}


def columns(width: int) -> Spec:
    """As many columns of a legend as have that width, so that a phone has fewer."""
    return {"expr": f"max(1, floor(width / {width}))"}


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """With ``label``, the methods' names as in the figures."""
    return frame.assign(label=[style.method_look(method).label for method in frame["method"]])


def spectra(frame: pd.DataFrame, bounds: dict[str, int], threshold: float) -> Chart:
    """Singular values of one layer against their index, a line per method, with threshold and rank bounds.

    Parameters
    ----------
    frame : columns method, index, singular_value; only values above zero.
    bounds : method → rank bound.
    """
    methods = list(bounds)
    # Methods that share a colour in the figures get shades of it, and other dashes, as adapters do there.
    named = [(style.method_look(method).label, method) for method in methods]
    looks = style.looks(named)
    colours = {"domain": list(looks), "range": [on_screen(look.colour) for look in looks.values()]}
    colour = category("label", scale=colours, legend=legend(columns=columns(110)))
    shape = category("label", scale=shape_scale(methods), legend=legend(columns=columns(110)))
    strokes = [[2 * x for x in look.dash] or [1, 0] for look in looks.values()]
    stroke = category("method", scale={"domain": methods, "range": strokes}, legend=None)
    # A little beyond the last bound, whose rule the edge would cut in half.
    most = 1.02 * max(bounds.values())
    wide = most > 40 * min(bounds.values())  # on a linear axis the shortest curve would be a stroke
    scale = {"type": "log" if wide else "linear", "domain": [1 if wide else 0, most], "nice": False}
    axis = {"tickMinStep": 1, "grid": False, "format": "d", "labelOverlap": True}
    x = number("index", "index k", scale=scale, axis=axis)
    y = number("singular_value", "singular value σₖ", scale={"type": "log"}, axis=log_axis())
    tooltip = [
        category("label", "method"),
        number("index", "k"),
        number("singular_value", "σₖ", format=".12g"),
    ]
    dots = {"filled": True, "size": 34 if len(frame) < 200 else 12, "opacity": 1}
    line = {"type": "line", "strokeWidth": 1.8, "point": dots}
    edges = labelled(pd.DataFrame({"method": methods, "bound": list(bounds.values())}))
    # Equal bounds lie on one another: dashes of different lengths let both colours show.
    edges["dash"] = [f"{k}" for k in range(len(edges))]
    dashes = {"domain": list(edges["dash"]), "range": [([2, 6], [6, 6], [3, 9])[k % 3] for k in range(len(edges))]}
    layers = [
        layer("curves", line, x=x, y=y, color=colour, shape=shape, strokeDash=stroke, tooltip=tooltip),
        layer(
            "bounds",
            {"type": "rule", "strokeWidth": 1.5},
            x=number("bound"),
            color=colour,
            strokeDash=category("dash", legend=None, scale=dashes),
            tooltip=[category("label", "method"), number("bound", "rank bound")],
        ),
    ]
    data = {"curves": labelled(frame), "bounds": edges}
    if threshold > 0:
        words = {"type": "text", "align": "left", "baseline": "top", "dx": 4, "dy": 3, "color": guide()}
        here = number("singular_value")
        layers += [
            layer("threshold", {"type": "rule", "color": guide(), "strokeDash": DASHED}, y=here),
            layer("threshold", words, y=here, x={"value": 0}, text=category("text")),
        ]
        data["threshold"] = pd.DataFrame({"singular_value": [threshold], "text": [f"τ = {threshold:g}"]})
    return Chart(layered(340, *layers, resolve={"scale": {"strokeDash": "independent"}}), data)


def log_axis() -> Spec:
    """Labels at powers of ten, short: "1e-3" takes less room than "0.001"."""
    return {"format": "~g", "tickCount": 6, "grid": True}


def blocks_axis(blocks: Sequence[int]) -> Spec:
    """b on a log₂ axis, labelled where the values are."""
    few = [int(b) for b in blocks if not b & (b - 1)] or [int(b) for b in blocks]
    return number(
        "blocks",
        "blocks b",
        scale={"type": "log", "base": 2, "nice": False, "padding": 12},
        axis={"values": few, "format": "d", "grid": False, "labelOverlap": True},
    )


def sweep_ranks(curve: pd.DataFrame, optimum: float, chosen: int) -> Chart:
    """Rank bound (open) and measured rank (filled) of BoRA against b; a table of ``lab_model.sweep``."""
    colour = style.method_look("bora").colour
    tooltip = [number("blocks", "b"), number("rank_bound", "bound"), number("measured_rank", "measured rank")]
    x = blocks_axis(list(curve["blocks"]))
    rings = {
        "shape": "diamond",
        "filled": False,
        "stroke": colour,
        "fill": "transparent",
        "size": 150,
        "strokeWidth": 1.4,
        "opacity": 1,
    }
    bound = {"type": "line", "color": colour, "strokeWidth": 1.2, "strokeDash": DASHED, "point": rings}
    measured = {"type": "point", "shape": "diamond", "filled": True, "color": colour, "size": 45, "opacity": 1}
    return _sweep(
        curve,
        optimum,
        chosen,
        layer("sweep", bound, x=x, y=number("rank_bound", "rank of ΔW"), tooltip=tooltip),
        layer("sweep", measured, x=x, y=number("measured_rank"), tooltip=tooltip),
    )


def sweep_price(curve: pd.DataFrame, column: str, title: str, optimum: float, chosen: int) -> Chart:
    """One price of BoRA against b, on a log axis; a column of ``lab_model.sweep``."""
    colour = style.method_look("bora").colour
    dots = {"shape": "diamond", "filled": True, "color": colour, "size": 60, "opacity": 1}
    line = {"type": "line", "color": colour, "strokeWidth": 1.2, "point": dots}
    tooltip = [
        number("blocks", "b"),
        number("parameters", "parameters", format=","),
        number("rank_bound", "rank bound"),
        number("parameters_per_rank", "parameters per rank", format=".12g"),
    ]
    y = number(column, title, scale={"type": "log"}, axis={"format": "~s", "tickCount": 5})
    return _sweep(
        curve, optimum, chosen, layer("sweep", line, x=blocks_axis(list(curve["blocks"])), y=y, tooltip=tooltip)
    )


def _sweep(curve: pd.DataFrame, optimum: float, chosen: int, *layers: Spec) -> Chart:
    """Between a band at the b of the controls and a rule at √(m+n)."""
    x = number("blocks")
    band = {"type": "rule", "color": guide(), "strokeWidth": 7, "opacity": 0.25}
    text = {"type": "text", "align": "right", "baseline": "top", "dx": -4, "color": guide()}
    spec = layered(
        260,
        layer("chosen", band, x=x),
        *layers,
        layer("optimum", {"type": "rule", "color": guide(), "strokeDash": DASHED}, x=x),
        layer("optimum", text, x=x, y={"value": 2}, text=category("text")),
    )
    data = {
        "sweep": curve,
        "chosen": pd.DataFrame({"blocks": [chosen]}),
        "optimum": pd.DataFrame({"blocks": [optimum], "text": ["√(m+n)"]}),
    }
    return Chart(spec, data)


def pareto(frame: pd.DataFrame, front: pd.DataFrame, budget: int, methods: Sequence[str]) -> Chart:
    """Rank bound against parameters, a point per (method, r, b); the front as a line, the budget as a rule.

    Parameters
    ----------
    frame : fields of :class:`bora_analysis.analysis.budget.Choice`.
    front : those of its rows that no cheaper one reaches.
    """
    x = number(
        "parameters",
        "trained parameters",
        scale={"type": "log", "nice": False, "padding": 14},
        axis={"format": "~s", "tickCount": 6},
    )
    y = number(
        "rank_bound",
        "rank bound, mean over the matrices",
        scale={"type": "log", "base": 2, "nice": False, "padding": 14},
        axis={"format": "~g", "tickCount": 8},
    )
    tooltip = [
        category("label", "method"),
        number("r", "r"),
        number("blocks", "b"),
        number("parameters", "parameters", format=","),
        number("rank_bound", "rank bound", format=",.12g"),
        number("macs_per_token", "MACs per token", format=","),
    ]
    key = legend(columns=3)
    line = {
        "type": "line",
        "color": guide(),
        "strokeWidth": 1.2,
        "interpolate": "step-after",
        "strokeDash": DASHED,
    }
    text = {"type": "text", "align": "right", "baseline": "bottom", "dx": 4, "color": guide()}
    spec = layered(
        380,
        layer("front", line, x=x, y=y),
        layer(
            "choices",
            {"type": "point", "filled": True, "size": 42, "opacity": 1},
            x=x,
            y=y,
            color=category("label", scale=colour_scale(methods), legend=key),
            shape=category("label", scale=shape_scale(methods), legend=key),
            tooltip=tooltip,
        ),
        layer("budget", {"type": "rule", "color": guide(), "strokeWidth": 1.5}, x=number("parameters")),
        layer("budget", text, x=number("parameters"), y={"value": -4}, text=category("text")),
    )
    limit = pd.DataFrame({"parameters": [budget], "text": ["budget"]})
    drawn = ["label", "r", "blocks", "parameters", "rank_bound", "macs_per_token"]
    return Chart(spec, {"front": labelled(front)[drawn], "choices": labelled(frame)[drawn], "budget": limit})


def adapters_pareto(frame: pd.DataFrame, looks: dict[str, style.Look]) -> Chart:
    """Chosen adapters: mean rank bound (open) and mean effective rank (filled) against parameters.

    Parameters
    ----------
    frame : columns adapter, parameters, rank_bound, effective_rank.
    """
    order = list(looks)
    scale = {"domain": order, "range": [on_screen(looks[adapter].colour) for adapter in order]}
    shapes = {"domain": order, "range": [SHAPES[looks[adapter].marker] for adapter in order]}
    x = number(
        "parameters",
        "trained parameters",
        scale={"type": "log", "nice": False, "padding": 30},
        axis={"format": "~s", "tickCount": 4},
    )
    y = number("rank", "rank, mean over the modules")
    key = legend(columns=columns(290))
    colour = category("adapter", scale=scale, legend=key)
    shape = category("adapter", scale=shapes, legend=key)
    tooltip = [
        category("adapter", "adapter"),
        category("kind", "kind"),
        number("rank", "rank", format=".12g"),
        number("parameters", "parameters", format=","),
    ]
    open_ = {"type": "point", "size": 110, "filled": False, "opacity": 1}
    full = {"type": "point", "size": 70, "filled": True, "opacity": 1}
    drawn = {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": tooltip}
    spec = layered(
        340,
        layer(
            "spans",
            {"type": "rule", "strokeWidth": 1.2},
            x=x,
            y=number("rank_bound"),
            y2={"field": "effective_rank"},
            color=colour,
        ),
        layer("points", open_, "datum.kind == 'rank bound'", **drawn),
        layer("points", full, "datum.kind == 'effective rank'", **drawn),
    )
    long = frame.melt(["adapter", "parameters"], ["rank_bound", "effective_rank"], "kind", "rank")
    long["kind"] = long["kind"].map({"rank_bound": "rank bound", "effective_rank": "effective rank"})
    return Chart(spec, {"spans": frame, "points": long})


def block_price(frame: pd.DataFrame, rules: pd.DataFrame) -> Chart:
    """N(b)/R = (m+n)/b + b against b, a line per shape.

    Parameters
    ----------
    frame : columns shape, blocks, price, best (whether it is the least of its shape).
    rules : columns shape, blocks, price: the paper's ⌊√n⌋, whether it divides or not.
    """
    shapes = list(dict.fromkeys(frame["shape"]))
    colours = [on_screen(style.shade(style.method_look("bora").colour, k)) for k in range(len(shapes))]
    colour = category("shape", scale={"domain": shapes, "range": colours}, legend=legend(columns=1))
    y = number("price", "parameters per unit of rank", scale={"type": "log"}, axis={"format": "~s", "tickCount": 6})
    tooltip = [category("shape", "shape"), number("blocks", "b"), number("price", "(m+n)/b + b", format=",.12g")]
    drawn = {"x": blocks_axis(sorted(set(frame["blocks"]))), "y": y, "color": colour, "tooltip": tooltip}
    point = {"type": "point", "shape": "diamond", "size": 36, "filled": True, "opacity": 1}
    ring = {"type": "point", "shape": "circle", "size": 330, "filled": False, "color": guide(), "opacity": 1}
    spec = layered(
        340,
        layer("prices", {"type": "line", "strokeWidth": 1.2}, **drawn),
        layer("prices", point, **drawn),
        layer("prices", {**point, "size": 170}, "datum.best", **drawn),
        layer("rules", ring, x=number("blocks"), y=number("price"), tooltip=tooltip),
    )
    return Chart(spec, {"prices": frame, "rules": rules})


def ablations(rows: pd.DataFrame) -> Chart:
    """Figure 3 (a): BoRA without the exponential or the normalisation; columns name, variant, value."""
    colour = style.method_look("bora").colour
    names = ["BoRA", "w.o. Exp", "w.o. Norm"]
    colours = [colour, on_screen(style.shade(colour, 2)), on_screen(style.shade(colour, 1))]
    models = category("name", sort=None, axis={"title": None, "labelLimit": 110, "grid": True})
    points = layer(
        "rows",
        {"type": "point", "size": 110, "filled": True, "opacity": 1},
        x=_accuracy(),
        y=models,
        color=category("variant", scale={"domain": names, "range": colours}, legend=legend()),
        shape=category(
            "variant",
            scale={"domain": names, "range": ["diamond", "triangle-up", "triangle-down"]},
            legend=legend(),
        ),
        tooltip=[category("name", "model"), category("variant", "variant"), _accuracy(format=".2f")],
    )
    return Chart(layered(300, points), {"rows": rows})


def ranks_and_blocks(bora: pd.DataFrame, lora: pd.DataFrame) -> Chart:
    """Figure 3 (b): BoRA over b, a line per r; dashed, LoRA of that r. Columns rank, blocks, value."""
    ranks = list(dict.fromkeys(bora["rank"]))
    # One hue, from light to strong, as r grows; on a dark page the light end is the one that is seen best.
    shades = ["#F6C6A0", "#F0A877", "#E88A4F", "#D55E00", "#A84A00", "#7A3600"][: len(ranks)]
    shades = [on_screen(shade) for shade in reversed(shades)] if dark() else shades
    colour = category(
        "rank", sort=None, scale={"domain": ranks, "range": shades}, legend=legend(columns=3, symbolSize=300)
    )
    value = number("value", "accuracy (%)", format=".2f")
    drawn = {"x": blocks_axis(sorted(set(bora["blocks"]))), "y": _accuracy(), "color": colour}
    tooltip = [category("rank", "rank"), number("blocks", "b"), value]
    level = {"type": "rule", "strokeDash": DASHED, "strokeWidth": 1.2}
    point = {"type": "point", "shape": "diamond", "filled": True, "size": 55, "opacity": 1}
    spec = layered(
        300,
        layer(
            "lora",
            level,
            y=number("value"),
            color=colour,
            tooltip=[category("method", "method"), category("rank", "rank"), value],
        ),
        layer("bora", {"type": "line", "strokeWidth": 1.8}, **drawn, tooltip=tooltip),
        layer("bora", point, **drawn, tooltip=tooltip),
    )
    return Chart(spec, {"bora": bora, "lora": lora.assign(method="LoRA")})


def granularity(rows: pd.DataFrame) -> Chart:
    """Figure 3 (c): LoRA and BoRA over the adapted projections; columns method, target, value, params."""
    targets = list(dict.fromkeys(rows["target"]))
    x = category("target", "adapted projections", sort=targets, axis={"labelAngle": -35, "labelOverlap": False})
    tooltip = [
        category("label", "method"),
        category("target", "projections"),
        category("params", "#Params"),
        number("value", "accuracy (%)", format=".2f"),
    ]
    colour = category("label", scale=colour_scale(["lora", "bora"]), legend=legend())
    shape = category("label", scale=shape_scale(["lora", "bora"]), legend=legend())
    drawn = {"x": x, "y": _accuracy(), "color": colour, "tooltip": tooltip}
    spec = layered(
        300,
        layer("rows", {"type": "line", "strokeWidth": 1.4}, **drawn),
        layer("rows", {"type": "point", "filled": True, "size": 70, "opacity": 1}, **drawn, shape=shape),
    )
    return Chart(spec, {"rows": labelled(rows)})


def _accuracy(**tip: Any) -> Spec:
    """The axis; or, with a format, the line of a tooltip."""
    more = tip or {"scale": {"zero": False, "nice": True}, "axis": {"tickCount": 5}}
    return number("value", "accuracy (%)", **more)


def runs(rows: pd.DataFrame, title: str, methods: Sequence[str]) -> Chart:
    """One task of a table: a row per run, its value, and ± its standard deviation where the paper gives one.

    Parameters
    ----------
    rows : of one model, in the paper's order; columns run, label, value, low, high, params.
    """
    order = list(dict.fromkeys(rows["run"]))
    axis = {"title": None, "labelLimit": 180, "labelFlush": False, "grid": True, "ticks": False}
    y = category("run", sort=order, axis=axis)
    x = number("value", title, scale={"zero": False, "padding": 14}, axis={"tickCount": 6})
    colour = category("label", scale=colour_scale(methods), legend=None)
    shape = category("label", scale=shape_scale(methods), legend=None)
    tooltip = [
        category("run", "run"),
        category("params", "#Params"),
        number("value", title, format=".2f"),
        number("std", "standard deviation", format=".2f"),
    ]
    bar = {"type": "rule", "strokeWidth": 1.5}
    point = {"type": "point", "filled": True, "size": 75, "opacity": 1}
    spec = layered(
        26 * len(order) + 50,
        layer(
            "rows", bar, "isValid(datum.low)", y=y, x=number("low"), x2={"field": "high"}, color=colour, tooltip=tooltip
        ),
        layer("rows", point, y=y, x=x, color=colour, shape=shape, tooltip=tooltip),
    )
    return Chart(spec, {"rows": rows})
