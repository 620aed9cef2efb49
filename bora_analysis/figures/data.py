"""From what a figure is given to the frame, the looks and the rows that it draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import style
from ..analysis import views
from ..metrics import METRICS
from ..threshold import Threshold

#: What a figure of adapters can be drawn from: the frame, or whatever `analysis.given.tables_of` makes it from.
Source = Any
#: Other names for adapters: adapter → label, or labels in the order of the adapters.
Labels = Mapping[str, str] | Sequence[str]

# A column by which each table is known.
_MARKS = {"spectra": "singular_value", "layer_metrics": "rank_bound"}


def opened(
    source: Source,
    name: str,
    labels: Labels | None,
    *,
    metric: str | None = None,
    threshold: float | str | Threshold | None = None,
) -> tuple[Any, dict[str, style.Look]]:
    """The table ``"spectra"`` or ``"layer_metrics"`` and the look of each adapter in it; options are checked first.

    The table is the frame that was given, or is made from adapters or paths.
    """
    if metric is not None and metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; there are {', '.join(METRICS)}")
    # Below 0 every singular value counts, and 0 has no place on a logarithmic axis.
    if threshold is not None:
        number = threshold if isinstance(threshold, float | int) else Threshold.of(threshold).value
        if not (np.isfinite(number) and number > 0):
            raise ValueError(f"threshold is {threshold}; expected a finite number above 0")
    if not isinstance(source, pd.DataFrame):
        from ..analysis.given import tables_of

        source = getattr(tables_of(source), name)
    elif _MARKS[name] not in source:
        columns = ", ".join(map(str, source.columns))
        raise ValueError(f"expected the table {name}, which has a column {_MARKS[name]}; the frame has {columns}")
    looks = views.looks_of(source)
    renamed = {name: replace(looks[name], label=label) for name, label in relabelled(looks, labels).items()}
    return source, looks | renamed


#: What tables are read from files.
_READERS = {".json": pd.read_json, ".parquet": pd.read_parquet, ".csv": pd.read_csv}


def is_table_file(path: Any) -> bool:
    """Whether the name is that of a table and not of an adapter.

    >>> is_table_file("capture.csv"), is_table_file("adapter")
    (True, False)
    """
    return Path(str(path)).suffix.lower() in _READERS


def table_of(table: Any, command: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """The frame, or that of the file which a command wrote; ValueError for one that is no such table."""
    what = "the table"
    if not isinstance(table, pd.DataFrame):
        what, path = str(table), Path(table)
        if not is_table_file(path) or not path.is_file():
            raise ValueError(
                f"{what}: is no table; expected a .csv, .json or .parquet file of `bora-analysis {command}`"
            )
        read: Any = _READERS[path.suffix.lower()]
        try:
            table = read(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"{what}: cannot be read: {str(error).splitlines()[0]}") from None
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"{what}: has no column {missing[0]}; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise ValueError("nothing to draw: the table has no rows")
    return table


def with_null(source: Source, name: str, null: Any, threshold: Any) -> tuple[Source, Any]:
    """The source, and its null where one is wished: True makes it, from adapters or layer_metrics."""
    from ..analysis.given import tables_of
    from ..analysis.null import Null
    from ..analysis.null import null as made

    if not null:
        return source, None
    if isinstance(null, Null):
        return source, null
    if isinstance(source, pd.DataFrame):
        if name == "spectra":
            raise ValueError(
                "null=True needs adapters; beside a frame of spectra give null=bora_analysis.null(adapters)"
            )
        return source, made(source)
    tables = tables_of(source, **({} if threshold is None else {"threshold": threshold}))
    return getattr(tables, name), made(tables)


def relabelled(names: Iterable[str], labels: Labels | None) -> dict[str, str]:
    """Name → new label, for the names that get one.

    >>> relabelled(["a", "b"], {"b": "ours"}), relabelled(["a", "b"], ["first", "second"])
    ({'b': 'ours'}, {'a': 'first', 'b': 'second'})
    """
    known = list(names)
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        given = [labels] if isinstance(labels, str) else list(labels)
        if len(given) != len(known):
            raise ValueError(f"got {len(given)} labels; expected {len(known)}, for {', '.join(known)} in this order")
        return dict(zip(known, given, strict=True))
    for name in labels:
        if name not in known:
            raise ValueError(f"got a label for {name!r}, which is not in the figure; there are {', '.join(known)}")
    return dict(labels)


def outcomes(given: Any, column: str | None, adapters: Sequence[str]) -> Any:
    """The values of a column by adapter, grouped; None where neither frame nor column is given.

    Parameters
    ----------
    given : a frame, or a CSV or JSON file; it has the column ``adapter``, and a number for each of ``adapters``.
    """
    if given is None and column is None:
        return None
    if given is None or column is None:
        raise ValueError("y (--y) and outcome (--from) go together: a column, and the frame or file that has it")
    what = "outcome"
    if not isinstance(given, pd.DataFrame):
        what = str(given)
        try:
            given = pd.read_json(given) if what.lower().endswith(".json") else pd.read_csv(given)
        except ValueError as error:  # pandas' own for text that is no table
            raise ValueError(f"{what}: cannot be read as CSV or JSON: {error}") from None
    for name in ("adapter", column):
        if name not in given:
            raise ValueError(f"{what}: has no column {name!r}; it has {', '.join(map(str, given.columns))}")
    rows = given[given["adapter"].isin(adapters)]
    numbers: Any = pd.to_numeric(rows[column], errors="coerce")
    known = numbers.abs().lt(np.inf).groupby(rows["adapter"]).all()
    missing = [name for name in adapters if not known.get(name, False)]
    if missing:
        there = ", ".join(map(str, list(dict.fromkeys(given["adapter"]))[:8]))
        raise ValueError(f"{what}: has no number under {column!r} for {', '.join(missing)}; it has adapters {there}")
    return numbers.groupby(rows["adapter"])


def threshold_of(table: Any) -> Threshold:
    """The threshold for which a table of metrics was computed."""
    return Threshold.of(table["threshold"].iloc[0])


def narrowed(table: Any, *, projection: str | None = None, module: str | None = None) -> Any:
    """Only the rows of a projection and of a module."""
    for what, wanted in (("projection", projection), ("module", module)):
        if wanted is None:
            continue
        known = style.projections_in_order(table[what])
        if wanted not in known:
            more = f" … ({len(known)} in all)" if len(known) > 20 else ""
            raise ValueError(f"no {what} {wanted!r} here; there are {', '.join(known[:20])}{more}")
        table = table[table[what] == wanted]
    return table


def default_projection(table: Any) -> str:
    """ "q", else "qkv", else the projection with most layers (the first of them in the canonical order)."""
    layers = table.groupby("projection")["layer"].nunique(dropna=False)
    for name in ("q", "qkv"):
        if name in layers.index:
            return name
    return max(style.projections_in_order(layers.index), key=lambda name: layers[name])
