"""How the columns of tables are called and written, the same on every page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import streamlit as st

from app.charts import metric_name
from bora_analysis.metrics import METRICS
from bora_analysis.style import shortened

#: Column → its heading, the format of its numbers (None for text and plain numbers), and its explanation.
COLUMNS: dict[str, tuple[str, str | None, str | None]] = {
    "adapter": ("adapter", None, None),
    "label": ("method", None, None),
    "equal_budget": ("budget", None, "Same letter: parameters equal within 5 %"),
    "r": ("r", None, None),
    "blocks": ("b", None, None),
    "params": ("#Params", None, None),
    "parameters": ("parameters", "localized", None),
    "rank_bound": ("bound", "%.6g", "Highest rank that the sizes allow; of several matrices the mean"),
    "rank_B": ("rank B′", "localized", None),
    "rank_sigma": ("rank Σ′", "localized", "Σ_k rank S_k"),
    "rank_A": ("rank A′", "localized", None),
    "measured_rank": ("rank ΔW", "localized", "Measured: #{σ > √K ε σ₁}"),
    "effective_rank": ("σ > τ", "%.4g", "Effective rank of BoRA §4.5: singular values above the threshold"),
    "rank_utilisation": ("used", "percent", "Effective rank as a share of the bound"),
    "entropy_rank": ("entropy rank", "%.2f", "exp H(σ/Σσ)"),
    "stable_rank": ("stable rank", "%.2f", "Σσ² / σ₁²"),
    "energy_rank_99": ("99 %", "%.2f", "Directions that hold 99 % of Σσ²"),
    "energy": ("Σσ²", "%.4g", "Energy, ‖ΔW‖_F², summed"),
    "modules": ("modules", None, None),
    "per_1k": ("per 1k parameters", "%.3g", "Bound for each 1,000 parameters"),
    "macs_per_token": (
        "MACs per token", "localized", "Multiply-adds in addition to the frozen layers; the paper's FLOPs",
    ),
    "limiting": ("limited by", None, "The factors whose rank is the least"),
    "error_relative": ("relative error", "%.3g", "‖ΔW − ΔW_k‖_F / ‖ΔW‖_F"),
    "name_a": ("adapter", None, None),
    "name_b": ("other", None, None),
    "adapter_a": ("adapter", None, None),
    "adapter_b": ("other", None, None),
    "i": ("directions", None, "Of the adapter"),
    "j": ("directions of the other", None, None),
    "phi": ("φ", "%.4g", "How much the subspaces overlap, from 0 to 1"),
    "random": ("φ by chance", "%.4g", "Of random subspaces of these sizes"),
    "deviation": ("± of the cosine", "%.2g", "Standard deviation of what the sketches say"),
    "√(m+n)": ("√(m+n)", "%.2f", "Where N(b) is least for real b"),
    "parameters per rank": ("parameters per rank", "%.6g", "At the best b"),
}  # fmt: skip
#: These stay in view while a table is moved sideways.
_NAMES = ("adapter", "label")
#: Names are cut in their middle to as many characters, or they would be all that a phone shows.
NAME = 22


def show(frame: pd.DataFrame, names: Iterable[str] | None = None, changes: Mapping[str, Any] | None = None) -> None:
    """These columns of a table, by default all, in this order.

    ``changes`` are columns that this page calls or writes otherwise: what Streamlit takes for a column, or a heading.
    """
    order = [str(name) for name in (frame.columns if names is None else names)]
    if "adapter" in frame:
        known = list(dict.fromkeys(frame["adapter"]))
        frame = frame.assign(adapter=frame["adapter"].map(dict(zip(known, shortened(known, NAME), strict=True))))
    columns = {name: _column(name) for name in order} | dict(changes or {})
    st.dataframe(frame, hide_index=True, column_order=order, column_config=columns, placeholder="·")


def _column(name: str) -> Any:
    _, form, words = COLUMNS.get(name, ("", None, None))
    if form is None:
        return st.column_config.Column(heading(name), help=words, pinned=name in _NAMES)
    return st.column_config.NumberColumn(heading(name), help=words, format=form)


def heading(name: str) -> str:
    """A column in words.

    >>> heading("phi"), heading("energy_rank_95"), heading("relative_norm"), heading("stable_rank_95")
    ('φ', 'energy rank, 95 %', 'relative norm', 'stable rank, quantile 95 %')
    """
    if name in COLUMNS:
        return COLUMNS[name][0]
    if name in METRICS:
        return metric_name(name)
    metric, _, share = name.rpartition("_")
    return f"{metric_name(metric)}, quantile {share} %" if metric in METRICS else name.replace("_", " ")
