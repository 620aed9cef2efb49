"""Frames as text for a terminal, and as files."""

from __future__ import annotations

import json
import os
import shutil
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from .atomic import replacing
from .style import method_look


def layer_table(layers: pd.DataFrame, threshold: float) -> str:
    """A block per adapter and step: one line per module, and a line of totals above them."""
    blocks = []
    columns = ["rank_bound", "effective_rank", "entropy_rank", "stable_rank", "energy_rank_99", "frobenius_norm"]
    heads = ["bound", f"σ>{threshold:g}", "entropy", "stable", "99 %", "‖ΔW‖_F"]
    for (name, step), part in layers.groupby(["adapter", "step"], sort=False, dropna=False):
        first = part.iloc[0]
        shapes = [f"{m}×{n}" for m, n in zip(part["out_features"], part["in_features"], strict=True)]
        numbers = [_numbers(part[column]) for column in columns]
        title = f"{name}{_step(step)}: {_methods(part)}, r = {_span(part['r'])}"
        if (part["blocks"] > 1).any():
            title += f", b = {_span(part['blocks'])}"
        title += f", scaling {first['scaling']:.4g}" if part["scaling"].nunique(dropna=False) == 1 else ""
        title += f"; {len(part)} modules, {part['parameters'].sum():,} parameters"
        blocks.append(title + "\n" + grid(["module", "out×in", *heads], [list(part["module"]), shapes, *numbers]))
    legend = (
        f"bound: most the sizes allow; σ>{threshold:g}: effective rank; entropy: exp H(σ/Σσ); stable: ‖ΔW‖_F²/σ₁²;\n"
        "99 %: directions that hold 99 % of Σσ²."
    )
    return "\n\n".join([*blocks, legend])


def summary_table(frame: pd.DataFrame, threshold: float) -> str:
    """What `compare` prints: the adapters as a whole, then each projection, adapters side by side."""
    labels = [f"{name}{_step(step)}" for name, step in zip(frame["adapter"], frame["step"], strict=True)]
    frame = frame.assign(label=labels)
    heads = ["params", "bound", f"σ>{threshold:g}", "used", "entropy", "stable", "99 %", "Σσ²"]
    columns = [
        "parameters", "rank_bound", "effective_rank", "rank_utilisation",
        "entropy_rank", "stable_rank", "energy_rank_99", "energy",
    ]  # fmt: skip
    blocks = []
    for projection in dict.fromkeys(frame["projection"]):
        part = frame[frame["projection"] == projection]
        cells = [_numbers(part[column]) for column in columns]
        cells[0] = [_count(value) for value in part["parameters"]]
        cells[3] = [f"{value:.0%}" for value in part["rank_utilisation"]]
        if projection == "all":
            title = f"All modules ({_span(part['modules'])} in each; ranks are means)"
            table = grid(
                ["adapter", "budget", *heads], [list(part["label"]), [b or "·" for b in part["equal_budget"]], *cells]
            )
        else:
            title, table = f"Projection {projection}", grid(["adapter", *heads], [list(part["label"]), *cells])
        blocks.append(f"{title}\n{table}")
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
        out = StringIO()
        frame.to_csv(out, index=False)
        return out.getvalue()
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


def grid(heads: list[str], columns: list[list[str]]) -> str:
    """Aligned columns, the first to the left. On a terminal that is too narrow the names in it are shortened."""
    widths = [max(map(len, [head, *column])) for head, column in zip(heads, columns, strict=True)]
    if sys.stdout.isatty():  # into a pipe or a file names go whole
        room = max(12, shutil.get_terminal_size().columns - sum(widths[1:]) - 2 * len(widths[1:]))
        if widths[0] > room:
            columns = [_fitted(columns[0], room), *columns[1:]]
            widths[0] = max(map(len, [heads[0], *columns[0]]))
    lines = []
    for name, *cells in [heads, *zip(*columns, strict=True)]:
        lines.append("  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]))
    return "\n".join(lines)


def _fitted(names: list[str], width: int) -> list[str]:
    """Names of at most ``width`` characters: without the dotted path that all share, then without their middle."""
    shared = os.path.commonprefix(names)  # noqa: RUF071  by character is what is meant: these are no file paths
    shared = shared[: shared.rfind(".") + 1]
    out = []
    for name in names:
        short = f"…{name[len(shared) - 1 :]}" if shared else name
        if len(short) > width:
            head = (width - 1) // 3
            short = f"{short[:head]}…{short[len(short) - (width - 1 - head) :]}"
        out.append(short)
    return out


def _methods(part: pd.DataFrame) -> str:
    return ", ".join(method_look(str(method)).label for method in part["method"].unique())


def _step(step: Any) -> str:
    return "" if pd.isna(step) else f" step {step}"


def _span(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low}–{high}"


def _count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _numbers(values: pd.Series) -> list[str]:
    """A column of numbers: whole where all are, else two decimals; very small and very large ones in e-notation."""
    whole = all(value == round(value) for value in values.dropna()) and values.abs().max() < 1e7
    return [f"{value:.0f}" if whole and pd.notna(value) else _number(value) for value in values]


def _number(value: float) -> str:
    if pd.isna(value):
        return "–"
    return f"{value:.2f}" if value == 0 or 0.095 <= abs(value) < 1e5 else f"{value:.2g}"
