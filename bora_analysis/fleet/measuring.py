"""One adapter of a sweep, in the process that does the work: fetch, hash, read, measure, write parts, say the row."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ..adapters import Adapter, AdapterError, read_adapter
from ..adapters.adapter import is_dense
from ..adapters.locate import download, homes, paths_read
from ..analysis.columns import missing
from ..analysis.tables import IDENTITY, LAYER_COLUMNS, SPECTRA_COLUMNS, Origin, measure, told_of
from ..analysis.verdict import JUDGED, judged
from ..files.base_model import open_base
from ..files.errors import readable
from ..style import projections_in_order
from ..threshold import Threshold
from ..updates.contract import Update
from .results import LAYER_METRICS, RANGES, SKETCHES, SPECTRA, schema
from .stamps import at_rest, content_hash, local, stamp, stamp_at_rest
from .storage import Storage, StorageError, opened, reason
from .tasks import HUB, INTERNAL, JOIN, MEMORY, PATH, PLAN, RANGE, UNREADABLE, URL, Item, Job, Outcome, Task

if TYPE_CHECKING:
    import pyarrow as pa

#: Beside the columns of layer_metrics, of a range until the row is made: what the lines on an adapter are made from.
_ORIGIN = tuple(name for name in Origin._fields if name not in LAYER_COLUMNS)
#: The columns from which the row is made.
_ROW = tuple(dict.fromkeys((*JUDGED, "scaling", "parameters", *Origin._fields)))


def outcomes(task: Task, job: Job) -> list[Outcome]:
    """What the task gives; nothing that an adapter does raises."""
    item = task.item
    start = time.monotonic()
    try:
        with _at_hand(item, job) as places:
            return [_outcome(item, place, id, task, job, start) for id, place in places.items()]
    except Exception as error:
        return [_failed(item, item.id, error, job, start)]


def part_of(id: str, content: str, options: str) -> str:
    """The name of an adapter's files: readable, and that of this content and these options alone."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", re.split(r"[/\\]", id)[-1]).strip(".-")[:60]
    mark = hashlib.sha256(f"{id}\0{content}\0{options}".encode("utf-8", "surrogateescape")).hexdigest()[:20]
    return f"{readable or 'adapter'}-{mark}.parquet"


def _outcome(item: Item, place: Path, id: str, task: Task, job: Job, start: float) -> Outcome:
    hashed = task.hashed
    try:
        read_at, files = time.time(), _files(place)
        if hashed is None:
            hashed = content_hash(files, _home(place))
            if task.known.get(id) == hashed[0]:
                return {"same": id, "stamp": _stamp(item, place, files, hashed[0], read_at)}
        adapter = _read(item, place, job)
        storage, part = Storage.at(job.results), part_of(id, hashed[0], job.options)
        if task.kind == PLAN:
            modules = len(adapter) if item.size >= job.split_from or is_dense(adapter) else 0
            return {"plan": modules, "hashed": hashed}
        if task.kind == RANGE:
            names = _pieces(part, job, task.first, task.last)
            if names[LAYER_METRICS] not in storage.names(RANGES):
                tables, columns = _tables(_only(adapter, task.first, task.last), id, job)
                origins = {name: columns[name] for name in _ORIGIN}
                tables[LAYER_METRICS] = _with(tables[LAYER_METRICS], origins)
                _write(storage, names, tables, RANGES)
            return {"range": id, "seconds": time.monotonic() - start}
        names: dict[str, str] = dict.fromkeys((LAYER_METRICS, SPECTRA, SKETCHES), part)
        if task.kind == JOIN:
            tables = _joined(storage, [_pieces(part, job, *ends) for ends in task.ranges])
            columns = _columns_of(tables[LAYER_METRICS])
            tables[LAYER_METRICS] = tables[LAYER_METRICS].drop_columns(list(_ORIGIN))
        else:
            tables, columns = _tables(adapter, id, job)
        row = _row(adapter, columns, job)
        _write(storage, names, tables)
        mark = _stamp(item, place, files, hashed[0], read_at)
        seconds = time.monotonic() - start + task.seconds
        found = {
            "id": id,
            "part": part,
            "content_hash": hashed[0],
            "bytes": hashed[1],
            "stamp": mark,
            "seconds": seconds,
        }
        return {"row": found | row | {"options": job.options, "finished": datetime.now(UTC)}}
    except Exception as error:
        return _failed(item, id, error, job, start, hashed)


