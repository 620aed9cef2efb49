"""From what a figure is given to the frame, the looks and the rows that it draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import style
from ..analysis import views
from ..analysis.groups import Group, groups_of, over_members
from ..metrics import METRICS
from ..threshold import Threshold

#: What a figure of adapters can be drawn from: the frame, or whatever `analysis.given.tables_of` makes it from.
Source = Any
#: Other names for adapters: adapter → label, or labels in the order of the adapters, or "adapter=label" for some.
Labels = Mapping[str, str] | Sequence[str]

# A column by which each table is known.
_MARKS = {"spectra": "singular_value", "layer_metrics": "rank_bound"}


@dataclass(frozen=True)
class Opened:
    """What a figure of adapters draws.

    Attributes
    ----------
    table : its adapters are the members of the groups.
    looks : group → look. groups : adapter → group; each its own where none were asked for.
    grouped : whether they were.
    """

    table: Any
    looks: dict[str, style.Look]
    groups: dict[str, str]
    grouped: bool

    def members(self, frame: Any, group: str) -> Any:
        """The rows of the group's members."""
        return frame[frame["adapter"].isin([name for name, own in self.groups.items() if own == group])]

    def means(self, frame: Any, keys: Sequence[str], values: Sequence[str]) -> Any:
        """Means and deviations over the members, see :func:`bora_analysis.analysis.groups.over_members`."""
        return over_members(frame, self.groups, keys, values)

    def spread(self, usual: str) -> str:
        """What a band or bar shows, for an axis."""
        return "mean ± sd over seeds" if self.grouped else usual


#: What a band shows of the modules → its columns of :func:`bora_analysis.analysis.views.curves`.
BANDS = {"range": ("least", "largest"), "quartiles": ("lower", "upper")}


def band_of(band: str | None, group: Any) -> str:
    """The band that is drawn over modules or layers: the range, unless the quartiles are asked for."""
    if band is not None and group is not None:
        raise ValueError(f"band {band!r}: with groups the band is the standard deviation over the members; name one")
    if band is not None and band not in BANDS:
        raise ValueError(f"unknown band {band!r}; expected {' or '.join(BANDS)}")
    return band or "range"


def opened(
    source: Source,
    name: str,
    labels: Labels | None,
    *,
    metric: str | None = None,
    threshold: float | str | Threshold | None = None,
    group: Group | None = None,
) -> Opened:
    """The table ``"spectra"`` or ``"layer_metrics"`` and the look of each adapter or group in it.

    The table is the frame that was given, or is made from adapters or paths. Options are checked first.
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

        source = of_files([source]) if is_table_file(source) else getattr(tables_of(source), name)
    elif _MARKS[name] not in source:
        columns = ", ".join(map(str, source.columns))
        raise ValueError(f"expected the table {name}, which has a column {_MARKS[name]}; the frame has {columns}")
    if group is not None and source.empty:
        raise ValueError("nothing to draw: the table has no rows")
    groups = groups_of(source["adapter"].astype(str), group)
    shown = source.assign(adapter=source["adapter"].map(groups)) if group is not None else source
    looks = views.looks_of(shown)
    if group is not None:
        counts = Counter(groups.values())
        looks = {name: replace(look, label=f"{look.label}, n = {counts[name]}") for name, look in looks.items()}
    renamed = {name: replace(looks[name], label=label) for name, label in relabelled(looks, labels).items()}
    return Opened(source, looks | renamed, groups, group is not None)


def of_files(paths: Sequence[str | Path], only: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of table files, as ``bora-analysis analyze -o`` writes them, also of several runs with one name.

    Where an adapter has several rows of one module, step and index, other columns that differ (seed, task) go into its
    name, so that ``group="seed"`` finds the seeds.

    Parameters
    ----------
    only : ``"column=value"``, the rows that are meant.
    """
    table = pd.concat([_file(path, "analyze") for path in paths], ignore_index=True)
    for each in only:
        column, _, value = each.partition("=")
        if column not in table:
            raise ValueError(f"no column {column!r} in the tables; there are {', '.join(map(str, table.columns))}")
        kept = table[table[column].astype(str) == value]
        if kept.empty:
            there = sorted(table[column].astype(str).unique())
            raise ValueError(f"no row has {each}; {column} is {', '.join(there[:12])}")
        table = kept
    if missing := [name for name in ("adapter", "module") if name not in table]:
        raise ValueError(f"{paths[0]}: has no column {missing[0]}; it has {', '.join(map(str, table.columns))}")
    table = table if "step" in table else table.assign(step=pd.array([pd.NA] * len(table), dtype="Int64"))
    table = table.astype({name: "Int64" for name in ("step", "layer") if name in table})
    keys = [name for name in ("adapter", "step", "module", "index") if name in table]
    if table.duplicated(keys).any():
        ours = {*METRICS, *keys, *_FACTS, "method", "layer", "projection", "singular_value", "threshold"}
        more = [name for name in table if name not in ours and table[name].nunique(dropna=False) > 1]
        for name in more:
            words = table[name].map(lambda value, name=name: value if isinstance(value, str) else f"{name} {value:g}")
            table = table.assign(adapter=table["adapter"] + " " + words)
        if table.duplicated(keys).any():
            raise ValueError(
                f"{paths[0]}: an adapter has several rows of one module; expected a column that tells them"
            )
    return table


