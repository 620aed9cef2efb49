"""Which method to try next: which set of updates comes nearest to what training has found, at fewer parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..adapters import Adapter
from ..files.errors import counted
from .capture import each_capture, sampled, shares, table_of
from .members import own_budget, same_set, set_label

if TYPE_CHECKING:
    import pandas as pd

#: What the advice rests on and what it cannot know.
LIMITS = (
    "The method is the one whose nearest ΔW keeps most of Σσ² at half of the adapter's parameters; one that draws at "
    "random what is chosen here is not named. A trained ΔW lies in the set of the method that trained it, which "
    "favours that set; another method's run, or full fine-tuning, is the fairer witness. It says what can be "
    "represented, not what training finds."
)

METHOD_COLUMNS = (
    "adapter", "step", "target", "budget", "modules", "method", "member", "parameters", "captured", "lora_captured",
    "second", "second_captured", "own",
)  # fmt: skip


def method_advice(
    adapters: Iterable[Adapter],
    *,
    share: float = 0.5,
    sample: int | None = 8,
    starts: int = 1,
    on_module: Callable[[], object] | None = None,
) -> pd.DataFrame:
    """One row per adapter: the method whose set captures most of ΔW with a share of its parameters.

    Parameters
    ----------
    adapters : of :func:`bora_analysis.read_adapter`, one per checkpoint.
    share : of the adapter's parameters (of LoRA r = 8 for full fine-tuning) that the method may have.
    sample, starts, on_module : as for :func:`bora_analysis.capture`.

    Returns
    -------
    DataFrame
        adapter, step, target (its method), budget, modules (tried), method and member (it, and its sizes), parameters
        (in these modules), captured, lora_captured (LoRA's with as many), second and second_captured (the next set),
        own (whether the target was trained in this very set).

    Raises
    ------
    ValueError
        As for :func:`bora_analysis.capture`; ΔW = 0 in every module that is tried.

    Examples
    --------
    >>> from bora_analysis import synthetic_adapter
    >>> target = synthetic_adapter("lora", {"layers.0.q_proj": (64, 64)}, r=16, kind="decay", decay=1.0)
    >>> method_advice([target])[["method", "member", "own"]].values.tolist()
    [['lora', 'LoRA r = 8', True]]
    """
    import pandas as pd

    rows = []
    for adapter in adapters:
        budget, found = int(own_budget(adapter) * share), []
        for part in each_capture([adapter], budget=budget, sample=sample, starts=starts):
            found += part
            if on_module is not None:
                on_module()
        best = shares(table_of(found))
        best = best[best["kind"] != "best case"]  # fewest parameters first, which of equals is the one
        best = best.sort_values("captured", ascending=False, kind="stable", key=lambda shares: shares.round(4))
        if best.empty:
            raise ValueError(f"{adapter.name}: ΔW = 0 in every module that was tried; there is nothing to advise on")
        first, second = best.iloc[0], best.iloc[1] if len(best) > 1 else None
        rows.append((
            adapter.name, adapter.step, first["target"], budget, first["modules"], first["method"], first["member"],
            first["parameters"], first["captured"], first["lora_captured"],
            "" if second is None else second["member"], float("nan") if second is None else second["captured"],
            any(name in same_set(first["method"]) for name in str(first["target"]).split("+")),
        ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(METHOD_COLUMNS)).astype({"step": "Int64"})


def in_words(advice: pd.DataFrame) -> list[str]:
    """The advice, a sentence for each adapter, and one for all where there are several."""
    told = []
    for row in advice.itertuples():
        member: Any = row.member
        text = f"{row.adapter}: at most {row.budget:,} parameters keep most as {member}, {row.captured:.1%} of Σσ²"
        if row.second:
            text += f"; next {row.second}, {row.second_captured:.1%}"
        told.append(text + ("; it was trained in that set." if row.own else "."))
    if len(advice) > 1:
        fair = advice[~advice["own"]]
        sets = fair["method"].map(set_label).value_counts()
        told.append(
            f"Of {counted(len(fair), 'adapter')} trained in another set than the one named: "
            + ", ".join(f"{name} for {count}" for name, count in sets.items())
            + "."
            if len(fair)
            else "Each was trained in the set that is named, so that none of them is a witness for it."
        )
    return told


def modules_tried(adapters: Iterable[Adapter], sample: int | None = 8) -> int:
    """How many modules :func:`method_advice` will look at."""
    return sum(len(sampled(adapter, sample)) for adapter in adapters)
