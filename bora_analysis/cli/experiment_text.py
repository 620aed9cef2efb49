"""What `experiment` and `table` print."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from ..training.beside import APART, START
from ..training.plan import Plan
from .cells import short
from .grid import Block, Column, Page

# Places in the order in which columns go where the terminal is narrow.
_SECONDS, _BOUND, _ENERGY, _PARAMETERS, _INTERVAL, _PAPER, _P = 7, 6, 5, 4, 3, 2, 1


def experiment_table(frame: pd.DataFrame, plan: Plan, missing: Mapping[str, str]) -> Page:
    """A table per metric, a line per variant and point of the grid.

    Parameters
    ----------
    frame : of :func:`bora_analysis.training.beside.beside_paper`.
    missing : run → why it has no result, see :func:`bora_analysis.analysis.runs.unfinished`.
    """
    blocks = []
    for metric, part in frame.groupby("metric", sort=False):
        planned = part["n"] + part["missing"]
        seeds = sorted({int(planned.min()), int(planned.max())})
        title = f"{metric}, {'–'.join(map(str, seeds))} {'seed' if seeds == [1] else 'seeds'} each"
        blocks.append(Block(title, _columns(part, plan, str(metric)), part))
    notes = []
    if plan.reference is not None and frame["pairs"].max() > 1:
        notes.append(
            f"Differences to {plan.reference}, seed by seed: mean, Student's interval of 95 % and paired t-test, each "
            "line alone. They speak of seeds, not of other examples or tasks."
        )
    if any(str(name).startswith(START) for name in frame):
        apart = "" if plan.reference is None else f", and in points how far that is from {plan.reference}"
        notes.append(f"paper: what BoRA (arXiv 2508.06953) prints for the same method, r and b, in per cent{apart}.")
    if missing:
        notes.append(f"{len(missing)} of {len(plan.runs)} runs missing:")
        notes += [f"  {run}: {reason}" for run, reason in missing.items()]
    return Page(blocks, notes)


def _columns(part: pd.DataFrame, plan: Plan, metric: str) -> list[Column]:
    def column(head: str, name: str, form: Callable[[Any], str], spare: int = 0, meaning: str = "") -> Column:
        values = part[name].tolist()
        cells = ["–" if pd.isna(value) else form(value) for value in values]
        return Column(head, cells, name, values, spare, meaning=meaning)

    columns = [Column("variant", part["variant"].astype(str).tolist(), "variant")]
    columns += [column(name, name, lambda value: f"{value:g}" if isinstance(value, float) else str(value))
                for name in plan.axes]  # fmt: skip
    counts = [
        f"{n} of {n + lacking}" if lacking else str(n) for n, lacking in zip(part["n"], part["missing"], strict=True)
    ]
    columns.append(Column("n", counts, "n", part["n"].tolist(), meaning="runs"))
    columns.append(column("mean", "mean", "{:.4f}".format, meaning=f"of {metric} on the held-out examples"))
    columns.append(column("sd", "sd", "{:.4f}".format, meaning="standard deviation over the seeds"))
    if plan.reference is not None:
        columns.append(column("difference", "difference", "{:+.4f}".format))
        ends = zip(part["low"], part["high"], strict=True)
        cells = ["–" if pd.isna(low) else f"{low:+.4f} – {high:+.4f}" for low, high in ends]
        columns.append(Column("its 95 %", cells, "low", part["low"].tolist(), _INTERVAL))
        columns.append(column("p", "p", "{:.2g}".format, _P))
    for name in (str(each) for each in part if str(each).startswith(START) and not str(each).endswith(APART)):
        pairs = zip(part[name], part[name + APART], strict=True)
        cells = ["–" if pd.isna(a) else f"{a:.2f}" if pd.isna(b) else f"{a:.2f} ({b:+.2f})" for a, b in pairs]
        head = f"paper, {name.removeprefix(START)}"
        columns.append(Column(head, cells, name, part[name].tolist(), _PAPER))
    for head, name, form, spare, meaning in (
        ("params", "parameters", short, _PARAMETERS, "trained, without heads"),
        ("eff. rank", "effective_rank", "{:.1f}".format, 0, "σ > 0.005, mean over the modules"),
        ("99 %", "energy_rank_99", "{:.1f}".format, _ENERGY, "directions that hold 99 % of Σσ²"),
        ("bound", "rank_bound", "{:.4g}".format, _BOUND, ""),
        ("seconds", "seconds", "{:.0f}".format, _SECONDS, "of a run"),
    ):
        if name in part and part[name].notna().any():
            columns.append(column(head, name, form, spare, meaning))
    return columns
