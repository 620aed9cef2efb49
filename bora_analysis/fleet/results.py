"""What a sweep leaves behind: a folder, or a URL, of Parquet files. This docstring is the format.

    RESULTS/
      sweep.json                 {"format": 1, "version": …, "options": {…}}, of the last sweep into this folder
      adapters/*.parquet         one row per adapter; after a sweep that ended, one file
      layer_metrics/<part>       one row per module
      spectra/<part>             one row per singular value     (with ``--spectra``)
      sketches/<part>            one row per module             (with ``--sketch``)
      ranges/*.parquet           parts of parts, while a sweep runs that splits an adapter

An **adapter** is one set of weights; a checkpoint ``checkpoint-100`` is an adapter of its own, with its step. Each has
one file, its **part**, in every table but ``adapters``; the file's name is in column ``part``. ``id`` joins the tables.
``name`` (``adapter`` in the other tables) need not be unique. A part is there before its row: who reads while a sweep
runs, or after one that was killed, takes the parts that ``adapters`` names, and of two rows with one id the later one.
:class:`Results` does so.

**adapters** (column: type)

``id`` : text. Where the adapter was read: its absolute path, its URL, or its Hub id ``org/name`` or
    ``org/name@revision``. A Hub id's or a folder's checkpoint has its name behind it: ``org/name/checkpoint-100``.
``name``, ``step`` : as ``adapter`` and ``step`` of ``layer_metrics``.
``part`` : text, the file's name in the other tables; missing where there is an error.
``method``, ``layout`` : text, as of :class:`bora_analysis.Adapter`.
``base_model`` : text, as the configuration names it; missing where it does not.
``r`` , ``r_min`` : integers, the largest and the smallest r of its modules.
``scaling``, ``scaling_min`` : the same of the scaling, α/r for a LoRA; floats.
``modules``, ``parameters`` : integers, their number, and the trained numbers of all of them.
``targets`` : text, the projections that have modules, joined by commas: ``q,v``.
``dtypes`` : text, the types in which factors are stored, joined by commas.
``verdict`` : text, the sentence of :func:`bora_analysis.verdict`.
``notes`` : text, one warning a line: those of the adapter, then those of its analysis; empty where there are none.
``error_kind``, ``error`` : text, missing where the adapter was analysed. The kind is ``adapter`` (it cannot be read,
    with the message of :class:`bora_analysis.AdapterError`), ``timeout``, ``crash`` (the process ended), ``memory``, or
    ``internal`` (any other exception: a fault of this program). Then all columns from ``part`` to ``verdict`` may be
    missing.
``attempts`` : integer, 2 where the first ended in a crash, a time limit or a lack of memory.
``content_hash`` : text, SHA-256 of the files that were read, with their names; missing where they could not be read.
``bytes`` : integer, the size of these files.
``stamp`` : text, what a quick look at the files showed, for the next sweep; empty where that is not enough.
``options`` : text, a hash of all that the numbers depend on but the adapter: options, base model, version.
``seconds`` : float, of reading, analysis and writing, on the worker; the sum over its ranges where it was split.
``finished`` : time, UTC.

**layer_metrics**: ``id``, then the columns of ``bora_analysis.analysis.tables.LAYER_COLUMNS``. All metrics are floats
here, because ``--quick`` may leave some of them out. ``threshold`` is a text: ``0.005``, ``1%``.

**spectra**: ``id``, then the columns of ``SPECTRA_COLUMNS``.

**sketches**: ``id``, the columns ``IDENTITY``, ``out_features``, ``in_features``, then what the sketch function
returned. That is any function ``(module, update) → {column: value}``, given by its name ``package.module:function``; a
value is a number, a text, or a one-dimensional float64 array (a list in the file). All modules have the same columns.
It is called once per module, in the pass that computes the singular values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..adapters import AdapterError
from ..adapters.reading import Options
from ..threshold import Threshold
from .storage import Storage

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from ..updates.contract import Update

FORMAT = 1
SETTINGS = "sweep.json"
ADAPTERS, LAYER_METRICS, SPECTRA, SKETCHES = TABLES = ("adapters", "layer_metrics", "spectra", "sketches")
PARTS = (LAYER_METRICS, SPECTRA, SKETCHES)  # the tables with one file per adapter
RANGES = "ranges"  # of adapters that are split, until all of an adapter's are there

#: module path, its update → the columns that ``sketches`` stores for it.
Sketch = Callable[[str, "Update"], Mapping[str, Any]]

_TEXT, _WHOLE, _FLOAT = "string", "int64", "float64"
#: Column → type, by its name in Arrow.
ADAPTER_COLUMNS = {
    "id": _TEXT, "name": _TEXT, "step": _WHOLE, "part": _TEXT, "method": _TEXT, "layout": _TEXT, "base_model": _TEXT,
    "r": _WHOLE, "r_min": _WHOLE, "scaling": _FLOAT, "scaling_min": _FLOAT, "modules": _WHOLE, "parameters": _WHOLE,
    "targets": _TEXT, "dtypes": _TEXT, "verdict": _TEXT, "notes": _TEXT, "error_kind": _TEXT, "error": _TEXT,
    "attempts": _WHOLE, "content_hash": _TEXT, "bytes": _WHOLE, "stamp": _TEXT, "options": _TEXT, "seconds": _FLOAT,
    "finished": "timestamp[us, tz=UTC]",
}  # fmt: skip
_WHOLE_LAYER_COLUMNS = (
    "step", "layer", "out_features", "in_features", "r", "blocks", "parameters", "macs_per_token", "support_rows",
    "support_columns", "index",
)  # fmt: skip


@cache
def schema(table: str) -> pa.Schema:
    """The Arrow schema of ``adapters``, ``layer_metrics`` or ``spectra``; of ``sketches`` without the sketch's own."""
    import pyarrow as pa

    from ..analysis.tables import IDENTITY, LAYER_COLUMNS, SPECTRA_COLUMNS

    if table == ADAPTERS:
        kinds = {"timestamp[us, tz=UTC]": pa.timestamp("us", tz="UTC")}
        return pa.schema([(name, kinds.get(kind) or kind) for name, kind in ADAPTER_COLUMNS.items()])
    columns = {
        LAYER_METRICS: LAYER_COLUMNS,
        SPECTRA: SPECTRA_COLUMNS,
        SKETCHES: (*IDENTITY, "out_features", "in_features"),
    }
    texts = {"id", *IDENTITY, "threshold", "activation"} - {"step", "layer"}

    def kind(name: str) -> str:
        return _TEXT if name in texts else _WHOLE if name in _WHOLE_LAYER_COLUMNS else _FLOAT

    return pa.schema([(name, kind(name)) for name in ("id", *columns[table])])


