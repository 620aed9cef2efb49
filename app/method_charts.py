"""Charts of the pages on methods (lab, budget, paper): numbers in, :class:`Chart` out.

Logarithmic axes are given positive data only; colours, labels and markers are those of the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from app.chart_parts import (
    DASHED,
    Chart,
    Spec,
    blocks_axis,
    by_adapter,
    by_method,
    category,
    dark,
    dressed,
    guide,
    labelled,
    layer,
    layered,
    legend,
    line,
    log_number,
    number,
    on_screen,
    point,
    rule,
    scaled,
    tooltip,
    words,
)
from bora_analysis import style

_BORA = style.method_look("bora").colour


# The lab -------------------------------------------------------------------------------------------------------------


def sweep_ranks(curve: pd.DataFrame, optimum: float, chosen: int) -> Chart:
    """Rank bound (open) and measured rank (filled) of BoRA against b; a table of ``lab_model.sweep``."""
    tips = tooltip(curve, blocks="b", rank_bound="bound", measured_rank="measured rank")
    x, y = blocks_axis(list(curve["blocks"])), number("rank_bound", "rank of ΔW")
    rings = point(150, shape="diamond", filled=False, color=_BORA, strokeWidth=1.4)
    layers = (
        layer("sweep", line(1.2, color=_BORA, strokeDash=DASHED), x=x, y=y),
        layer("sweep", rings, x=x, y=y, tooltip=tips),
        layer("sweep", point(45, shape="diamond", color=_BORA), x=x, y=number("measured_rank"), tooltip=tips),
    )
    return _sweep(curve, optimum, chosen, *layers)


def sweep_price(curve: pd.DataFrame, column: str, title: str, optimum: float, chosen: int) -> Chart:
    """One price of BoRA against b, on a log axis; a column of ``lab_model.sweep``."""
    prices = {"parameters": "parameters", "rank_bound": "rank bound", "parameters_per_rank": "parameters per rank"}
    each = {"x": blocks_axis(list(curve["blocks"])), "y": log_number(column, title, 5, nice=True)}
    dots = layer("sweep", point(60, shape="diamond", color=_BORA), **each, tooltip=tooltip(curve, blocks="b", **prices))
    return _sweep(curve, optimum, chosen, layer("sweep", line(1.2, color=_BORA), **each), dots)


def _sweep(curve: pd.DataFrame, optimum: float, chosen: int, *layers: Spec) -> Chart:
    """Between a band at the b of the controls and a rule at √(m+n)."""
    x, text = number("blocks"), words("right", "top", dx=-4)
    spec = layered(
        260,
        layer("chosen", rule(7, color=guide(), opacity=0.25), x=x),
        *layers,
        layer("optimum", rule(1, color=guide(), strokeDash=DASHED), x=x),
        layer("optimum", text, x=x, y={"value": 2}, text=category("text")),
    )
    marked = pd.DataFrame({"blocks": [optimum], "text": ["√(m+n)"]})
    return Chart(spec, {"sweep": curve, "chosen": pd.DataFrame({"blocks": [chosen]}), "optimum": marked})


# The budget ----------------------------------------------------------------------------------------------------------


def pareto(frame: pd.DataFrame, front: pd.DataFrame, budget: int, methods: Sequence[str]) -> Chart:
    """Rank bound against parameters, a point per (method, r, b); the front as a line, the budget as a rule.

    Parameters
    ----------
    frame : fields of :class:`bora_analysis.analysis.budget.Choice`.
    front : those of its rows that no cheaper one reaches.
    """
    x = log_number("parameters", "trained parameters", 6, padding=14)
    y = log_number("rank_bound", "rank bound, mean over the matrices", 8, "~g", base=2, padding=14)
    told = {"label": "method", "r": "r", "blocks": "b", "parameters": "parameters", "rank_bound": "rank bound"}
    told |= {"macs_per_token": "MACs per token"}
    shown, limit = labelled(frame)[list(told)], pd.DataFrame({"parameters": [budget], "text": ["budget"]})
    each = {"x": x, "y": y, **by_method(methods, legend(columns=3)), "tooltip": tooltip(shown, **told)}
    stairs = line(1.2, color=guide(), interpolate="step-after", strokeDash=DASHED)
    text = words("right", "bottom", dx=4)
    spec = layered(
        380,
        layer("front", stairs, x=x, y=y),
        layer("choices", point(42), **each),
        layer("budget", rule(1.5, color=guide()), x=number("parameters")),
        layer("budget", text, x=number("parameters"), y={"value": -4}, text=category("text")),
    )
    return Chart(spec, {"front": labelled(front)[list(told)], "choices": shown, "budget": limit})


def adapters_pareto(frame: pd.DataFrame, looks: dict[str, style.Look]) -> Chart:
    """Chosen adapters: mean rank bound (open) and mean effective rank (filled) against parameters.

    Parameters
    ----------
    frame : columns adapter, parameters, rank_bound, effective_rank.
    """
    shown = dressed(frame, looks)
    kinds = {"rank_bound": "rank bound", "effective_rank": "effective rank"}
    long = shown.melt(["adapter", "label", "parameters"], list(kinds), "kind", "rank").replace({"kind": kinds})
    colour, shape, _ = by_adapter(shown, looks)
    x, y = log_number("parameters", "trained parameters", 4, padding=30), number("rank", "rank, mean over the modules")
    tips = tooltip(long, label="adapter", kind="kind", rank="rank", parameters="parameters")
    each = {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": tips}
    span = {"x": x, "y": number("rank_bound"), "y2": {"field": "effective_rank"}, "color": colour}
    spec = layered(
        340,
        layer("spans", rule(1.2), **span),
        layer("points", point(110, filled=False), "datum.kind == 'rank bound'", **each),
        layer("points", point(70), "datum.kind == 'effective rank'", **each),
    )
    return Chart(spec, {"spans": shown, "points": long})


def block_price(frame: pd.DataFrame, rules: pd.DataFrame) -> Chart:
    """N(b)/R = (m+n)/b + b against b, a line per shape.

    Parameters
    ----------
    frame : columns shape, blocks, price, best (whether it is the least of its shape).
    rules : columns shape, blocks, price: the paper's ⌊√n⌋, whether it divides or not.
    """
    colours = {shape: on_screen(style.shade(_BORA, k)) for k, shape in enumerate(dict.fromkeys(frame["shape"]))}
    tips = tooltip(frame, shape="shape", blocks="b", price="(m+n)/b + b")
    each = {
        "x": blocks_axis(sorted(set(frame["blocks"]))),
        "y": log_number("price", "parameters per unit of rank", 6, nice=True),
        "color": scaled("shape", colours, legend(columns=1)),
        "tooltip": tips,
    }
    ring = point(330, shape="circle", filled=False, color=guide())
    spec = layered(
        340,
        layer("prices", line(1.2), **each),
        layer("prices", point(36, shape="diamond"), **each),
        layer("prices", point(170, shape="diamond"), "datum.best", **each),
        layer("rules", ring, x=number("blocks"), y=number("price"), tooltip=tips),
    )
    return Chart(spec, {"prices": frame, "rules": rules})


# The paper -----------------------------------------------------------------------------------------------------------


def _accuracy(**tip: Any) -> Spec:
    """The axis; or, with a format, the line of a tooltip."""
    more = tip or {"scale": {"zero": False, "nice": True}, "axis": {"tickCount": 5}}
    return number("value", "accuracy (%)", **more)


def ablations(rows: pd.DataFrame) -> Chart:
    """Figure 3 (a): BoRA without the exponential or the normalisation; columns name, variant, value."""
    colours = {name: on_screen(style.shade(_BORA, k)) for name, k in (("BoRA", 0), ("w.o. Exp", 2), ("w.o. Norm", 1))}
    shapes = dict(zip(colours, ("diamond", "triangle-up", "triangle-down"), strict=True))
    points = layer(
        "rows",
        point(110),
        x=_accuracy(),
        y=category("name", sort=None, axis={"title": None, "labelLimit": 110, "grid": True}),
        color=scaled("variant", colours, legend()),
        shape=scaled("variant", shapes, legend()),
        tooltip=tooltip(rows, name="model", variant="variant", value=_accuracy(format=".2f")),
    )
    return Chart(layered(300, points), {"rows": rows})


def ranks_and_blocks(bora: pd.DataFrame, lora: pd.DataFrame) -> Chart:
    """Figure 3 (b): BoRA over b, a line per r; dashed, LoRA of that r. Columns rank, blocks, value."""
    # One hue, from light to strong, as r grows; on a dark page the light end is the one that is seen best.
    shades = ["#F6C6A0", "#F0A877", "#E88A4F", "#D55E00", "#A84A00", "#7A3600"]
    ranks = list(dict.fromkeys(bora["rank"]))
    shades = shades[: len(ranks)][:: -1 if dark() else 1]
    colours = {rank: on_screen(shade) for rank, shade in zip(ranks, shades, strict=True)}
    colour = scaled("rank", colours, legend(columns=3, symbolSize=300), sort=None)
    value, lora = _accuracy(format=".2f"), lora.assign(method="LoRA")
    each = {
        "x": blocks_axis(sorted(set(bora["blocks"]))),
        "y": _accuracy(),
        "color": colour,
        "tooltip": tooltip(bora, rank="rank", blocks="b", value=value),
    }
    tips = tooltip(lora, method="method", rank="rank", value=value)
    spec = layered(
        300,
        layer("lora", rule(1.2, strokeDash=DASHED), y=number("value"), color=colour, tooltip=tips),
        layer("bora", line(1.8), **each),
        layer("bora", point(55, shape="diamond"), **each),
    )
    return Chart(spec, {"bora": bora, "lora": lora})


def granularity(rows: pd.DataFrame) -> Chart:
    """Figure 3 (c): LoRA and BoRA over the adapted projections; columns method, target, value, params."""
    axis = {"labelAngle": -35, "labelOverlap": False}
    shown, looks = labelled(rows), by_method(["lora", "bora"], legend())
    value = _accuracy(format=".2f")
    each = {
        "x": category("target", "adapted projections", sort=list(dict.fromkeys(rows["target"])), axis=axis),
        "y": _accuracy(),
        "color": looks["color"],
        "tooltip": tooltip(shown, label="method", target="projections", params="#Params", value=value),
    }
    points = layer("rows", point(70), **each, shape=looks["shape"])
    return Chart(layered(300, layer("rows", line(1.4), **each), points), {"rows": shown})


def runs(rows: pd.DataFrame, title: str, methods: Sequence[str]) -> Chart:
    """One task of a table: a row per run, its value, and ± its standard deviation where the paper gives one.

    Parameters
    ----------
    rows : of one model, in the paper's order; columns run, label, value, low, high, params.
    """
    order = list(dict.fromkeys(rows["run"]))
    axis = {"title": None, "labelLimit": 180, "labelFlush": False, "grid": True, "ticks": False}
    digits = {"value": number("value", title, format=".2f"), "std": number("std", "standard deviation", format=".2f")}
    tips = tooltip(rows, run="run", params="#Params", **digits)
    looks = by_method(methods, None)
    each = {"y": category("run", sort=order, axis=axis), "tooltip": tips}
    ends = {"x": number("low"), "x2": {"field": "high"}, "color": looks["color"]}
    x = number("value", title, scale={"zero": False, "padding": 14}, axis={"tickCount": 6})
    spec = layered(
        26 * len(order) + 50,
        layer("rows", rule(1.5), "isValid(datum.low)", **each, **ends),
        layer("rows", point(75), **each, x=x, **looks),
    )
    return Chart(spec, {"rows": rows})
