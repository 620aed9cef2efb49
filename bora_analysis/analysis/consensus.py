"""What the advice of several runs has in common: which rank each projection needs, and which layers need more.

An advice that the next seed overturns is none. So the ranks needed are set side by side over adapters of one base
model: of several seeds, several r, several methods. Where a spectrum is exhausted (all of R is needed), R is a lower
bound and no measurement, and agrees with every rank from R on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Unpack

from ..catalogue import METHODS
from ..style import projections_in_order
from .given import tables_of
from .recommendation import module_advice
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


@dataclass(frozen=True, eq=False)
class Consensus:
    """The advice of several adapters side by side.

    Attributes
    ----------
    table : one row per projection and method, then the projection over all methods where there are several; see
        :func:`consensus`.
    modules : one row per module and adapter: adapter, method, module, layer, projection, rank_bound, needed, exhausted,
        apart (``"above"``, ``"below"`` or empty: whether its rank stands out from its projection's median).
    adapters : their names.

    Examples
    --------
    >>> from bora_analysis import consensus, synthetic_adapter
    >>> shapes = {"layers.0.q_proj": (64, 32)}
    >>> runs = [synthetic_adapter("lora", shapes, r=r, kind="decay", decay=2.0, name=f"r{r}") for r in (8, 16)]
    >>> consensus(runs).adapters
    ('r8', 'r16')
    """

    table: pd.DataFrame
    modules: pd.DataFrame
    adapters: tuple[str, ...]


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
    import pandas as pd

    if not 0 < energy < 1:
        raise ValueError(f"energy is {energy}; expected a share of Σσ² between 0 and 1")
    tables = tables_of(adapters, **options)
    rows: list[dict[str, Any]] = []
    names = list(dict.fromkeys(tables.layer_metrics["adapter"]))
    if len(names) < 2:
        raise ValueError(f"there is one adapter ({', '.join(names)}); expected at least two to compare their advice")
    for name in names:
        metrics, spectra = (frame[frame["adapter"] == name] for frame in (tables.layer_metrics, tables.spectra))
        found, _ = module_advice(metrics, spectra, energy)
        middles = {
            projection: median(each.needed for each in found if each.projection == projection)
            for projection in {each.projection for each in found}
        }
        method = "+".join(sorted(set(metrics["method"])))
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
    modules = pd.DataFrame(rows)
    counts = modules.groupby("module")["adapter"].nunique() if rows else pd.Series(dtype=int)
    shared = set(counts[counts == len(names)].index)
    if not shared:
        raise ValueError(
            f"{', '.join(names)}: no module with ΔW ≠ 0 is in all of them; expected adapters of one base model"
        )
    modules = modules[modules["module"].isin(shared)].reset_index(drop=True).astype({"layer": "Int64"})
    out = []
    for projection in projections_in_order(modules["projection"]):
        own = modules[modules["projection"] == projection]
        methods = list(dict.fromkeys(own["method"]))
        out += [_row(projection, method, own[own["method"] == method]) for method in methods]
        if len(methods) > 1:
            out.append(_row(projection, "all", own))
    table = pd.DataFrame(out, columns=list(CONSENSUS_COLUMNS))
    whole = dict.fromkeys(("needed_least", "needed_most"), "Int64")
    return Consensus(table.astype({**whole, "needed_median": "Float64"}), modules, tuple(names))


def _apart(needed: int, middle: float) -> str:
    low, high = APART
    if abs(needed - middle) < 2:
        return ""
    return "above" if needed > high * middle else "below" if needed < low * middle else ""


def _row(projection: str, method: str, rows: Any) -> dict[str, Any]:
    by_adapter = rows.groupby("adapter", sort=False)
    largest, bounds, ends = by_adapter["needed"].max(), by_adapter["rank_bound"].max(), by_adapter["exhausted"].any()
    seen, least = [int(x) for x in largest[~ends]], [int(x) for x in largest[ends]]
    stands = rows.groupby("module", sort=False)["apart"].agg(lambda told: told.iloc[0] if told.nunique() == 1 else "")
    return {
        "projection": projection,
        "method": method,
        "adapters": len(largest),
        "exhausted": len(least),
        "needed_least": min(seen) if seen else None,
        "needed_median": float(median(seen)) if seen else None,
        "needed_most": max(seen) if seen else None,
        "rank_bound": int(bounds.max()),
        "agreement": _agreement(seen, least),
        "rank": max(seen) if seen and max(seen) >= max(least, default=0) else 2 * max(least, default=0),
        "above": ", ".join(stands[stands == "above"].index),
        "below": ", ".join(stands[stands == "below"].index),
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
    for method, rows in found.table.groupby("method", sort=False):
        label = "All methods" if method == "all" else _label(str(method))
        stable = [f"{row.projection} needs rank {_span(row)}" for row in rows.itertuples() if row.agreement == "stable"]
        other = [f"{row.projection} {row.agreement}" for row in rows.itertuples() if row.agreement != "stable"]
        told = [f"{', '.join(stable)} in every run"] if stable else []
        parts.append(f"{label}: {'; '.join([*told, *([', '.join(other)] if other else [])])}.")
    return " ".join(parts)


def _label(method: str) -> str:
    return "+".join(METHODS[name].label if name in METHODS else name for name in method.split("+"))


def _span(row: Any) -> str:
    return f"{row.needed_least}" if row.needed_least == row.needed_most else f"{row.needed_least}–{row.needed_most}"


def of_one_base(base_models: Iterable[str | None]) -> bool:
    """Whether no two adapters name different base models."""
    return len({name for name in base_models if name}) < 2
