"""The panels of figure 3 from the user's own runs: which of them show an ablation, which b, which projections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from . import data

_COLUMNS = ("method", "r", "blocks", "target", "value")
_KEYS = ["model", "method", "r", "blocks", "target"]


def own_panels(source: Any, y: str | None) -> tuple[str, list[Any]]:
    """The metric's name, and the rows of the three panels, None for one that the runs have nothing for.

    Parameters
    ----------
    source : folders with runs, or a frame or file with method, r, blocks, target, value. y : the metric that is meant.

    Raises
    ------
    ValueError
        Runs of several metrics, or that differ in more than a panel shows; none for any panel.
    """
    frame = _frame(source)
    known = list(dict.fromkeys(frame["outcome"]))
    if y is None and len(known) > 1:
        raise ValueError(f"the runs were measured by {' and '.join(map(str, known))}; name one as y (--y)")
    if y is not None and y not in known:
        raise ValueError(f"the runs have no metric {y!r}; they have {', '.join(map(str, known))}")
    label, frame = str(y or known[0]), frame[frame["outcome"] == (y or known[0])]
    for name in (each for each in frame if each not in {*_KEYS, "value", "seed", "outcome", "adapter"}):
        mixed = frame.groupby(_KEYS, dropna=False)[name].nunique(dropna=False) > 1
        if mixed.any():
            found = sorted(map(str, frame[name].unique()))
            raise ValueError(
                f"runs that are alike differ in {name} ({', '.join(found[:4])}); expected those of one {name}, so that "
                "a spread is that of the seeds"
            )
    values = frame.groupby(_KEYS, sort=False, dropna=False)["value"]
    means = values.mean().rename("value").to_frame().join(values.std().fillna(0.0).rename("sd")).reset_index()
    if (values.size() > 1).any():
        label += "\nmean ± sd over seeds"
    panels = [_ablations(means), _blocks(means), _targets(means)]
    if all(panel is None for panel in panels):
        raise ValueError(
            "figure3 compares BoRA with and without exp and norm, over b, or over projections, and the runs have none "
            "of these; expected two or more that differ in one of them"
        )
    return label, panels


def _frame(source: Any) -> Any:
    if not isinstance(source, pd.DataFrame):
        places = [source] if isinstance(source, str | Path) else list(source)
        if len(places) == 1 and data.is_table_file(places[0]):
            source = data.table_of(places[0], "train", ("method", "value"))
        else:
            from ..analysis.runs import records

            source = records(places)
    missing = [name for name in _COLUMNS if name not in source]
    if missing:
        raise ValueError(f"the runs have no column {missing[0]}; expected {', '.join(_COLUMNS)}")
    if source.empty:
        raise ValueError("nothing to draw: the table has no rows")
    usual = {"model": "", "outcome": "value"}
    return source.assign(**{name: value for name, value in usual.items() if name not in source})


def _best(rows: Any, keys: Sequence[str], count: Any) -> Any:
    """The rows of the combination of ``keys`` that has most to show; None where ``count`` finds fewer than two."""
    best, most = None, 1
    for _, part in rows.groupby([*keys], sort=False, dropna=False):
        found = count(part)
        if found > most:
            best, most = part, found
    return best


def _ablations(rows: Any) -> Any:
    rows = rows[rows["method"].str.startswith("bora")]
    return _best(rows, ["r", "blocks", "target"], lambda part: part.groupby("model")["method"].nunique().max())


def _blocks(rows: Any) -> Any:
    rows = rows[rows["method"].isin(["bora", "lora"])]
    best = _best(rows, ["model", "target"], lambda part: part[part["method"] == "bora"]["blocks"].nunique())
    if best is None:
        return None
    return best[best["r"].isin(best[best["method"] == "bora"]["r"])]


def _targets(rows: Any) -> Any:
    rows = rows[rows["method"].isin(["bora", "lora"])]
    lora, bora = rows[rows["method"] == "lora"], rows[rows["method"] == "bora"]
    best = _best(bora, ["model", "r", "blocks"], lambda part: part["target"].nunique())
    if best is None:
        return _best(lora, ["model", "r"], lambda part: part["target"].nunique())
    same = lora[(lora["r"] == best["r"].iloc[0]) & (lora["model"] == best["model"].iloc[0])]
    return pd.concat([best, same[same["target"].isin(best["target"])]])
