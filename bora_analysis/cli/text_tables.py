"""Frames as text for a terminal, and as files."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..atomic import replacing
from ..style import method_look
from .plain_text import printable

if TYPE_CHECKING:
    from ..analysis.recommendation import Recommendation


def layer_table(layers: pd.DataFrame, threshold: float) -> str:
    """What `analyze` prints: a block per adapter and step, a line of totals, then one line per module."""
    blocks = []
    for title, part in _adapters(layers):
        title += f", r = {span(part['r'])}"
        if (part["blocks"] > 1).any():
            title += f", b = {span(part['blocks'])}"
        title += f", scaling {part['scaling'].iloc[0]:.4g}" if part["scaling"].nunique(dropna=False) == 1 else ""
        title += f"; {len(part)} modules, {part['parameters'].sum():,} parameters"
        columns = {"bound": "rank_bound", f"σ>{threshold:g}": "effective_rank"}
        if (part["noise_floor"] > threshold / 10).any():  # beside the effective rank, whose meaning it limits
            columns |= {"noise": "noise_floor", "σ>noise": "rank_above_rounding"}
        columns |= {"entropy": "entropy_rank", "stable": "stable_rank", "99 %": "energy_rank_99"}
        blocks.append(f"{title}\n{_modules(part, columns | {'‖ΔW‖_F': 'frobenius_norm'})}")
    legend = f"bound: highest rank that the sizes allow; {_spectrum_legend(threshold)}"
    if (layers["noise_floor"] > threshold / 10).any():
        legend += (
            " noise: the largest σ that rounding of the stored numbers alone can cause;\nσ>noise: the rank above it."
        )
    return "\n\n".join([*blocks, legend])


def relative_table(frame: pd.DataFrame) -> str:
    """What `relative` prints: one line per module."""
    columns = {"‖ΔW‖/‖W0‖": "relative_norm", "σ₁/σ₁": "relative_spectral_norm", "r": "directions"}
    columns |= {"amplification": "amplification", "intruders": "intruder_dimensions"}
    blocks = [f"{title}, {len(part)} modules\n{_modules(part, columns)}" for title, part in _adapters(frame)]
    legend = (
        "‖ΔW‖/‖W0‖: Frobenius norms; σ₁/σ₁: largest singular values; amplification: ‖ΔW‖_F/‖UᵀW0V‖_F, U and V the top\n"
        f"r directions of ΔW; intruders: how many of the {span(frame['intruder_k'])} largest directions of W0 + ΔW "
        f"have a cosine below\n{span(frame['intruder_epsilon'])} with every direction of W0."
    )
    return "\n\n".join([*blocks, legend])


def summary_table(frame: pd.DataFrame, threshold: float) -> str:
    """What `compare` prints: the adapters as a whole, then each projection, adapters side by side."""
    labels = [f"{name}{_step(step)}" for name, step in zip(frame["adapter"], frame["step"], strict=True)]
    frame = frame.assign(label=labels)
    columns = {"bound": "rank_bound", f"σ>{threshold:g}": "effective_rank", "used": "rank_utilisation"}
    columns |= {"entropy": "entropy_rank", "stable": "stable_rank", "99 %": "energy_rank_99", "Σσ²": "energy"}
    blocks = []
    for projection, part in frame.groupby("projection", sort=False):
        cells: dict[str, Iterable[str]] = {"adapter": part["label"]}
        title = f"Projection {projection}"
        if projection == "all":
            title = f"All modules ({span(part['modules'])} in each; ranks are means)"
            cells["budget"] = [letter or "·" for letter in part["equal_budget"]]
        cells["params"] = map(short, part["parameters"])
        cells |= {head: _numbers(part[column]) for head, column in columns.items()}
        cells["used"] = [f"{value:.0%}" for value in part["rank_utilisation"]]
        blocks.append(f"{title}\n{grid(list(cells), cells.values())}")
    legend = _spectrum_legend(threshold, " used: its share of the bound;")
    legend += " Same letter under budget: parameters equal within 5 %." if any(frame["equal_budget"]) else ""
    return "\n\n".join([*blocks, legend])


def factor_ranks_table(frame: pd.DataFrame) -> str:
    """What `factors` prints: means over the modules, a line per adapter and step."""
    groups = frame.groupby(["adapter", "step"], sort=False, dropna=False)
    means = groups[["rank_B", "rank_sigma", "rank_A", "rank_bound"]].mean()
    labels = [f"{name}{_step(step)}" for name, step in means.index]
    limits = [
        "; ".join(f"{names} in {count} of {len(part)}" for names, count in part.value_counts().items())
        for _, part in groups["limiting"]
    ]
    numbers = [_numbers(means[column]) for column in means]
    table = grid(["adapter", "rank B'", "rank Σ'", "rank A'", "bound", "least"], [labels, *numbers, limits])
    legend = (
        "Numerical ranks of the factors of ΔW = B' Σ' A' (eq. 6), means over the modules; bound: min(m, n, br);\n"
        "least: the factors that limit the rank of ΔW, and in how many modules."
    )
    return f"{table}\n\n{legend}"


def capture_table(frame: pd.DataFrame) -> str:
    """What `capture` prints: a line per adapter and member, weighted over the modules."""
    from ..analysis.capture import shares

    blocks = []
    for title, part in _adapters(shares(frame).rename(columns={"method": "nearest", "target": "method"})):
        found = zip(part["kind"], part["spread"], strict=True)
        cells = {
            "nearest": [*part["member"]],
            "params": [short(x) for x in part["parameters"]],
            "captured": [f"{x:.2%}" for x in part["captured"]],
            "modules": [f"{low:.0%} – {high:.0%}" for low, high in zip(part["least"], part["most"], strict=True)],
            "LoRA": [f"{x:.2%}" for x in part["lora_captured"]],
            "more": [f"{x:+.2%}" for x in part["captured"] - part["lora_captured"]],
            "found": [f"local ±{spread:.1%}" if kind == "local" else kind for kind, spread in found],
        }
        blocks.append(f"{title}; {part['modules'].max()} modules with ΔW ≠ 0\n{grid([*cells], [*cells.values()])}")
    legend = (
        "captured: 1 − ‖ΔW − X‖²/‖ΔW‖² of the nearest X, over all modules; modules: the least and the most of one;\n"
        "LoRA: the same of a LoRA with as many parameters, between whole ranks; local: the best of several starts,\n"
        "± their spread; best case: training draws at random what is chosen here. It is what a method can represent,\n"
        "not what training finds."
    )
    return "\n\n".join([*blocks, legend])


def cut_table(frame: pd.DataFrame) -> str:
    """What `convert` prints: rank and error of each module, and the parameters before and after."""
    errors = {"‖error‖₂": "error_spectral", "‖error‖_F": "error_frobenius", "relative": "error_relative"}
    more = {"energy": [f"{x:.2%}" for x in frame["energy_kept"]]}
    if frame["capped"].any():
        more |= {"capped": _numbers(frame["capped"]), "removed": [f"{x:.2%}" for x in frame["energy_capped"]]}
    more |= {head: [_error(x) for x in frame[column]] for head, column in errors.items()}
    table = _modules(frame, {"rank": "rank_before", "kept": "rank"}, more)
    before, after = int(frame["parameters_before"].sum()), int(frame["parameters"].sum())
    return (
        f"{table}\n\n{_methods(frame)} of {before:,} parameters as a LoRA of {after:,}, ranks {span(frame['rank'])}; "
        f"the largest relative error is {_error(frame['error_relative'].max())}.\n"
        "error: of the file as written, rounding included; no matrix of rank k has less than σ_{k+1} and √Σ_{i>k}σᵢ²."
    )


def representation_table(frame: pd.DataFrame) -> str:
    """What `convert --to` prints: how near each module is, and the parameters before and after."""
    from ..analysis.capture import Member

    more = {
        "captured": [f"{x:.2%}" for x in frame["captured"]],
        "relative": [_error(x) for x in frame["error_relative"]],
    }
    before, after = int(frame["parameters_before"].sum()), int(frame["parameters"].sum())
    member = Member(*frame[["method", "r", "blocks"]].iloc[0])
    return (
        f"{_modules(frame, {}, more)}\n\nThe nearest {member}: {after:,} parameters, where {before:,} were.\n"
        "captured: share of Σσ² that the file keeps, rounding included; relative: ‖ΔW − X‖_F / ‖ΔW‖_F."
    )


def advice_table(found: Sequence[Recommendation], energy: float) -> str:
    """What `recommend` prints: a table per adapter, the saving, the settings for PEFT, and the limits of the advice."""
    from ..analysis.recommendation import LIMITS

    blocks = []
    for each in found:
        frame, first = each.table, each.table.iloc[0]
        blocked = "best_r" in frame
        heads = ["projection", "layers", "R", "needed", "σ_R/σ₁", "verdict", "rank", "keeps", "params", "advised"]
        columns = [
            frame["projection"], frame["layers"], *(_numbers(frame[x]) for x in ("rank_bound", "needed")),
            [f"{x:.2g}" for x in frame["tail"]], frame["verdict"],
            [f"{'≥' if row.verdict == 'exhausted' else ''}{row.rank}" for row in frame.itertuples()],
            ["?" if pd.isna(x) else f"{x:.2%}" for x in frame["kept"]],
            map(short, frame["parameters"]), map(short, frame["advised_parameters"]),
        ]  # fmt: skip
        if blocked:
            heads += ["r, b", "cheapest r, b", "its params"]
            pairs = ("r", "blocks"), ("best_r", "best_blocks")
            columns += [[f"{r}, {b}" for r, b in zip(frame[x], frame[y], strict=True)] for x, y in pairs]
            columns.append(map(short, frame["best_parameters"]))
        change = each.advised_parameters / max(1, each.parameters) - 1
        label = method_look(str(first["method"])).label
        lines = [
            f"{first['adapter']}{_step(first['step'])}: {label}, the rank that keeps {energy:.4g} of Σσ²",
            grid(heads, columns),
            f"{each.parameters:,} parameters trained, {each.advised_parameters:,} advised ({change:+.0%}). PEFT:",
            json.dumps(each.config),
        ]
        if each.unused:
            lines.append(f"No advice for {len(each.unused)} modules with ΔW = 0 ({each.unused[0]} …).")
        blocks.append("\n".join(lines))
    legend = (
        "R: rank bound as trained; needed: least rank that keeps the share, highest over the layers; σ_R/σ₁: last\n"
        "singular value over first; wasted: at most half of R is needed; exhausted: all of it; advised: parameters\n"
        "with the rank advised. The settings for PEFT keep the scaling of each module."
    )
    return "\n\n".join([*blocks, legend, textwrap.fill(printable(LIMITS), 110)])


def similarity_table(frame: pd.DataFrame) -> str:
    """What `similarity` prints: φ, chance, and the smallest angle of each module."""
    first = frame.iloc[0]
    names = ("phi", "random", "angle")
    columns = [[_number(x) for x in frame[f"{name}_{side}"]] for side in ("left", "right") for name in names]
    table = grid(
        ["module", "i", "j", *(f"{head} {side}" for side in ("left", "right") for head in ("φ", "chance", "angle"))],
        [frame["module"], *(_numbers(frame[x]) for x in ("i", "j")), *columns],
    )
    means = ", ".join(
        f"{side} {_number(frame[f'phi_{side}'].mean())} (chance {_number(frame[f'random_{side}'].mean())})"
        for side in ("left", "right")
    )
    return (
        f"{first['adapter_a']} (i) and {first['adapter_b']} (j)\n{table}\n\nMean φ: {means}.\n"
        "φ = ‖UᵢᵀUⱼ‖_F² / min(i, j), 1 where the smaller subspace lies in the other; chance: max(i, j)/d, two random\n"
        "subspaces; angle: smallest principal angle in degrees; left: output side of ΔW, right: input side."
    )


def text(frame: pd.DataFrame, form: str, *, ascii_only: bool = False) -> str:
    """The whole frame, unrounded, as csv or json (a list of records; NaN and missing values are null).

    ``ascii_only`` escapes other characters in json.
    """
    if form == "csv":
        out = StringIO()
        frame.to_csv(out, index=False)
        return out.getvalue()
    records = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
    out = StringIO()
    json.dump(records, out, indent=1, ensure_ascii=ascii_only, allow_nan=False)
    return out.getvalue() + "\n"


def write(frame: pd.DataFrame, path: Path, form: str) -> None:
    """Write the frame as a csv, json or parquet file; a failed write leaves no file."""
    with replacing(path) as temporary:
        if form == "parquet":
            frame.to_parquet(temporary, index=False)
        else:
            temporary.write_text(text(frame, form), encoding="utf-8")


def grid(heads: Iterable[str], columns: Iterable[Iterable[object]]) -> str:
    """Aligned columns, the first to the left; its names are shortened for a terminal that is too narrow.

    Widths are those of the characters that stdout can show.
    """
    cells = [[printable(str(cell)) for cell in (head, *column)] for head, column in zip(heads, columns, strict=True)]
    widths = [max(map(len, column)) for column in cells]
    if sys.stdout.isatty():  # into a pipe or a file names go whole
        room = max(12, shutil.get_terminal_size().columns - sum(widths[1:]) - 2 * len(widths[1:]))
        if widths[0] > room:
            cells[0][1:] = _fitted(cells[0][1:], room)
            widths[0] = max(map(len, cells[0]))
    aligned = [[cell.rjust(width) for cell in column] for column, width in zip(cells, widths, strict=True)]
    aligned[0] = [cell.ljust(widths[0]) for cell in cells[0]]
    return "\n".join(map("  ".join, zip(*aligned, strict=True)))


def _fitted(names: list[str], width: int) -> list[str]:
    """Names of at most ``width`` characters: first the dotted path that all share is dropped, then their middles."""
    gap = printable("…")
    shared = os.path.commonprefix(names)  # noqa: RUF071  by character: these are not file paths
    shared = shared[: shared.rfind(".") + 1]
    out = []
    for name in names:
        short = gap + name[len(shared) - 1 :] if shared else name
        if len(short) > width:
            head, kept = (width - len(gap)) // 3, width - len(gap)
            short = short[:head] + gap + short[len(short) - (kept - head) :]
        out.append(short)
    return out


def _spectrum_legend(threshold: float, used: str = "") -> str:
    return (
        f"σ>{threshold:g}: effective rank;{used} entropy: exp H(σ/Σσ); stable: ‖ΔW‖_F²/σ₁²;\n"
        "99 %: directions that hold 99 % of Σσ²."
    )


def _adapters(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Name, step and method, and the rows, of each adapter and step."""
    for (name, step), part in frame.groupby(["adapter", "step"], sort=False, dropna=False):  # pyright: ignore[reportGeneralTypeIssues]
        yield f"{name}{_step(step)}: {_methods(part)}", part


