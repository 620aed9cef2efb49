"""The panels of figure 3 from the user's own runs: which of them show an ablation, which b, which projections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ..metrics import METRICS
from . import data

_COLUMNS = ("method", "r", "blocks", "target", "value")
_KEYS = ["model", "method", "r", "blocks", "target"]
# Columns of runs.csv that say what was measured, or where: they differ between runs that are told the same.
_FOUND = {
    "experiment", "variant", "run", "adapter", "seconds", "modules", "parameters", "macs_per_token", "equal_budget",
    *METRICS,
}  # fmt: skip


class Own(NamedTuple):
    """What the panels show.

    Attributes
    ----------
    label : the metric's name, for an axis. panels : the rows of the three, None for one that there is nothing for.
    model : its name, where all runs are on one. absent : how many runs were planned and have no result, or nothing.
    """

    label: str
    panels: list[Any]
    model: str
    absent: str


def own_panels(source: Any, y: str | None) -> Own:
    """The three panels of runs.

    Parameters
    ----------
    source : folders with runs, or a frame or file with method, r, blocks, target, value, such as ``runs.csv`` of an
        experiment. y : the metric that is meant.

    Raises
    ------
    ValueError
        Runs of several metrics, or that differ in more than a panel shows; none for any panel.
    """
    frame, absent = _frame(source)
    count = len(frame)
    known = list(dict.fromkeys(frame["outcome"]))
    if y is None and len(known) > 1:
        raise ValueError(f"the runs were measured by {' and '.join(map(str, known))}; name one as y (--y)")
    if y is not None and y not in known:
        raise ValueError(f"the runs have no metric {y!r}; they have {', '.join(map(str, known))}")
    label, frame = str(y or known[0]), frame[frame["outcome"] == (y or known[0])]
    told = [name for name in frame if name not in {*_KEYS, *_FOUND, "value", "seed", "outcome"}]
    if "seed" in frame:
        same = [*_KEYS, *told, "seed"]
        frame = frame.drop_duplicates([*same, "value"])  # a run may lie in the folders of several experiments
        if (twice := frame.duplicated(same)).any():
            found = frame[twice].iloc[0]
            raise ValueError(
                f"two runs of {found['method']}, r = {found['r']}, b = {found['blocks']}, seed {found['seed']} reached "
                "different values: they differ in what the table does not say; expected one of them"
            )
    for name in told:
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
    models = [str(model).rpartition("/")[2] for model in frame["model"].unique()]
    panels = [_ablations(means), _blocks(means), _targets(means)]
    if all(panel is None for panel in panels):
        raise ValueError(
            "figure3 compares BoRA with and without exp and norm, over b, or over projections, and the runs have none "
            "of these; expected two or more that differ in one of them"
        )
    lacking = f"{absent} of {absent + count} runs missing" if absent else ""
    return Own(label, panels, models[0] if len(models) == 1 else "", lacking)


def _frame(source: Any) -> tuple[Any, int]:
    """The runs, and how many the experiments in the folders have planned and not finished."""
    absent = 0
    if not isinstance(source, pd.DataFrame):
        places = [source] if isinstance(source, str | Path) else list(source)
        if len(places) == 1 and data.is_table_file(places[0]):
            source = data.table_of(places[0], "train", ("method", "value"))
        else:
            from ..analysis.runs import missing, records

            source, absent = records(places), len(missing(places))
    if "outcome" not in source and "metric" in source:
        source = source.rename(columns={"metric": "outcome"})
    missing = [name for name in _COLUMNS if name not in source]
    if missing:
        raise ValueError(f"the runs have no column {missing[0]}; expected {', '.join(_COLUMNS)}")
    if source.empty:
        raise ValueError("nothing to draw: the table has no rows")
    usual = {"model": "", "outcome": "value"}
    return source.assign(**{name: value for name, value in usual.items() if name not in source}), absent


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
        shown = _best(lora, ["model", "r"], lambda part: part["target"].nunique())
    else:
        same = lora[(lora["r"] == best["r"].iloc[0]) & (lora["model"] == best["model"].iloc[0])]
        shown = pd.concat([best, same[same["target"].isin(best["target"])]])
    # The fewest projections first, as in the paper, whatever the order of the folders.
    return shown if shown is None else shown.sort_values("target", key=lambda names: names.str.len(), kind="stable")