def _failed(
    item: Item, id: str, error: Exception, job: Job, start: float, hashed: tuple[str, int] | None = None
) -> Outcome:
    text = " ".join(str(error).split())
    if isinstance(error, StorageError):
        return {"fatal": text}
    if isinstance(error, MemoryError):
        kind, text = MEMORY, f"needs more memory than a worker may take; --memory sets it ({text or 'out of memory'})"
    elif isinstance(error, AdapterError):
        kind = UNREADABLE
    elif isinstance(error, OSError) and error.filename is not None:  # it went away
        kind, text = UNREADABLE, f"{error.filename}: {error.strerror}"
    else:
        kind, text = INTERNAL, f"{type(error).__name__}: {text}"
    found = {"content_hash": hashed[0], "bytes": hashed[1]} if hashed else {}
    seconds = time.monotonic() - start
    last = {"stamp": item.stamp, "options": job.options, "seconds": seconds, "finished": datetime.now(UTC)}
    name = id.rpartition(os.sep if item.kind == PATH else "/")[2]
    return {"row": {"id": id, "name": name, "error_kind": kind, "error": text, **found, **last}}


# --- from a source to an adapter -------------------------------------------------------------------------------------


@contextmanager
def _at_hand(item: Item, job: Job) -> Iterator[dict[str, Path]]:
    """id → where its files lie in the file system, of each adapter in an item."""
    if item.kind not in (HUB, URL):
        yield {item.id: Path(item.place)}
        return
    with TemporaryDirectory(prefix="sweep-") as folder:
        try:
            if item.kind == URL:
                yield {item.id: fetched(item, Path(folder))}
                return
            home = download(item.place, None if job.keep_downloads else Path(folder))
            places = homes(home, bool(job.reading.get("steps")))
            yield {item.id if place == home else f"{item.id}/{place.name}": place for place in places}
        except AdapterError as error:
            raise AdapterError(str(error).replace(folder, item.id)) from None


def fetched(item: Item, folder: Path) -> Path:
    """The files of a URL, in folders of the same names as there."""
    files, place = opened(item.place)
    above = place.rpartition("/")[0] if place in item.files else place
    # The names of the folder and the one above it can be those of an adapter and its checkpoint.
    home = folder.joinpath(*[name for name in above.split("/") if name not in ("", ".", "..")][-2:])
    for name in item.files:
        target = home / name[len(above) :].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            files.get_file(name, str(target))
        except MemoryError:
            raise
        except Exception as error:  # the errors of stores share no base class
            raise AdapterError(f"{files.unstrip_protocol(name)}: cannot be fetched: {reason(error)}") from None
    return home / place[len(above) :].lstrip("/")


def _home(place: Path) -> Path:
    return place if place.is_dir() else place.parent


def _files(place: Path) -> list[Path]:
    return [path for path in paths_read(place) if path.is_file()]


def _stamp(item: Item, place: Path, files: Sequence[Path], content: str, read_at: float) -> str:
    """The stamp of the files that were read; AdapterError where their content changed since it was hashed.

    Another stamp than that of the search does not say so yet: the files may have been touched, or have changed before
    they were hashed.
    """
    if item.kind in (HUB, URL) or not item.stamp:
        return item.stamp
    if not set(item.files).issuperset(map(str, files)):  # by their names, or by what these lead to
        found = {os.path.realpath(path) for path in item.files}
        if any(os.path.realpath(path) not in found for path in files):
            return ""  # a base model or a start in a folder of its own, which the search has not seen: hashed each time
    now = [(path, local(os.stat(path))) for path in item.files]  # noqa: PTH116
    if stamp(now) == item.stamp:
        return item.stamp if at_rest(now, read_at) else ""
    if content_hash(_files(place), _home(place))[0] != content:
        raise AdapterError(f"{item.id}: changed while it was read; sweep again")
    return stamp_at_rest(item.files, read_at)


