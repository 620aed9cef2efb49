"""Adapters side by side: sums and means of the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from ..style import PROJECTIONS
from .columns import Columns
from .given import columns_of
from .tables import Analysis

if TYPE_CHECKING:
    import pandas as pd

    from .null import Null

_KEYS = ("adapter", "method", "step")
_SUMS = ("parameters", "macs_per_token")
_MEANS = ("rank_bound", "effective_rank", "rank_utilisation", "entropy_rank", "stable_rank", "energy_rank_99")

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
    return summary_columns(columns_of(adapters, **options), null).frame()


def summary_columns(layers: Columns, null: Null | None = None) -> Columns:
    """The same before it is a frame, of the columns of layer_metrics."""
    beside = [] if null is None else [f"null_{name}{end}" for name in OF_NULL for end in ("", "_low", "_high")]
    if null is not None:
        layers = _with_null(layers, null)
    of_adapter = layers.groups(*_KEYS)
    kin: dict[Any, list[Any]] = {key: [] for key in of_adapter}
    for key, places in layers.groups(*_KEYS, "projection").items():
        kin[key[:3]].append((key, places))
    order = {name: position for position, name in enumerate(PROJECTIONS)}
    groups: list[Any] = []
    for key, places in of_adapter.items():
        groups += [((*key, "all"), places), *sorted(kin[key], key=lambda each: order.get(each[0][3], len(order)))]
    keys = [key for key, _ in groups]
    lists = {name: layers[name].tolist() for name in (*_SUMS, *_MEANS, "energy", *beside)}

    def each(function: Any, name: str) -> list[Any]:
        return [function([lists[name][place] for place in places]) for _, places in groups]

    whole = {key[0]: sum(lists["parameters"][place] for place in places) for key, places in of_adapter.items()}
    letters = equal_budgets(whole)
    return Columns({
        **dict(zip((*_KEYS, "projection"), zip(*keys, strict=True), strict=True)),
        "modules": [len(places) for _, places in groups],
        **{name: each(sum, name) for name in _SUMS},
        **{name: each(_mean, name) for name in _MEANS},
        "energy": each(lambda values: _sum(values)[0], "energy"),
        **{name: each(_mean, name) for name in beside},
        "equal_budget": [letters[key[0]] for key in keys],
    })  # fmt: skip


def _sum(values: Sequence[float]) -> tuple[float, int]:
    """The sum of the values that are there, and their number; Kahan's, whose rounding does not grow with it."""
    total, lost, count = 0.0, 0.0, 0
    for value in values:
        if value == value:
            wanted = value - lost
            raised = total + wanted
            lost = raised - total - wanted
            lost = lost if lost == lost else 0.0  # after an infinite one
            total, count = raised, count + 1
    return total, count


def _mean(values: Sequence[float]) -> float:
    total, count = _sum(values)
    return total / count if count else float("nan")


def _with_null(layers: Columns, null: Null) -> Columns:
    """With columns of the null of each module; missing where it has none."""
    keys = ("adapter", "step", "module")
    rows = Columns.of(null.layer_metrics)
    known = {key: place for place, key in enumerate(zip(*(rows[k].tolist() for k in ("metric", *keys)), strict=True))}
    own = [*zip(*(layers[key].tolist() for key in keys), strict=True)]
    found = {}
    for name in OF_NULL:
        places = [known.get((name, *key)) for key in own]
        for head, end in (("null_mean", ""), ("null_low", "_low"), ("null_high", "_high")):
            values = rows[head].tolist()
            found[f"null_{name}{end}"] = [float("nan") if place is None else values[place] for place in places]
    return layers.with_columns(found)


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
