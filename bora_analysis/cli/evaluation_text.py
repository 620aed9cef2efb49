"""What `evaluate` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from ..style import method_look
from .cells import short
from .grid import Block, Column, Page

# Places in the order in which columns go where the terminal is narrow.
_PARAMETERS, _RANK, _LOSS, _CHANGE_INTERVAL, _INTERVAL = 5, 4, 3, 2, 1


def evaluation_table(frame: pd.DataFrame, confidence: float) -> Page:
    """A table per adapter, a line per cut, the draws of a random order in one."""
    blocks = []
    for (name, step), part in frame.groupby(["adapter", "step"], sort=False, dropna=False):  # pyright: ignore[reportGeneralTypeIssues]
        task, *others = part["metric"].unique()
        label = "+".join(method_look(each).label for each in str(part["method"].iloc[0]).split("+"))
        title = f"{_title(name, step)}: {label}, {part['n'].iloc[0]:,} held-out examples"
        cuts = [cut for _, cut in part.groupby(["keep", "order"], sort=False)]
        blocks.append(Block(title, _columns(cuts, task, others, f"{100 * confidence:.4g} %"), part))
    notes = ["Intervals: percentiles of a paired bootstrap over the examples."]
    if frame["draw"].max() > 0:
        notes.append("random: the mean of the draws; in place of the interval the least and the most of them.")
    return Page(blocks, notes)


def _columns(cuts: Sequence[pd.DataFrame], task: str, others: Sequence[str], interval: str) -> list[Column]:
    own = [cut[cut["metric"] == task] for cut in cuts]

    def column(head: str, name: str, form: Callable[[float], str], spare: int = 0, meaning: str = "") -> Column:
        values = [float(cut[name].mean()) for cut in own]
        return Column(head, [form(value) for value in values], name, values, spare, meaning=meaning)

    def span(head: str, value: str, low: str, high: str, form: str, spare: int) -> Column:
        ends = [
            (float(cut[value].min()), float(cut[value].max()))
            if len(cut) > 1
            else (float(cut[low].iloc[0]), float(cut[high].iloc[0]))
            for cut in own
        ]
        return Column(head, [f"{a:{form}} – {b:{form}}" for a, b in ends], low, [a for a, _ in ends], spare)

    named = [_named(cut.iloc[0]) for cut in own]
    columns = [
        Column("keep", named, "keep", meaning="directions of each ΔW, the largest unless named, or a share of Σσ²"),
        column("rank", "rank", "{:.4g}".format, _RANK, "directions kept, mean over the modules"),
        column("energy", "energy", "{:.1%}".format, meaning="share of Σσ² kept"),
        column("params", "parameters", short, _PARAMETERS, "of a LoRA of these directions; of all: the adapter's"),
        column(task, "value", "{:.4f}".format),
        span(interval, "value", "low", "high", ".4f", _INTERVAL),
        column("change", "change", "{:+.4f}".format, meaning="against all, on the same examples"),
        span(f"its {interval}", "change", "change_low", "change_high", "+.4f", _CHANGE_INTERVAL),
    ]
    for metric in others:
        values = [float(cut[cut["metric"] == metric]["value"].mean()) for cut in cuts]
        columns.append(Column(metric, [f"{value:.4f}" for value in values], metric, values, _LOSS))
    return columns


def _named(row: Any) -> str:
    return str(row["keep"]) if row["order"] in ("largest", "energy") else f"{row['keep']} {row['order']}"


def _title(name: Any, step: Any) -> str:
    return str(name) if pd.isna(step) else f"{name} step {step}"


def compared_table(frame: pd.DataFrame, confidence: float) -> Page:
    """A table per pair of adapters, a line per cut and metric."""
    blocks = []
    for (first, second), part in frame.groupby(["first", "second"], sort=False):  # pyright: ignore[reportGeneralTypeIssues]
        named = [
            f"{_named(row)} {row['draw']}" if row["order"] == "random" else _named(row) for _, row in part.iterrows()
        ]
        interval = [f"{low:+.4f} – {high:+.4f}" for low, high in zip(part["low"], part["high"], strict=True)]
        alone = [["–" if pd.isna(x) else str(x) for x in part[name]] for name in ("only_first", "only_second")]
        columns = [
            Column("keep", named, "keep"),
            Column("metric", [*part["metric"]], "metric"),
            Column(
                "difference", [f"{x:+.4f}" for x in part["difference"]], "difference", [*part["difference"]],
                meaning="(2) minus (1) on the same examples",
            ),
            Column(f"{100 * confidence:.4g} %", interval, "low", [*part["low"]], 2, meaning="of a paired bootstrap"),
            Column("only 1", alone[0], "only_first", [*part["only_first"]], 3, meaning="what (1) alone gets right"),
            Column("only 2", alone[1], "only_second", [*part["only_second"]], 3),
            Column("p", [f"{x:.3g}" for x in part["p"]], "p", [*part["p"]], meaning="two-sided, of each line alone"),
            Column("test", [*part["test"]], "test", spare=1),
        ]  # fmt: skip
        title = f"{second} (2) against {first} (1), {part['n'].iloc[0]:,} held-out examples"
        blocks.append(Block(title, columns, part))
    return Page(blocks)