@lru_cache(1)
def _base(place: str, options: str) -> Any:
    """The base model, open for all adapters of a sweep; the options tell one from a later one at the same place."""
    return open_base(place)


def _read(item: Item, place: Path, job: Job) -> Adapter:
    reading = dict(job.reading)
    if reading.get("base") is not None:
        reading["base"] = _base(reading["base"], job.options)
    if item.kind == HUB:
        reading["name"] = item.id.partition("/")[2]
    found = read_adapter(place, **reading)
    if not isinstance(found, Adapter):
        raise AdapterError(f"{item.id}: holds {len(found)} checkpoints; expected one adapter")
    return found


def _only(adapter: Adapter, first: int, last: int) -> Adapter:
    return replace(adapter, loaders=dict(list(adapter.loaders.items())[first:last]))


# --- from an adapter to tables ---------------------------------------------------------------------------------------


def _tables(adapter: Adapter, id: str, job: Job) -> tuple[dict[str, pa.Table], dict[str, list[Any]]]:
    """The tables to be stored, and the columns ``_ROW``."""
    sketches: dict[str, Mapping[str, Any]] = {}
    if job.sketch:
        function = sketch_function(job.sketch)
        loaders = {
            module: partial(_sketched, module, load, function, sketches) for module, load in adapter.loaders.items()
        }
        adapter = replace(adapter, loaders=loaders)
    found = measure(adapter, workers=1, **job.measuring)
    rows = [(id, *row) for row, _ in found]
    columns = dict(zip(schema(LAYER_METRICS).names, map(list, zip(*rows, strict=True)), strict=True))
    for name in _texts():
        columns[name] = [None if text is None else readable(str(text)) for text in columns[name]]
    layers = _layers(columns)
    tables = {LAYER_METRICS: layers}
    if job.spectra:
        tables[SPECTRA] = _spectra(layers, [spectrum.values for _, spectrum in found])
    if job.sketch:
        own = [sketches[module] for module in adapter]
        named = layers.select(schema(SKETCHES).names)
        tables[SKETCHES] = _with(named, {name: [row[name] for row in own] for name in own[0]})
    tau = Threshold.of(job.measuring["threshold"])
    origins = zip(*(Origin.of(spectrum, tau) for _, spectrum in found), strict=True)
    columns |= dict(zip(Origin._fields, map(list, origins), strict=True))
    return tables, columns


