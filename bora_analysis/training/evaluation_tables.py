"""The tables of an evaluation: its rows, the predictions behind them, and tests between two adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..adapters import Adapter
from ..analysis.keeping import Keep, Part
from .intervals import LOSS, STATISTICS, Bootstrap, between, measured
from .scores import Scored

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "adapter", "step", "method", "keep", "order", "draw", "rank", "metric", "value", "low", "high", "n", "energy",
    "energy_mean", "parameters", "change", "change_low", "change_high",
)  # fmt: skip
#: A row of the table is one of these, measured with a metric.
KEYS = ("adapter", "step", "keep", "order", "draw")
COMPARED = (
    "first", "second", "keep", "order", "draw", "metric", "difference", "low", "high", "only_first", "only_second",
    "p", "test", "n",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One cut of one adapter on the held-out examples."""

    adapter: Adapter
    keep: Keep
    part: Part
    scored: Scored

    @property
    def key(self) -> tuple[str, int, str, str, int]:
        return key_of(self.adapter, self.keep)


def key_of(adapter: Adapter, keep: Keep) -> tuple[str, int, str, str, int]:
    """By what a row is known; step −1 where there is none."""
    return adapter.name, -1 if adapter.step is None else adapter.step, str(keep), keep.order, keep.draw


def rows_of(each: Measured, whole: Measured, how: Bootstrap) -> list[dict[str, Any]]:
    """The rows of the table, one per metric."""
    adapter, keep, part, scored = each.adapter, each.keep, each.part, each.scored
    head = (adapter.name, adapter.step, adapter.method, str(keep), keep.order, keep.draw, part.rank)
    rows = []
    for metric in scored.metrics:
        value = measured(metric, scored.outputs, how)[:3]
        change = measured(metric, scored.outputs, how, whole.scored.outputs)[:3]
        kept = (scored.examples, part.energy, part.energy_mean, part.parameters)
        rows.append(dict(zip(COLUMNS, (*head, metric, *value, *kept, *change), strict=True)))
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of :func:`rows_of` as the frame of :func:`evaluate`."""
    import pandas as pd

    return pd.DataFrame(list(rows), columns=list(COLUMNS)).astype({"step": "Int64"})


def predictions_of(each: Measured) -> pd.DataFrame:
    """Example by example: the columns of :data:`KEYS`, example, and the outputs of the task."""
    import pandas as pd

    name, step, *keep = each.key
    head = dict(zip(KEYS, (name, None if step < 0 else step, *keep), strict=True))
    frame = pd.DataFrame({**each.scored.outputs, **each.scored.texts})
    frame.insert(0, "example", np.arange(len(frame)))
    frame.insert(0, "metric", each.scored.metrics[0])
    for place, (column, value) in enumerate(head.items()):
        frame.insert(place, column, value)
    return frame.astype({"step": "Int64"})


def compared(stored: pd.DataFrame, how: Bootstrap) -> pd.DataFrame:
    """Every adapter against the first one, cut by cut, on the same examples.

    Parameters
    ----------
    stored : rows of :func:`predictions_of` of several adapters.

    Returns
    -------
    DataFrame
        first, second, keep, order, draw, metric, difference (second minus first) with low and high, only_first and
        only_second (examples that one alone gets right), p, test (McNemar's exact one, or the paired bootstrap), n.

    Raises
    ------
    ValueError
        One adapter only, or adapters of other held-out examples.
    """
    import pandas as pd

    named = stored.assign(step=stored["step"].fillna(-1).astype(int))
    names = named[["adapter", "step"]].drop_duplicates().itertuples(index=False, name=None)
    first, *others = names
    if not others:
        raise ValueError(f"got the predictions of {first[0]} alone; expected two adapters to compare")
    parts = {key: part.reset_index(drop=True) for key, part in named.groupby(list(KEYS), sort=False)}
    rows = []
    for second in others:
        for (*who, keep, order, draw), part in parts.items():
            other = parts.get((*first, keep, order, draw))
            if tuple(who) != second or other is None:
                continue
            if len(part) != len(other) or ("label" in part and not part["label"].equals(other["label"])):
                raise ValueError(
                    f"{first[0]} and {second[0]} were measured on other examples ({len(other)} and {len(part)}); "
                    "expected adapters of one task and split"
                )
            for metric in dict.fromkeys([part["metric"].iloc[0], LOSS]):
                statistic = STATISTICS[metric]
                if set(statistic.columns) <= set(part):
                    one, two = ({name: side[name].to_numpy() for name in statistic.columns} for side in (other, part))
                    found = between(metric, one, two, how)
                    label = [name if step < 0 else f"{name} step {step}" for name, step in (first, second)]
                    rows.append((*label, keep, order, draw, metric, *found, len(part)))
    frame = pd.DataFrame(rows, columns=list(COMPARED))
    return frame.astype({"only_first": "Int64", "only_second": "Int64"})