_FACTS = ("out_features", "in_features", "r", "blocks", "scaling", "parameters", "macs_per_token", "activation")


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
        what, table = str(table), _file(table, command)
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"{what}: has no column {missing[0]}; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise ValueError("nothing to draw: the table has no rows")
    return table


def _file(path: str | Path, command: str) -> pd.DataFrame:
    """The frame of a table's file."""
    if not is_table_file(path) or not Path(path).is_file():
        raise ValueError(f"{path}: is no table; expected a .csv, .json or .parquet file of `bora-analysis {command}`")
    read: Any = _READERS[Path(path).suffix.lower()]
    try:
        return read(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


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

    >>> relabelled(["a", "b"], {"b": "ours"}), relabelled(["a", "b"], ["first", "r = 8"]), relabelled("ab", ["b=ours"])
    ({'b': 'ours'}, {'a': 'first', 'b': 'r = 8'}, {'b': 'ours'})
    """
    known = list(names)
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        given = [labels] if isinstance(labels, str) else list(labels)
        pairs = [label.partition("=") for label in given]
        if pairs and all(name in known for name, _, _ in pairs):
            return {name: label for name, _, label in pairs}
        if len(given) != len(known):
            raise ValueError(
                f"got {len(given)} labels; expected {len(known)}, for {', '.join(known)} in this order, "
                "or ADAPTER=LABEL"
            )
        return dict(zip(known, given, strict=True))
    for name in labels:
        if name not in known:
            raise ValueError(f"got a label for {name!r}, which is not in the figure; there are {', '.join(known)}")
    return dict(labels)


def outcomes(given: Any, column: str | None, adapters: Sequence[str], groups: Mapping[str, str]) -> Any:
    """The values of a column by adapter or group, grouped; None where neither frame nor column is given.

    Parameters
    ----------
    given : a frame, or a CSV or JSON file; it has the column ``adapter``, and a number for each of ``adapters``.
    groups : member → group; the frame may have the names of either.
    """
    if given is None and column is None:
        return None
    if given is None or column is None:
        raise ValueError("y (--y) and outcome (--from) go together: a column, and the frame or file that has it")
    what = "outcome"
    if not isinstance(given, pd.DataFrame):
        what, given = str(given), _file(given, "compare")
    for name in ("adapter", column):
        if name not in given:
            raise ValueError(f"{what}: has no column {name!r}; it has {', '.join(map(str, given.columns))}")
    named = given["adapter"].astype(str)
    given = given.assign(adapter=named.where(named.isin(adapters), named.map(groups).fillna(named)))
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