def _layers(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """layer_metrics; NaN is missing."""
    import pyarrow as pa

    # One call for all columns, which takes less than one for each.
    rows = pa.array(list(zip(*columns.values(), strict=True)), _cells(), from_pandas=True)
    return pa.Table.from_arrays(rows.flatten(), schema=schema(LAYER_METRICS))


@cache
def _cells() -> pa.StructType:
    import pyarrow as pa

    return pa.struct(list(schema(LAYER_METRICS)))


@cache
def _texts() -> tuple[str, ...]:
    import pyarrow as pa

    return tuple(field.name for field in schema(LAYER_METRICS) if field.type == pa.string())


def _spectra(layers: pa.Table, values: list[np.ndarray]) -> pa.Table:
    import pyarrow as pa

    lengths = [len(each) for each in values]
    rows = pa.array(np.repeat(np.arange(len(values)), lengths))
    names = ["id", *IDENTITY]
    repeated = [layers[name].combine_chunks().take(rows) for name in names]
    index = np.concatenate([np.arange(1, length + 1) for length in lengths] or [np.zeros(0, np.int64)])
    sigma = np.concatenate(values or [np.zeros(0)])
    assert (*names, "index", "singular_value") == ("id", *SPECTRA_COLUMNS)
    return pa.Table.from_arrays([*repeated, pa.array(index), pa.array(sigma)], schema=schema(SPECTRA))


def sketch_function(name: str) -> Callable[[str, Update], Mapping[str, Any]]:
    """The function of a name ``package.module:function``; ValueError where there is none."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"sketch {name!r}: {error}; expected package.module:function") from None


def _sketched(
    module: str, load: Callable[[], Update], function: Callable[..., Any], found: dict[str, Mapping[str, Any]]
) -> Update:
    update = load()
    found[module] = function(module, update)
    return update


def _with(table: pa.Table, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """The table and further columns."""
    import pyarrow as pa

    for name, column in columns.items():
        if isinstance(column[0], np.ndarray):
            ends = np.cumsum([0, *map(len, column)], dtype=np.int32)
            flat = pa.array(np.concatenate(column).astype(np.float64))
            table = table.append_column(name, pa.ListArray.from_arrays(pa.array(ends), flat))
        else:
            texts = [readable(value) if isinstance(value, str) else value for value in column]
            table = table.append_column(name, pa.array(texts))
    return table


# --- from tables to parts and a row ----------------------------------------------------------------------------------


def _pieces(part: str, job: Job, first: int, last: int) -> dict[str, str]:
    """The names of a range's files by table."""
    stored = {LAYER_METRICS: True, SPECTRA: job.spectra, SKETCHES: bool(job.sketch)}
    stem = part.removesuffix(".parquet")
    return {table: f"{stem}.{first}-{last}.{table}.parquet" for table, wanted in stored.items() if wanted}


def _write(storage: Storage, names: Mapping[str, str], tables: Mapping[str, pa.Table], folder: str = "") -> None:
    for table in (SPECTRA, SKETCHES, LAYER_METRICS):  # the last one says that all are there
        if table in tables:
            storage.write_table(f"{folder or table}/{names[table]}", tables[table])


def _joined(storage: Storage, pieces: Sequence[Mapping[str, str]]) -> dict[str, pa.Table]:
    import pyarrow as pa

    return {
        table: pa.concat_tables([storage.read_table(f"{RANGES}/{each[table]}") for each in pieces]).combine_chunks()
        for table in pieces[0]
    }


def _columns_of(layers: pa.Table) -> dict[str, list[Any]]:
    """The columns ``_ROW`` of stored ranges, as :func:`_tables` has them."""
    columns = {name: layers[name].to_pylist() for name in _ROW}
    columns["noise_floor"] = [float("nan") if floor is None else floor for floor in columns["noise_floor"]]
    return columns


def _row(adapter: Adapter, columns: Mapping[str, Sequence[Any]], job: Job) -> dict[str, Any]:
    """The columns of ``adapters`` that come from the adapter itself."""
    origins = [Origin(*each) for each in zip(*(columns[name] for name in Origin._fields), strict=True)]
    _, *told = told_of(adapter, origins, Threshold.of(job.measuring["threshold"]))
    notes = [*adapter.warnings, *(line.removeprefix(f"{adapter.name}: ") for line in told)]
    scalings = [float(each) for each in columns["scaling"] if not missing(each)]
    ranks = [int(r) for r in columns["r"]]
    return {
        "name": adapter.name,
        "step": adapter.step,
        "method": adapter.method,
        "layout": adapter.layout,
        "base_model": adapter.base_model,
        "r": max(ranks, default=None),
        "r_min": min(ranks, default=None),
        "scaling": max(scalings, default=None),
        "scaling_min": min(scalings, default=None),
        "modules": len(ranks),
        "parameters": int(sum(columns["parameters"])),
        "targets": ",".join(projections_in_order(columns["projection"])),
        "dtypes": ",".join(sorted(set(columns["dtype"]))),
        "verdict": str(judged(adapter.name, columns)),
        "notes": "\n".join(notes),
    }
