"""Tables column by column, which cost nothing to import: what the command line computes with; a frame on request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

#: Columns of whole numbers of which some may be missing.
_WHOLE = ("step", "layer")
_TEXTS = ("adapter", "method", "module", "projection", "activation")
_KINDS: dict[str, Any] = {**dict.fromkeys(_TEXTS, "str"), **dict.fromkeys(_WHOLE, "Int64")}


class Columns:
    """Name → array, all of one length: bool, int64 or float64, else objects, of which a missing one is None.

    Examples
    --------
    >>> table = Columns({"layer": [0, None], "energy": [2.0, 1.0]})
    >>> len(table), list(table), table["energy"].dtype.name, table["layer"].tolist()
    (2, ['layer', 'energy'], 'float64', [0, None])
    >>> table.rows(table["energy"] > 1).records()
    [{'layer': 0, 'energy': 2.0}]
    """

    def __init__(self, columns: Mapping[str, Iterable[Any]]) -> None:
        self._columns = {name: _array(values) for name, values in columns.items()}

    @classmethod
    def of(cls, table: Any) -> Columns:
        """The columns of a frame; columns as they are."""
        if isinstance(table, Columns):
            return table
        return cls({str(name): _of_series(table[name], whole=name in _WHOLE) for name in table.columns})

    @classmethod
    def of_rows(cls, rows: Iterable[Sequence[Any]], names: Sequence[str]) -> Columns:
        """The columns of rows that have a value for each name."""
        columns = [*zip(*rows, strict=True)] or [()] * len(names)
        return cls(dict(zip(names, columns, strict=True)))

    @classmethod
    def of_records(cls, records: Sequence[Mapping[str, Any]], names: Iterable[str] | None = None) -> Columns:
        """The columns of rows as mappings; by default those of the first."""
        return cls({name: [each[name] for each in records] for name in names or (records[0] if records else ())})

    @classmethod
    def joined(cls, tables: Sequence[Columns]) -> Columns:
        """The rows of all tables, in their order; what one does not have is missing in its rows."""
        kept = [table for table in tables if len(table)] or tables[:1]
        names = dict.fromkeys(name for table in kept for name in table)
        nothing = float("nan")
        return cls({
            name: np.concatenate([table[name] if name in table else np.full(len(table), nothing) for table in kept])
            for name in names
        })  # fmt: skip

    def __getitem__(self, name: str) -> Any:
        """The array of that name."""
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __len__(self) -> int:
        """How many rows."""
        return len(next(iter(self._columns.values()), ()))

    def rows(self, chosen: Any) -> Self:
        """The rows of a mask, of a list of places, or of a slice."""
        return type(self)({name: values[chosen] for name, values in self._columns.items()})

    def with_columns(self, columns: Mapping[str, Iterable[Any]]) -> Self:
        """With further columns, or others in place of those of the same name."""
        return type(self)({**self._columns, **columns})

    def only(self, names: Iterable[str]) -> Self:
        """These columns, in this order."""
        return type(self)({name: self._columns[name] for name in names})

    def groups(self, *keys: str) -> dict[Any, NDArray[np.intp]]:
        """Value of one key, or values of several → the places of its rows; in the order of their first rows."""
        columns = [self._columns[key].tolist() for key in keys]
        found: dict[Any, list[int]] = {}
        for place, key in enumerate(columns[0] if len(keys) == 1 else zip(*columns, strict=True)):
            found.setdefault(key, []).append(place)
        return {key: np.array(places) for key, places in found.items()}

    def parts(self, *keys: str) -> Iterator[tuple[Any, Self]]:
        """Each group with its rows."""
        for key, places in self.groups(*keys).items():
            yield key, self.rows(places)

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of plain values."""
        columns = (values.tolist() for values in self._columns.values())
        return [dict(zip(self._columns, row, strict=True)) for row in zip(*columns, strict=True)]

    def frame(self) -> pd.DataFrame:
        """As a frame, with types as :func:`typed` has them."""
        import pandas as pd

        def column(name: str, values: Any) -> Any:
            if name in _KINDS:  # at once: astype of a whole frame takes longer than all the rest
                return pd.array(values.tolist(), dtype=_KINDS[name])
            return values.tolist() if values.dtype == object else values

        return pd.DataFrame({name: column(name, values) for name, values in self._columns.items()})


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with text as text, and `step` and `layer` as nullable integers."""
    return frame.astype({name: kind for name, kind in _KINDS.items() if name in frame})


def missing(value: Any) -> bool:
    """Whether a value is None, NaN or pandas' NA."""
    return value is None or (isinstance(value, float) and value != value) or type(value).__name__ == "NAType"


def last_steps(adapters: Iterable[Any], steps: Iterable[Any]) -> NDArray[np.bool_]:
    """Which rows are of their adapter's last step; those without a step only where the adapter has none with one.

    >>> last_steps(["run", "run", "run", "alone"], [10, 20, None, None]).tolist()
    [False, True, False, True]
    """
    pairs = [(adapter, None if missing(step) else step) for adapter, step in zip(adapters, steps, strict=True)]
    last: dict[Any, Any] = {}
    for adapter, step in pairs:
        known = last.setdefault(adapter, step)
        if step is not None and (known is None or step > known):
            last[adapter] = step
    return np.array([step == last[adapter] for adapter, step in pairs], dtype=bool)


def mean(values: Any) -> float:
    """The mean of the numbers that are there; NaN where there are none."""
    numbers = np.array([value for value in np.asarray(values).tolist() if not missing(value)], dtype=float)
    return float(numbers.sum() / numbers.size) if numbers.size else float("nan")


def _array(values: Iterable[Any]) -> NDArray[Any]:
    if isinstance(values, np.ndarray):
        return values
    values = list(values)
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return np.array(values, dtype=bool)
    if kinds and all(issubclass(kind, int | np.integer) for kind in kinds):
        return np.array(values, dtype=np.int64)
    numbers = all(issubclass(kind, int | float | np.number | type(None)) for kind in kinds)
    if numbers and any(issubclass(kind, float | np.floating) for kind in kinds):
        return np.array(values, dtype=np.float64)  # None becomes NaN
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _of_series(series: Any, *, whole: bool) -> Any:
    if not whole and isinstance(series.dtype, np.dtype) and series.dtype.kind in "biuf":
        return series.to_numpy()
    values = series.tolist()
    if series.isna().any():
        values = [None if missing(value) else value for value in values]
    # Whole numbers may stand in a frame as floats.
    return [None if value is None else int(value) for value in values] if whole else values
