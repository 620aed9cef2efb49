"""Frames as text for a terminal, and as files."""

from __future__ import annotations

import json
import shutil
import sys
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from .atomic import replacing

if TYPE_CHECKING:
    import pandas as pd

METHOD_LABELS = {"lora": "LoRA", "rslora": "rsLoRA", "melora": "MELoRA", "bora": "BoRA"}


def layer_table(layers: pd.DataFrame, threshold: float) -> str:
    """A block per adapter and step: one line per module, and a line of totals above them."""
    blocks = []
    columns = ["rank_bound", "effective_rank", "entropy_rank", "stable_rank", "energy_rank_99", "frobenius_norm"]
    heads = ["bound", f"σ>{threshold:g}", "entropy", "stable", "99 %", "‖ΔW‖_F"]
    for (name, step), part in layers.groupby(["adapter", "step"], sort=False, dropna=False):
        first = part.iloc[0]
        rows = [
            [shape, *(_number(row[column]) for column in columns)]
            for shape, (_, row) in zip(
                (f"{m}×{n}" for m, n in zip(part["out_features"], part["in_features"], strict=True)),
                part.iterrows(),
                strict=True,
            )
        ]
        title = f"{name}{_step(step)}: {_methods(part)}, r = {_span(part['r'])}"
        if (part["blocks"] > 1).any():
            title += f", b = {_span(part['blocks'])}"
        title += f", scaling {_number(first['scaling'])}" if part["scaling"].nunique(dropna=False) == 1 else ""
        title += f"; {len(part)} modules, {part['parameters'].sum():,} parameters"
        blocks.append(title + "\n" + _grid(["module", "out×in", *heads], [list(part["module"]), *zip(*rows, strict=True)]))
    legend = (
        f"bound: most the sizes allow; σ>{threshold:g}: effective rank; entropy: exp H(σ/Σσ); stable: ‖ΔW‖_F²/σ₁²;\n"
        "99 %: directions that hold 99 % of Σσ²."
    )
    return "\n\n".join([*blocks, legend])


def summary_table(frame: pd.DataFrame, threshold: float) -> str:
    """What `compare` prints: the adapters as a whole, then each projection, adapters side by side."""
    frame = frame.assign(label=[f"{name}{_step(step)}" for name, step in zip(frame["adapter"], frame["step"], strict=True)])
    heads = ["params", "bound", f"σ>{threshold:g}", "used", "entropy", "stable", "99 %", "Σσ²"]
    columns = [
        "parameters", "rank_bound", "effective_rank", "rank_utilisation",
        "entropy_rank", "stable_rank", "energy_rank_99", "energy",
    ]  # fmt: skip
    blocks = []
    for projection in dict.fromkeys(frame["projection"]):
        part = frame[frame["projection"] == projection]
        cells = [[_count(part.iloc[i]["parameters"]), *(_number(part.iloc[i][c]) for c in columns[1:])] for i in range(len(part))]
        for row, share in zip(cells, part["rank_utilisation"], strict=True):
            row[3] = f"{share:.0%}"
        names = list(part["label"])
        if projection == "all":
            modules = f"{_span(part['modules'])} modules" if part["modules"].nunique() > 1 else f"{part['modules'].iloc[0]} modules"
            title, first = f"All modules ({modules} each; ranks are means)", "adapter"
            budget = [[letter or "·" for letter in part["equal_budget"]]]
            heads_here = [first, "budget", *heads]
        else:
            title, budget, heads_here = f"Projection {projection}", [], ["adapter", *heads]
        blocks.append(title + "\n" + _grid(heads_here, [names, *budget, *zip(*cells, strict=True)]))
    letters = sorted({letter for letter in frame["equal_budget"] if letter})
    legend = (
        f"σ>{threshold:g}: effective rank; used: its share of the bound; entropy: exp H(σ/Σσ); stable: ‖ΔW‖_F²/σ₁²;\n"
        "99 %: directions that hold 99 % of Σσ²."
    )
    legend += " Same letter under budget: parameters equal within 5 %." if letters else ""
    return "\n\n".join([*blocks, legend])


def text(frame: pd.DataFrame, form: str) -> str:
    """The whole frame, unrounded, as csv or json (a list of records; NaN and missing values are null)."""
    if form == "csv":
        return frame.to_csv(index=False)
    records = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
    out = StringIO()
    json.dump(records, out, indent=1, ensure_ascii=False, allow_nan=False)
    return out.getvalue() + "\n"


def write(frame: pd.DataFrame, path: Path, form: str) -> None:
    """The frame as a csv, json or parquet file, whole or not at all."""
    with replacing(path) as temporary:
        if form == "parquet":
            frame.to_parquet(temporary, index=False)
        else:
            temporary.write_text(text(frame, form), encoding="utf-8")


def _grid(heads: list[str], columns: list) -> str:
    """Aligned columns: the first to the left, shortened to the terminal's width if there is one; the rest right."""
    widths = [max(len(head), *(len(cell) for cell in column)) for head, column in zip(heads, columns, strict=True)]
    if sys.stdout.isatty():  # into a pipe or a file names go whole
        room = shutil.get_terminal_size().columns - sum(widths[1:]) - 2 * len(widths[1:])
        widths[0] = max(12, min(widths[0], room))
    lines = []
    for row in [heads, *zip(*columns, strict=True)]:
        name = row[0] if len(row[0]) <= widths[0] else _shortened(row[0], widths[0])
        lines.append("  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]))
    return "\n".join(lines)


def _shortened(name: str, width: int) -> str:
    """The middle gives way: a module's beginning and end say most."""
    head = (width - 1) // 3
    return f"{name[:head]}…{name[len(name) - (width - 1 - head):]}"


def _methods(part: pd.DataFrame) -> str:
    return ", ".join(METHOD_LABELS.get(method, method) for method in dict.fromkeys(part["method"]))


def _step(step: object) -> str:
    return "" if step is None or step != step or str(step) == "<NA>" else f" step {step}"


def _span(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low}–{high}"


def _count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _number(value: float) -> str:
    if value != value:
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value)}"
    return f"{value:.2f}" if 0.1 <= abs(value) < 1e5 else f"{value:.2g}"
