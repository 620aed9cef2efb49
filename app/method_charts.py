"""Charts of the pages on methods (lab, budget, paper): numbers in, :class:`vega.Chart` out.

Logarithmic axes are given positive data only; colours, labels and markers are those of the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from app import palette, vega
from bora_analysis import style
from bora_analysis.analysis.views import ranks_spread

_BORA = style.method_look("bora").colour


# The lab -------------------------------------------------------------------------------------------------------------


def sweep_ranks(curve: pd.DataFrame, optimum: float, chosen: int) -> vega.Chart:
    """Rank bound (open) and measured rank (filled) of BoRA against b; a table of ``lab_model.sweep``."""
    tips = vega.tooltip(curve, blocks="b", rank_bound="bound", measured_rank="measured rank")
    x, y = vega.blocks_axis(list(curve["blocks"])), vega.number("rank_bound", "rank of ΔW")
    rings = vega.point(150, shape="diamond", filled=False, color=_BORA, strokeWidth=1.4)
    dots, measured = vega.point(45, shape="diamond", color=_BORA), vega.number("measured_rank")
    layers = (
        vega.layer("sweep", vega.line(1.2, color=_BORA, strokeDash=vega.DASHED), x=x, y=y),
        vega.layer("sweep", rings, x=x, y=y, tooltip=tips),
        vega.layer("sweep", dots, x=x, y=measured, tooltip=tips),
    )
    return _sweep(curve, optimum, chosen, *layers)


def sweep_price(curve: pd.DataFrame, column: str, title: str, optimum: float, chosen: int) -> vega.Chart:
    """One price of BoRA against b, on a log axis; a column of ``lab_model.sweep``."""
    prices = {"parameters": "parameters", "rank_bound": "rank bound", "parameters_per_rank": "parameters per rank"}
    each = {"x": vega.blocks_axis(list(curve["blocks"])), "y": vega.log_number(column, title, 5, nice=True)}
    tips, dots = vega.tooltip(curve, blocks="b", **prices), vega.point(60, shape="diamond", color=_BORA)
    line = vega.layer("sweep", vega.line(1.2, color=_BORA), **each)
    return _sweep(curve, optimum, chosen, line, vega.layer("sweep", dots, **each, tooltip=tips))


def _sweep(curve: pd.DataFrame, optimum: float, chosen: int, *layers: vega.Spec) -> vega.Chart:
    """Between a band at the b of the controls and a rule at √(m+n)."""
    x, text = vega.number("blocks"), vega.words("right", "top", dx=-4)
    layers = (
        vega.layer("chosen", vega.rule(7, color=palette.theme().guide, opacity=0.25), x=x),
        *layers,
        vega.layer("optimum", vega.rule(1, color=palette.theme().guide, strokeDash=vega.DASHED), x=x),
        vega.layer("optimum", text, x=x, y={"value": 2}, text=vega.category("text")),
    )
    marked = pd.DataFrame({"blocks": [optimum], "text": ["√(m+n)"]})
    data = {"sweep": curve, "chosen": pd.DataFrame({"blocks": [chosen]}), "optimum": marked}
    return vega.layered(260, layers, data)


# The budget ----------------------------------------------------------------------------------------------------------


def pareto(frame: pd.DataFrame, front: pd.DataFrame, budget: int, methods: Sequence[str]) -> vega.Chart:
    """Rank bound against parameters, a point per ``budget.Choice``; the front as a line, the budget as a rule."""
    x = vega.log_number("parameters", "trained parameters", 6, padding=14)
    y = vega.log_number("rank_bound", "rank bound, mean over the matrices", 8, "~g", base=2, padding=14)
    told = {"label": "method", "r": "r", "blocks": "b", "parameters": "parameters", "rank_bound": "rank bound"}
    told |= {"macs_per_token": "MACs per token"}
    shown, limit = vega.labelled(frame)[list(told)], pd.DataFrame({"parameters": [budget], "text": ["budget"]})
    each = {"x": x, "y": y, **vega.by_method(methods), "tooltip": vega.tooltip(shown, **told)}
    stairs = vega.line(1.2, color=palette.theme().guide, interpolate="step-after", strokeDash=vega.DASHED)
    text = vega.words("right", "bottom", dx=4)
    layers = (
        vega.layer("front", stairs, x=x, y=y),
        vega.layer("choices", vega.point(42), **each),
        vega.layer("budget", vega.rule(1.5, color=palette.theme().guide), x=vega.number("parameters")),
        vega.layer("budget", text, x=vega.number("parameters"), y={"value": -4}, text=vega.category("text")),
    )
    return vega.layered(
        380 + vega.legend_height(shown, vega.WHOLE),
        layers,
        {"front": vega.labelled(front)[list(told)], "choices": shown, "budget": limit},
    )


def adapters_pareto(frame: pd.DataFrame, looks: dict[str, style.Look]) -> vega.Chart:
    """``views.costs`` of the chosen adapters: mean rank bound (open) and mean effective rank (filled)."""
    shown = vega.dressed(frame, looks)
    kinds = {"rank_bound": "rank bound", "effective_rank": "effective rank"}
    long = shown.melt(["adapter", "label", "parameters"], list(kinds), "kind", "rank").replace({"kind": kinds})
    colour, shape, _ = vega.by_adapter(shown, looks)
    x = vega.log_number("parameters", "trained parameters", 4, padding=30)
    tips = vega.tooltip(long, label="adapter", kind="kind", rank="rank", parameters="parameters")
    y = {"scale": vega.log_scale(base=2, padding=14), "axis": {"format": "~g"}} if ranks_spread(long["rank"]) else {}
    each = {"x": x, "y": vega.number("rank", "rank, mean over the modules", **y), "color": colour, "tooltip": tips}
    each |= {"shape": shape}
    span = {"x": x, "y": vega.number("rank_bound", **y), "y2": {"field": "effective_rank"}, "color": colour}
    layers = (
        vega.layer("spans", vega.rule(1.2), **span),
        vega.layer("points", vega.point(110, filled=False), "datum.kind == 'rank bound'", **each),
        vega.layer("points", vega.point(70), "datum.kind == 'effective rank'", **each),
    )
    return vega.layered(340 + vega.legend_height(shown, vega.WHOLE), layers, {"spans": shown, "points": long})


def block_price(frame: pd.DataFrame, rules: pd.DataFrame) -> vega.Chart:
    """N(b)/R = (m+n)/b + b against b, a line and a marker per shape; rings at the paper's ⌊√n⌋.

    Columns shape, blocks, price, and in ``frame`` whether it is the best of its shape.
    """
    shapes = list(dict.fromkeys(frame["shape"]))
    colours = {shape: palette.on_screen(style.shade(_BORA, k)) for k, shape in enumerate(shapes)}
    key, marks = vega.legend(columns=1), _marks(shapes)
    tips = vega.tooltip(frame, shape="shape", blocks="b", price="(m+n)/b + b")
    each = {
        "x": vega.blocks_axis(sorted(set(frame["blocks"]))),
        "y": vega.log_number("price", "parameters per unit of rank", 6, nice=True),
        "color": vega.scaled("shape", colours, key),
        "tooltip": tips,
    }
    ring = vega.point(330, shape="circle", filled=False, color=palette.theme().guide)
    layers = (
        vega.layer("prices", vega.line(1.2), **each),
        vega.layer("prices", vega.point(36), **each, shape=vega.scaled("shape", marks, key)),
        vega.layer("prices", vega.point(170), "datum.best", **each, shape=vega.scaled("shape", marks, key)),
        vega.layer("rules", ring, x=vega.number("blocks"), y=vega.number("price"), tooltip=tips),
    )
    return vega.layered(340, layers, {"prices": frame, "rules": rules})


def _marks(names: Sequence[str]) -> dict[str, str]:
    """Name → marker, of lines whose colours are shades of one."""
    return {name: vega.SHAPES[style.MARKERS[k % len(style.MARKERS)]] for k, name in enumerate(names)}


# The paper -----------------------------------------------------------------------------------------------------------


def _accuracy(**tip: Any) -> vega.Spec:
    """The axis; or, with a format, the line of a tooltip."""
    more = tip or {"scale": {"zero": False, "nice": True}, "axis": {"tickCount": 5}}
    return vega.number("value", "accuracy (%)", **more)


def ablations(rows: pd.DataFrame) -> vega.Chart:
    """Figure 3 (a): BoRA without the exponential or the normalisation; columns name, variant, value."""
    shades = {"BoRA": 0, "w.o. Exp": 2, "w.o. Norm": 1}
    colours = {name: palette.on_screen(style.shade(_BORA, k)) for name, k in shades.items()}
    shapes = dict(zip(colours, ("diamond", "triangle-up", "triangle-down"), strict=True))
    points = vega.layer(
        "rows",
        vega.point(110),
        x=_accuracy(),
        y=vega.category("name", sort=None, axis={"title": None, "labelLimit": 110, "grid": True}),
        color=vega.scaled("variant", colours, vega.legend()),
        shape=vega.scaled("variant", shapes, vega.legend()),
        tooltip=vega.tooltip(rows, name="model", variant="variant", value=_accuracy(format=".2f")),
    )
    return vega.layered(300, [points], {"rows": rows})


def ranks_and_blocks(bora: pd.DataFrame, lora: pd.DataFrame) -> vega.Chart:
    """Figure 3 (b): BoRA over b, a line and a marker per r; dashed, LoRA of that r. Columns rank, blocks, value."""
    ranks = list(dict.fromkeys(bora["rank"]))
    colours = dict(zip(ranks, palette.ramp(_BORA, len(ranks)), strict=True))
    key = vega.legend(columns=3, symbolSize=90)
    colour, shape = (vega.scaled("rank", look, key, sort=None) for look in (colours, _marks(ranks)))
    value, lora = _accuracy(format=".2f"), lora.assign(method="LoRA")
    each = {
        "x": vega.blocks_axis(sorted(set(bora["blocks"]))),
        "y": _accuracy(),
        "color": colour,
        "tooltip": vega.tooltip(bora, rank="rank", blocks="b", value=value),
    }
    tips = vega.tooltip(lora, method="method", rank="rank", value=value)
    layers = (
        vega.layer("lora", vega.rule(1.2, strokeDash=vega.DASHED), y=vega.number("value"), color=colour, tooltip=tips),
        vega.layer("bora", vega.line(1.8), **each),
        vega.layer("bora", vega.point(55), **each, shape=shape),
    )
    return vega.layered(300, layers, {"bora": bora, "lora": lora})


def granularity(rows: pd.DataFrame) -> vega.Chart:
    """Figure 3 (c): LoRA and BoRA over the adapted projections; columns method, target, value, params."""
    axis = {"labelAngle": -35, "labelOverlap": False}
    shown, looks = vega.labelled(rows), vega.by_method(["lora", "bora"])
    value = _accuracy(format=".2f")
    each = {
        "x": vega.category("target", "adapted projections", sort=list(dict.fromkeys(rows["target"])), axis=axis),
        "y": _accuracy(),
        "color": looks["color"],
        "tooltip": vega.tooltip(shown, label="method", target="projections", params="#Params", value=value),
    }
    points = vega.layer("rows", vega.point(70), **each, shape=looks["shape"])
    return vega.layered(300, [vega.layer("rows", vega.line(1.4), **each), points], {"rows": shown})


def runs(rows: pd.DataFrame, title: str, methods: Sequence[str]) -> vega.Chart:
    """One task of a table for one model: a row per run, and ± its standard deviation where the paper gives one.

    Columns run, label, value, std, low, high, params.
    """
    order = list(dict.fromkeys(rows["run"]))
    axis = {"title": None, "labelLimit": 180, "labelFlush": False, "grid": True, "ticks": False}
    value, std = (vega.number(*column, format=".2f") for column in (("value", title), ("std", "standard deviation")))
    tips = vega.tooltip(rows, run="run", params="#Params", value=value, std=std)
    looks = vega.by_method(methods, None)
    each = {"y": vega.category("run", sort=order, axis=axis), "tooltip": tips}
    ends = {"x": vega.number("low"), "x2": {"field": "high"}, "color": looks["color"]}
    x = vega.number("value", title, scale={"zero": False, "padding": 14}, axis={"tickCount": 6})
    layers = (
        vega.layer("rows", vega.rule(1.5), "isValid(datum.low)", **each, **ends),
        vega.layer("rows", vega.point(75), **each, x=x, **looks),
    )
    return vega.layered(26 * len(order) + 50, layers, {"rows": rows})


# Capture -------------------------------------------------------------------------------------------------------------


def captured(found: pd.DataFrame, methods: Sequence[str]) -> vega.Chart:
    """Captured share against parameters, a line per method; a table of ``bora_analysis.analysis.capture.shares``."""
    told = {"label": "method", "member": "nearest", "parameters": "parameters", "captured": "captured"}
    told |= {"lora_captured": "LoRA of as many", "kind": "found"}
    shown = vega.labelled(found)
    x = vega.log_number("parameters", "trained parameters", 5, padding=14)
    y = vega.number("captured", "captured share of Σσ²", scale={"domain": [0, 1]}, axis={"format": "%"})
    each = {"x": x, "y": y, **vega.by_method(methods)}
    line, dots = {key: value for key, value in each.items() if key != "shape"}, vega.point(60)
    dashes = vega.line(1.2, color=palette.theme().guide, strokeDash=vega.DASHED)
    tips = vega.tooltip(shown, **told)
    layers = [
        vega.layer("shares", dashes, x=x, y=vega.number("lora_captured")),
        vega.layer("shares", vega.line(1.5), **line),
    ]
    # A layer without rows would have no extent, of which the browser's console warns.
    for words, filled in (("datum.kind != 'best case'", True), ("datum.kind == 'best case'", False)):
        if ((shown["kind"] != "best case") == filled).any():
            layers.append(vega.layer("shares", {**dots, "filled": filled}, words, **each, tooltip=tips))
    return vega.layered(340 + vega.legend_height(shown, vega.WHOLE), layers, {"shares": shown[list(told)]})
