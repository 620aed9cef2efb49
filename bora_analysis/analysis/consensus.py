"""What the advice of several runs has in common: which rank each projection needs, and which layers need more.

An advice that the next seed overturns is none. So the ranks needed are set side by side over adapters of one base
model: of several seeds, several r, several methods. Where a spectrum is exhausted (all of R is needed), R is a lower
bound and no measurement, and agrees with every rank from R on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any, Unpack

from ..cards import card
from ..catalogue import METHODS
from ..files.errors import counted
from ..style import projections_in_order
from .columns import Columns
from .given import tables_of
from .recommendation import module_advice, of_last_step
from .tables import Analysis

if TYPE_CHECKING:
    import pandas as pd

#: Ranks whose largest is at most this multiple of the smallest agree, and so do those that differ by one.
AGREE = 1.5
#: A module stands out whose rank is above this multiple of its projection's median, or below half of it.
APART = (0.5, 1.5)

CONSENSUS_COLUMNS = (
    "projection", "method", "adapters", "exhausted", "needed_least", "needed_median", "needed_most", "rank_bound",
    "agreement", "rank", "above", "below",
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Consensus:
    """The advice of several adapters side by side.

    Attributes
    ----------
    table : one row per projection and method, then the projection over all methods where there are several; see
        :func:`consensus`.
    modules : one row per module and adapter: adapter, method, module, layer, projection, rank_bound, needed, exhausted,
        apart (``"above"``, ``"below"`` or empty: whether its rank stands out from its projection's median).
    adapters : their names.
    columns, rows : table and modules before they are frames.

    Examples
    --------
    >>> from bora_analysis import consensus, synthetic_adapter
    >>> shapes = {"layers.0.q_proj": (64, 32)}
    >>> runs = [synthetic_adapter("lora", shapes, r=r, kind="decay", decay=2.0, name=f"r{r}") for r in (8, 16)]
    >>> consensus(runs).adapters
    ('r8', 'r16')
    """

    columns: Columns
    rows: Columns
    adapters: tuple[str, ...]

    @cached_property
    def table(self) -> pd.DataFrame:
        whole = dict.fromkeys(("needed_least", "needed_most"), "Int64")
        return self.columns.frame().astype({**whole, "needed_median": "Float64"})

    @cached_property
    def modules(self) -> pd.DataFrame:
        return self.rows.frame()

    def __repr__(self) -> str:
        return f"<Consensus of {counted(len(self.adapters), 'adapter')} on {counted(len(self.table), 'row')}>"

    def _repr_html_(self) -> str:
        return card(self, lambda: ([", ".join(self.adapters)], self.table))


def consensus(adapters: Any, *, energy: float = 0.99, **options: Unpack[Analysis]) -> Consensus:
    """Which advice of :func:`bora_analysis.recommend` several adapters agree on.

    Parameters
    ----------
    adapters : :class:`bora_analysis.Tables` of at least two adapters with the same modules, or what
        :func:`bora_analysis.analyse` takes; of several steps the last.
    energy : share of Σσ² to keep.
    options : of :func:`bora_analysis.analyse`.

    Returns
    -------
    Consensus
        Its table has: projection, method (``"all"``: over the methods), adapters (how many), exhausted (in how many all
        of R is needed), needed_least, needed_median and needed_most (over the others, each the largest rank of its
        layers; missing where there are none), rank_bound (the largest R), agreement (``"stable"``, ``"varies"``,
        ``"open"``: no adapter shows where the spectrum ends; ``"one run"``), rank (the largest needed, or 2R where it
        is open), above and below: the modules that need more, or less, than their projection in every adapter.

    Raises
    ------
    ValueError
        Fewer than two adapters, of which no module is in all, or ΔW = 0 in every module; a share out of range.

    Examples
    --------
    >>> from bora_analysis import consensus, synthetic_adapter
    >>> shapes = {f"layers.{k}.q_proj": (64, 32) for k in range(2)}
    >>> runs = [synthetic_adapter("lora", shapes, r=r, kind="decay", decay=2.0, name=f"r{r}") for r in (8, 16)]
    >>> consensus(runs).table[["projection", "needed_least", "needed_most", "agreement"]].values.tolist()
    [['q', 3, 3, 'stable']]
    """
    if not 0 < energy < 1:
        raise ValueError(f"energy is {energy}; expected a share of Σσ² between 0 and 1")
    tables = tables_of(adapters, **options)
    rows: list[dict[str, Any]] = []
    names = tables.adapters
    if len(names) < 2:
        raise ValueError(f"there is one adapter ({', '.join(names)}); expected at least two to compare their advice")
    for name in names:
        own, _ = of_last_step(tables.rows(tables.layers["adapter"] == name))
        found, _ = module_advice(own, energy)
        middles = {
            projection: median(each.needed for each in found if each.projection == projection)
            for projection in {each.projection for each in found}
        }
        method = "+".join(sorted(set(own.layers["method"].tolist())))
        rows += [
            {
                "adapter": name,
                "method": method,
                "module": each.module,
                "layer": each.layer,
                "projection": each.projection,
                "rank_bound": each.bound,
                "needed": each.needed,
                "exhausted": each.exhausted,
                "apart": _apart(each.needed, middles[each.projection]),
            }
            for each in found
        ]
    has: dict[str, set[str]] = {}
    for row in rows:
        has.setdefault(row["module"], set()).add(row["adapter"])
    rows = [row for row in rows if len(has[row["module"]]) == len(names)]
    if not rows:
        raise ValueError(
            f"{', '.join(names)}: no module with ΔW ≠ 0 is in all of them; expected adapters of one base model"
        )
    out = []
    for projection in projections_in_order(row["projection"] for row in rows):
        own = [row for row in rows if row["projection"] == projection]
        methods = list(dict.fromkeys(row["method"] for row in own))
        out += [_row(projection, method, [row for row in own if row["method"] == method]) for method in methods]
        if len(methods) > 1:
            out.append(_row(projection, "all", own))
    return Consensus(Columns.of_records(out, CONSENSUS_COLUMNS), Columns.of_records(rows), tuple(names))


def _apart(needed: int, middle: float) -> str:
    low, high = APART
    if abs(needed - middle) < 2:
        return ""
    return "above" if needed > high * middle else "below" if needed < low * middle else ""


def _row(projection: str, method: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    by_adapter: dict[str, list[Mapping[str, Any]]] = {}
    told: dict[str, set[str]] = {}
    for row in rows:
        by_adapter.setdefault(row["adapter"], []).append(row)
        told.setdefault(row["module"], set()).add(row["apart"])
    seen, least = [], []
    for own in by_adapter.values():
        ends = any(row["exhausted"] for row in own)
        (least if ends else seen).append(max(row["needed"] for row in own))
    return {
        "projection": projection,
        "method": method,
        "adapters": len(by_adapter),
        "exhausted": len(least),
        "needed_least": min(seen) if seen else None,
        "needed_median": float(median(seen)) if seen else None,
        "needed_most": max(seen) if seen else None,
        "rank_bound": max(row["rank_bound"] for row in rows),
        "agreement": _agreement(seen, least),
        "rank": max(seen) if seen and max(seen) >= max(least, default=0) else 2 * max(least, default=0),
        "above": ", ".join(module for module, sides in told.items() if sides == {"above"}),
        "below": ", ".join(module for module, sides in told.items() if sides == {"below"}),
    }


def _agreement(seen: list[int], least: list[int]) -> str:
    """``least``: lower bounds, of exhausted spectra."""
    if not seen:
        return "open"
    if len(seen) + len(least) == 1:
        return "one run"
    high = max(*seen, *least) if least else max(seen)
    return "stable" if high <= max(AGREE * min(seen), min(seen) + 1) else "varies"


def sentence(found: Consensus) -> str:
    """What is stable, in words.

    >>> from bora_analysis import consensus, synthetic_adapter
    >>> shapes = {"layers.0.q_proj": (64, 32), "layers.0.v_proj": (64, 32)}
    >>> runs = [synthetic_adapter("lora", shapes, r=r, kind="decay", decay=2.0, name=f"r{r}") for r in (8, 16)]
    >>> sentence(consensus(runs))
    'LoRA: q needs rank 3, v needs rank 3 in every run.'
    """
    parts = []
    for method, rows in found.columns.parts("method"):
        label = "All methods" if method == "all" else _label(str(method))
        each = rows.records()
        stable = [f"{row['projection']} needs rank {_span(row)}" for row in each if row["agreement"] == "stable"]
        other = [f"{row['projection']} {row['agreement']}" for row in each if row["agreement"] != "stable"]
        told = [f"{', '.join(stable)} in every run"] if stable else []
        parts.append(f"{label}: {'; '.join([*told, *([', '.join(other)] if other else [])])}.")
    return " ".join(parts)


def _label(method: str) -> str:
    return "+".join(METHODS[name].label if name in METHODS else name for name in method.split("+"))


def _span(row: Mapping[str, Any]) -> str:
    least, most = row["needed_least"], row["needed_most"]
    return f"{least}" if least == most else f"{least}–{most}"


def of_one_base(base_models: Iterable[str | None]) -> bool:
    """Whether no two adapters name different base models."""
    return len({name for name in base_models if name}) < 2