def _modules(part: pd.DataFrame, columns: dict[str, str], more: dict[str, list[str]] | None = None) -> str:
    """A line per module: its shape, the numbers of the columns, and further cells."""
    shapes = [f"{m}×{n}" for m, n in zip(part["out_features"], part["in_features"], strict=True)]
    cells = {head: _numbers(part[column]) for head, column in columns.items()} | (more or {})
    return grid(["module", "out×in", *cells], [part["module"], shapes, *cells.values()])


def _methods(part: pd.DataFrame) -> str:
    return ", ".join(method_look(str(method)).label for method in part["method"].unique())


def _step(step: Any) -> str:
    return "" if pd.isna(step) else f" step {step}"


def span(values: pd.Series, form: str = "") -> str:
    low, high = values.min(), values.max()
    return f"{low:{form}}" if low == high else f"{low:{form}}–{high:{form}}"


def short(value: float, gap: str = "") -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{gap}{unit}"
    return f"{value:.0f}{gap}"


def _numbers(values: pd.Series) -> list[str]:
    """A column of numbers: no decimals if all are whole, else two; e-notation for very small and large ones."""
    whole = all(value == round(value) for value in values.dropna()) and values.abs().max() < 1e7
    return [f"{value:.0f}" if whole and pd.notna(value) else _number(value) for value in values]


def _error(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}"


def _number(value: float) -> str:
    if pd.isna(value):
        return "–"
    return f"{value:.2f}" if value == 0 or 0.095 <= abs(value) < 1e5 else f"{value:.2g}"
