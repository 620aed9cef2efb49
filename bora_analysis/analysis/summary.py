"""Adapters side by side: sums and means of the tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd

from ..style import PROJECTIONS
from .given import layers_of
from .tables import Analysis

if TYPE_CHECKING:
    from .null import Null

#: The metrics whose null stands beside them.
OF_NULL = ("effective_rank", "entropy_rank", "energy_rank_99")


def summary(adapters: Any, *, null: Null | None = None, **options: Unpack[Analysis]) -> pd.DataFrame:
    """Per adapter, step and projection, with a row ``all`` for the whole adapter: what `compare` prints.

    Sums: modules, parameters, multiply-adds, energy. Means over modules: the ranks. ``equal_budget`` gives the same
    letter to adapters whose parameters differ by at most 5 % of the smaller.

    Parameters
    ----------
    adapters : a frame of :func:`bora_analysis.layer_metrics`, or what that takes, with its options.
    null : what :func:`bora_analysis.null` makes of the same: adds null_effective_rank, null_entropy_rank and
        null_energy_rank_99, each with ``_low`` and ``_high``, means over the modules.

    Returns
    -------
    DataFrame

    Examples
    --------
    >>> from bora_analysis import summary, synthetic_adapter
    >>> adapter = synthetic_adapter("bora", {"layers.0.q_proj": (64, 32), "layers.0.v_proj": (64, 32)}, r=2, blocks=4)
    >>> summary(adapter)[["projection", "modules", "parameters", "rank_bound"]].values.tolist()
    [['all', 2, 448, 8.0], ['q', 1, 224, 8.0], ['v', 1, 224, 8.0]]
    """
    layers = layers_of(adapters, **options)
    beside = [] if null is None else [f"null_{name}{end}" for name in OF_NULL for end in ("", "_low", "_high")]
    if null is not None:
        layers = _with_null(layers, null)
    keys = ["adapter", "method", "step"]
    whole = layers.assign(projection="all")
    both = pd.concat([whole, layers], ignore_index=True)
    order = {name: position for position, name in enumerate(["all", *PROJECTIONS])}
    grouped = both.groupby([*keys, "projection"], sort=False, dropna=False)
    frame = grouped.agg(
        modules=("module", "size"),
        parameters=("parameters", "sum"),
        macs_per_token=("macs_per_token", "sum"),
        rank_bound=("rank_bound", "mean"),
        effective_rank=("effective_rank", "mean"),
        rank_utilisation=("rank_utilisation", "mean"),
        entropy_rank=("entropy_rank", "mean"),
        stable_rank=("stable_rank", "mean"),
        energy_rank_99=("energy_rank_99", "mean"),
        energy=("energy", "sum"),
        **{name: (name, "mean") for name in beside},
    ).reset_index()
    first = {key: position for position, key in enumerate(dict.fromkeys(zip(*(layers[k] for k in keys), strict=True)))}
    frame["_adapter"] = [first[key] for key in zip(*(frame[k] for k in keys), strict=True)]
    frame["_projection"] = [order.get(name, len(order)) for name in frame["projection"]]
    frame = frame.sort_values(["_adapter", "_projection"], kind="stable", ignore_index=True)
    budgets = frame.loc[frame["projection"] == "all"].drop_duplicates("adapter", keep="last")
    letters = equal_budgets(dict(zip(budgets["adapter"], budgets["parameters"], strict=True)))
    frame["equal_budget"] = [letters[name] for name in frame["adapter"]]
    return frame.drop(columns=["_adapter", "_projection"])


def _with_null(layers: Any, null: Null) -> Any:
    """With columns of the null of each module; missing where it has none."""
    keys = ["adapter", "step", "module"]
    for name in OF_NULL:
        rows = null.layer_metrics[null.layer_metrics["metric"] == name]
        heads = {"null_mean": f"null_{name}", "null_low": f"null_{name}_low", "null_high": f"null_{name}_high"}
        layers = layers.merge(rows[[*keys, *heads]].rename(columns=heads), how="left", on=keys)
    return layers


#: As the command is called.
compare = summary


def equal_budgets(parameters: Mapping[str, int], tolerance: float = 0.05) -> dict[str, str]:
    """A letter for every adapter that shares its budget with another, "" for the rest.

    Sorted by size, an adapter joins the group while it is within ``tolerance`` of the group's smallest member.

    >>> equal_budgets({"lora": 1000, "bora": 1030, "big": 4000})
    {'lora': 'a', 'bora': 'a', 'big': ''}
    """
    groups: list[list[str]] = []
    for name in sorted(parameters, key=lambda name: parameters[name]):
        if groups and parameters[name] <= parameters[groups[-1][0]] * (1 + tolerance):
            groups[-1].append(name)
        else:
            groups.append([name])
    letters = {}
    for letter, group in zip("abcdefghijklmnopqrstuvwxyz", (g for g in groups if len(g) > 1), strict=False):
        letters.update(dict.fromkeys(group, letter))
    return {name: letters.get(name, "") for name in parameters}
