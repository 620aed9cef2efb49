"""The tables of the BoRA paper (arXiv 2508.06953) as data, and checks of their numbers.

Three checks, because the tables were repaired after extraction (``data/paper/README.md``): #Params against the
architectures, the averages against their sub-tasks, and runs that are printed in several tables against each other.
"""

from __future__ import annotations

import re
from collections import Counter
from decimal import ROUND_HALF_UP, Decimal

import pandas as pd

from ..bundled import data_folder
from ..catalogue.architectures import architecture, chosen
from ..catalogue.cost import cost

#: Table number → content.
TITLES = {
    1: "accuracy on GLUE, with the standard deviations of table 5",
    2: "accuracy on mathematical reasoning; Avg rebuilt, its standard deviation from table 6",
    3: "accuracy on commonsense reasoning; Avg rebuilt, its standard deviation from table 6",
    4: "memory and time of one epoch of training, LLaMA-3-8B",
    5: "standard deviations of table 1",
    6: "standard deviations of the averages of tables 2 and 3",
    7: "BoRA without exponential or normalisation, mathematical reasoning",
    8: "LoRA and BoRA with varying target modules, mathematical reasoning, LLaMA-3-8B",
    9: "LoRA and BoRA with varying r and b, mathematical reasoning, LLaMA-3-8B",
}

#: Columns that identify a run in every table.
SETTING = ["model", "method", "r", "blocks", "target"]
#: Columns of every table, in order.
COLUMNS = ["table", *SETTING, "params", "task", "value", "std"]

_BENCHMARK = {1: "GLUE", 2: "mathematical", 3: "commonsense", 7: "mathematical", 8: "mathematical", 9: "mathematical"}


def table(k: int) -> pd.DataFrame:
    """Table k of the paper, one row per model, method setting and task.

    Returns
    -------
    DataFrame with ``COLUMNS``: ``params`` is #Params as printed (empty where there is none), ``value`` and ``std``
    are float64 in the units of the table (accuracy in %, GB, minutes), ``std`` NaN where the paper gives none.

    Raises
    ------
    ValueError
        No such table.
    FileNotFoundError
        The bundled data was not installed.

    Examples
    --------
    >>> from bora_analysis.paper.tables import table
    >>> frame = table(9)
    >>> frame[(frame.r == 8) & (frame.blocks == 16) & (frame.task == "Avg")].value.item()
    72.24
    """
    if k not in TITLES:
        raise ValueError(f"table {k} is unknown; the paper has tables 1 to {max(TITLES)}")
    return pd.read_csv(
        data_folder() / "paper" / f"table{k}.csv",
        encoding="utf-8",
        keep_default_na=False,
        na_values={"std": [""]},
        dtype={"params": str, "value": float, "std": float},
    )


def tables() -> pd.DataFrame:
    """All nine tables, one after the other; columns as in :func:`table`."""
    return pd.concat([table(k) for k in TITLES], ignore_index=True)


def wide(k: int) -> pd.DataFrame:
    """Table k as printed: one row per run, one column per task, in the paper's order; without standard deviations."""
    frame = table(k)
    tasks = list(dict.fromkeys(frame["task"]))
    rows = frame.pivot_table(index=[*SETTING, "params"], columns="task", values="value", sort=False, aggfunc="first")
    return rows[tasks].reset_index().rename_axis(columns=None)


def check() -> pd.DataFrame:
    """Every #Params entry of tables 1, 2, 3, 4, 8 and 9 against the architecture, to the digits printed.

    Returns
    -------
    DataFrame, one row per printed entry: ``table``, ``SETTING``, ``paper`` (as printed), ``computed`` (rounded to the
    same decimals), ``parameters`` (the exact count), ``ok``.
    """
    frame = tables()
    rows = frame[frame["params"] != ""].drop_duplicates(["table", *SETTING])[["table", *SETTING, "params"]]
    rows = rows.rename(columns={"params": "paper"}).reset_index(drop=True)
    rows["parameters"] = [
        parameters(model, method, r, blocks, target)
        for model, method, r, blocks, target in rows[SETTING].itertuples(index=False)
    ]
    rows["computed"] = [as_printed(n, text) for n, text in zip(rows["parameters"], rows["paper"], strict=True)]
    rows["ok"] = rows["paper"] == rows["computed"]
    return rows[["table", *SETTING, "paper", "computed", "parameters", "ok"]]


def parameters(model: str, method: str, r: int, blocks: int, target: str) -> int:
    """Trainable parameters of one of the paper's settings, over all layers; arguments as in the tables' columns."""
    known = architecture(model)
    shapes = Counter(known.modules(chosen(target, known.projections)).values())
    return sum(k * cost(method, m, n, r, blocks=blocks).parameters for (m, n), k in shapes.items())


def as_printed(count: int, printed: str) -> str:
    """``count`` in millions with as many decimals as ``printed``, rounded half up.

    Raises
    ------
    ValueError
        ``printed`` is not a number of millions such as ``"4.82M"``.

    Examples
    --------
    >>> as_printed(4718592, "4.72M"), as_printed(4718592, "4.7M")
    ('4.72M', '4.7M')
    """
    match = re.fullmatch(r"\d+(?:\.(\d+))?M", printed)
    if match is None:
        raise ValueError(f"#Params is {printed!r}; expected millions, e.g. 4.82M")
    unit = Decimal(1).scaleb(-len(match[1] or ""))
    return f"{(Decimal(count) / 10**6).quantize(unit, ROUND_HALF_UP)}M"


def averages() -> pd.DataFrame:
    """Every printed Avg (tables 1, 7, 8, 9) against the mean of its sub-tasks.

    Returns
    -------
    DataFrame, one row per run: ``table``, ``SETTING``, ``avg`` (printed), ``mean`` (of the printed sub-tasks),
    ``ok`` (equal to rounding), ``explained`` (within 0.01, which the rounding of the sub-tasks can cause).
    """
    frame = tables()
    frame = frame[frame["table"].isin([1, 7, 8, 9])]
    rows = []
    for key, part in frame.groupby(["table", *SETTING], sort=False):
        # Decimal: a mean may lie exactly between two printed numbers.
        values = {task: Decimal(str(value)) for task, value in zip(part["task"], part["value"], strict=True)}
        avg = values.pop("Avg")
        off = abs(sum(values.values()) - avg * len(values))
        mean = float(sum(values.values()) / len(values))
        ok, explained = (off <= Decimal(limit) * len(values) for limit in ("0.005", "0.01"))
        rows.append((*key, float(avg), mean, ok, explained))  # pyright: ignore[reportGeneralTypeIssues]
    return pd.DataFrame(rows, columns=["table", *SETTING, "avg", "mean", "ok", "explained"])


def repeats() -> pd.DataFrame:
    """Values of one run that are printed in several tables (2, 7, 8 and 9), and whether they agree.

    Returns
    -------
    DataFrame, one row per run and task: ``SETTING``, ``task``, ``tables`` (e.g. ``"2, 8, 9"``), ``values``, ``ok``.
    """
    frame = tables()
    frame = frame.assign(benchmark=frame["table"].map(_BENCHMARK)).dropna(subset="benchmark")
    rows = []
    for key, part in frame.groupby(["benchmark", *SETTING, "task"], sort=False):
        if len(part) > 1:
            where, values = ", ".join(map(str, part["table"])), ", ".join(f"{value:.2f}" for value in part["value"])
            rows.append((*key[1:], where, values, part["value"].nunique() == 1))  # pyright: ignore[reportIndexIssue]
    return pd.DataFrame(rows, columns=[*SETTING, "task", "tables", "values", "ok"])