class Results:
    """The tables of a sweep, as frames.

    Parameters
    ----------
    place : the folder, or the URL, of ``sweep -o``.

    Raises
    ------
    AdapterError
        There are no results.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from bora_analysis.fleet.results import Results
    >>> with TemporaryDirectory() as folder:
    ...     Results(folder + "/none")
    Traceback (most recent call last):
    bora_analysis.files.errors.AdapterError: ...none: holds no results of a sweep; expected adapters/*.parquet
    """

    def __init__(self, place: Any):
        self.storage = Storage.at(place)
        if not any(name.endswith(".parquet") for name in self.storage.names(ADAPTERS)):
            raise AdapterError(f"{place}: holds no results of a sweep; expected {ADAPTERS}/*.parquet")
        settled(self.storage)

    def reading(self) -> dict[str, Any]:
        """The options of :func:`bora_analysis.read_adapter` with which the last sweep into this place read."""
        told = settled(self.storage).get("options")
        if not isinstance(told, Mapping):
            return {}
        return {name: value for name, value in told.items() if name in Options.__annotations__}

    def adapters(self) -> pd.DataFrame:
        """One row per adapter, ordered by id; whole numbers may be missing (``Int64``)."""
        return _frame(rows_of(self.storage))

    def layer_metrics(self, ids: Iterable[str] | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per module, of all adapters or of those with these ids, in the order of :meth:`adapters`."""
        return self._parts(LAYER_METRICS, ids, columns)

    def spectra(self, ids: Iterable[str] | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per singular value; AdapterError where the sweep did not store them."""
        return self._parts(SPECTRA, ids, columns)

    def sketches(self, ids: Iterable[str] | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per module with the sketch's columns, arrays among them; AdapterError where none were stored."""
        return self._parts(SKETCHES, ids, columns)

    def _parts(self, table: str, ids: Iterable[str] | None, columns: Sequence[str] | None) -> pd.DataFrame:
        import pyarrow as pa

        rows = rows_of(self.storage).select(["id", "part"]).to_pydict()
        wanted = None if ids is None else set(ids)
        parts = [
            part
            for each, part in zip(rows["id"], rows["part"], strict=True)
            if part is not None and (wanted is None or each in wanted)
        ]
        there = set(self.storage.names(table))
        missing = [part for part in parts if part not in there]
        if missing:
            raise AdapterError(
                f"{self.storage}/{table}: lacks {missing[0]}"
                + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
                + f"; sweep the adapters again{'' if table == LAYER_METRICS else ', with this table'}"
            )
        kept = schema(table)
        if columns is not None:
            kept = pa.schema([kept.field(name) for name in columns if table != SKETCHES or name in kept.names])
        found = []
        for part in parts:
            place = f"{table}/{part}"
            found.append(
                fitted(self.storage.read_table(place, columns), kept, f"{self.storage}/{place}", more=table == SKETCHES)
            )
        if not found:
            return _frame(kept.empty_table())
        try:
            return _frame(pa.concat_tables(found))
        except pa.ArrowInvalid:
            columns_of = sorted({", ".join(each.column_names[len(kept) :]) for each in found})
            raise AdapterError(
                f"{self.storage}/{table}: made by different sketches, with the columns {' and '.join(columns_of)}; "
                "sweep all adapters again with one --sketch"
            ) from None


def settled(storage: Storage) -> dict[str, Any]:
    """What ``sweep.json`` tells, nothing where there is none; AdapterError where another format was written."""
    known = storage.read(SETTINGS)
    if known is None:
        return {}
    try:
        told = json.loads(known)
        number = told["format"]
    except (ValueError, KeyError, TypeError):
        raise AdapterError(f"{storage}/{SETTINGS}: is not that of a sweep; choose another folder") from None
    if number != FORMAT:
        raise AdapterError(
            f"{storage}/{SETTINGS}: format {number}; expected {FORMAT}; choose another folder, or the version of "
            f"bora-analysis that wrote it ({told.get('version', 'unknown')})"
        )
    return told


def fitted(table: pa.Table, kept: pa.Schema, place: str, *, more: bool = False) -> pa.Table:
    """A file's table with these columns: those of another version are left out, or empty where it had none.

    Parameters
    ----------
    more : columns that are not in the schema stay, behind the others.

    Raises
    ------
    AdapterError
        The table has no id, or a column holds what its type cannot.
    """
    import pyarrow as pa

    if "id" not in table.column_names and "id" in kept.names:
        raise AdapterError(f"{place}: is no file of a sweep: it has no column id; move it away")
    if table.schema.equals(kept):
        return table
    columns = []
    for field in kept:
        try:
            own = table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type)
            columns.append(own.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            why = (str(error).splitlines() or [""])[0]
            raise AdapterError(
                f"{place}: column {field.name} is not that of a sweep: {why}; move the file away"
            ) from None
    found = pa.Table.from_arrays(columns, schema=kept)
    for field in table.schema if more else ():
        if field.name not in kept.names:
            found = found.append_column(field, table[field.name])
    return found


#: How often the rows are listed anew, where a sweep put its files of rows into one between list and look.
_LOOKS = 5


def rows_of(storage: Storage) -> pa.Table:
    """The rows of ``adapters``: of each id the last, ordered by id."""
    import pyarrow as pa

    tables: list[pa.Table] = []
    for look in range(_LOOKS):
        names = [name for name in sorted(storage.names(ADAPTERS)) if name.endswith(".parquet")]
        try:
            tables = [_rows_in(storage, name) for name in names]
            break
        except AdapterError:
            if look == _LOOKS - 1 or all(name in storage.names(ADAPTERS) for name in names):
                raise
    if not tables:
        return schema(ADAPTERS).empty_table()
    whole = pa.concat_tables(tables)
    ids = whole["id"].to_pylist()
    if all(one < other for one, other in pairwise(ids)):
        return whole
    last = {each: place for place, each in enumerate(ids)}
    return whole.take([last[each] for each in sorted(last)])


def _rows_in(storage: Storage, name: str) -> pa.Table:
    place = f"{ADAPTERS}/{name}"
    return fitted(
        storage.read_table(place, None, "move it away, and sweep again"), schema(ADAPTERS), f"{storage}/{place}"
    )


def _frame(table: pa.Table) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    whole = {pa.int64(): pd.Int64Dtype()}
    nullable = {"step", "layer"} if "module" in table.column_names else set(table.column_names)
    frame = table.to_pandas()
    if "threshold" in frame:  # numbers, as analyse has them, where they are
        cells = {text: Threshold.of(text).cell for text in frame["threshold"].dropna().unique()}
        frame["threshold"] = [cells.get(text) for text in frame["threshold"]]
    return frame.astype({
        field.name: whole[field.type] for field in table.schema if field.type in whole and field.name in nullable
    })  # fmt: skip
