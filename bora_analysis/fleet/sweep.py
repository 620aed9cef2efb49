"""A sweep: find the adapters, pass over those that are done, have the others done, keep what came of each."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import bora_analysis

from ..adapters import AdapterError
from ..adapters.reading import Reading
from ..files.errors import readable
from ..linalg.threads import available_cores
from ..metrics import THRESHOLD
from ..threshold import Threshold
from .book import Book
from .engines import ENGINES, run
from .keeper import begin, wanted_by, work
from .results import ADAPTERS, FORMAT, PARTS, SETTINGS, Results, rows_of, settled
from .sources import find
from .stamps import local, stamp
from .storage import Storage, StorageError, is_url
from .tasks import JOIN, PATH, PLAN, RANGE, WHOLE, Item, Job, Outcome, Task

#: A batch is what one call of an engine does: so many bytes, or adapters, or less where there are few.
_BATCH_BYTES = 16 << 20
_BATCH = 16
_PLAIN = (str, int, float, os.PathLike)
#: Ranges per worker of an adapter that is split: more than one, so that all end at nearly the same time.
_RANGES = 4


@dataclass(frozen=True)
class Progress:
    """Where a sweep stands.

    Attributes
    ----------
    total : adapters found. kept : of these, done before. done : analysed or tried now. failed : of these, in vain.
    seconds : since the work began. left : seconds expected, None before there is a rate.
    """

    total: int
    kept: int
    done: int
    failed: int
    seconds: float

    @property
    def rate(self) -> float:
        """Adapters per second."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def left(self) -> float | None:
        return (self.total - self.kept - self.done) / self.rate if self.rate else None


@dataclass(frozen=True)
class Sweep:
    """What a sweep did.

    Attributes
    ----------
    results : the tables.
    analysed, kept, failed : how many adapters were measured, were done before, could not be measured now.
    failures : the ids of the last. errors : sources that gave no adapter, with the reason.
    models : whole models passed over.
    seconds : in all.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from bora_analysis import sweep
    >>> with TemporaryDirectory() as folder:
    ...     done = sweep(["data/trained-lora-r8", "./no-adapter"], folder, workers=1)
    >>> done.analysed, done.failed, done.errors
    (1, 0, ('./no-adapter: no such file or folder',))
    """

    results: Results
    analysed: int
    kept: int
    failures: tuple[str, ...]
    errors: tuple[str, ...]
    models: int
    seconds: float

    @property
    def failed(self) -> int:
        return len(self.failures)


def sweep(
    sources: Any,
    results: Any,
    *,
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    timeout: float = 600.0,
    memory: int = 4 << 30,
    spectra: bool = False,
    sketch: str | None = None,
    threshold: float | str | Threshold = THRESHOLD,
    solver: str = "auto",
    device: str = "auto",
    quick: bool = False,
    verify: bool = False,
    keep_errors: bool = False,
    prune: bool = False,
    keep_downloads: bool = False,
    split_from: int = 256 << 20,
    on_progress: Callable[[Progress], object] | None = None,
    **reading: Any,
) -> Sweep:
    """Analyse many adapters on the cores of this machine or on a cluster, and go on where an earlier sweep ended.

    Parameters
    ----------
    sources : a path, a pattern, a list, a Hub id or a URL, or a list of these; see
        :func:`bora_analysis.fleet.sources.find`.
    results : a folder, or a URL that fsspec knows; what is written there: :mod:`bora_analysis.fleet.results`.
    engine : ``"local"``, processes of this machine; ``"loky"``, ``"dask"``, ``"ray"``, ``"spark"``, through joblib,
        whose workers start them. The machines of a cluster must see the sources and the results by the same names.
    address : of the scheduler, for a cluster's engine; by default one is started on this machine.
    workers : how many at a time; by default one per core, or those of the cluster.
    timeout : seconds that one try of an adapter, or of a range of its modules, may take. There are two tries.
    memory : bytes that a worker's process may allocate (Linux; not with a GPU); 0 for no bound.
    spectra : store all singular values.
    sketch : ``"package.module:function"``, called with each module's path and update, stored in ``sketches``.
    threshold, solver, device, quick : as for :func:`bora_analysis.analyse`.
    verify : read all files again and compare their hashes, whatever a quick look shows; make parts again that are not
        whole.
    keep_errors : do not try again what could not be analysed before.
    prune : remove from the results what is not among the sources.
    keep_downloads : leave what comes from the Hub in its cache.
    split_from : bytes from which an adapter is split into ranges of modules, for several workers. One that needs the
        base model is always split.
    on_progress : called with :class:`Progress` whenever something is finished.
    reading : options of :func:`bora_analysis.read_adapter`: modules, steps, base, experts, initial, alpha, method,
        activation.

    Returns
    -------
    Sweep

    Raises
    ------
    AdapterError
        No source gives an adapter, the engine or the results cannot be reached, another sweep writes to these results.
    ValueError
        An unknown engine, an invalid regular expression, a sketch that is no function.
    TypeError
        An option of reading that is no text and no number: workers must get it, and results are found again by it.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from bora_analysis import sweep
    >>> with TemporaryDirectory() as folder:
    ...     done = sweep("data/trained-lora-r8", folder, workers=1)
    ...     done.results.adapters()[["name", "r", "targets", "parameters"]].values.tolist()
    [['trained-lora-r8', 8, 'q,v', 73728]]
    """
    start = time.monotonic()
    _check(engine, sketch, reading)
    # What is said, as the command line does, and what is left out are the same options.
    reading = {name: value for name, value in reading.items() if value != getattr(Reading, name)}
    measuring = {"threshold": Threshold.of(threshold).cell, "solver": solver, "device": device, "quick": quick}
    settings = {**measuring, "spectra": spectra, "sketch": sketch or "", **reading}
    given = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    found = find(given, steps=bool(reading.get("steps")), whole=reading.get("base") is not None)
    if not found.items:
        raise AdapterError("; ".join(found.errors) or "holds whole models only; --base (base=) reads their updates")
    storage = Storage.at(results)
    job = Job(
        storage.place, _hash(settings), measuring, reading, spectra, sketch or "", timeout, memory, split_from,
        keep_downloads, tuple(sys.path),
    )  # fmt: skip
    with _alone(storage):
        _settle(storage, settings)
        if engine == "local" and not storage.names(ADAPTERS):  # there will be work
            begin(wanted_by(job), min(workers or available_cores(), len(found.items)))
        _mend(storage, verify)
        book = Book(storage, job, found.items, keep_errors=keep_errors, verify=verify)
        progress = on_progress or (lambda _: None)
        analysed, failures = 0, []
        begun = time.monotonic()

        def told() -> None:
            done = analysed + len(failures)
            progress(Progress(len(found.items), book.kept, done, len(failures), time.monotonic() - begun))

        told()
        try:
            try:
                for outcome in _outcomes(book.tasks(), job, engine, address, workers):
                    if "fatal" in outcome:
                        raise StorageError(outcome["fatal"])
                    if "row" in outcome and outcome["row"].get("error"):
                        failures.append(outcome["row"]["id"])
                    else:
                        analysed += "row" in outcome
                    book.enter(_told(outcome))
                    told()
            finally:
                book.write()
            book.close(prune=prune, failed=bool(failures))
        except StorageError as error:
            raise AdapterError(f"{error}; what is done is kept, start the sweep again") from None
    seconds = time.monotonic() - start
    return Sweep(Results(results), analysed, book.kept, tuple(failures), tuple(found.errors), found.models, seconds)


def _check(engine: str, sketch: str | None, reading: Mapping[str, Any]) -> None:
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown; expected {', '.join(ENGINES)}")
    Reading.of(reading)
    foreign = [name for name, value in reading.items() if value is not None and not isinstance(value, _PLAIN)]
    foreign += [name for name in ("shapes", "config", "adapter", "name") if reading.get(name) is not None]
    if foreign:
        raise TypeError(f"{foreign[0]} cannot be an option of a sweep, or not of this type; expected text or a number")
    try:
        re.compile(reading.get("modules") or "")
    except re.error as error:
        raise ValueError(f"modules {reading['modules']!r} is not a regular expression: {error}") from None
    if sketch:
        from .measuring import sketch_function

        sketch_function(sketch)


def _hash(settings: Mapping[str, Any]) -> str:
    """What the numbers depend on, but for the adapter. ``steps`` says which adapters are found, not what they hold."""
    known = {name: value for name, value in settings.items() if name != "steps"}
    places = {name: _place_stamp(known.get(name)) for name in ("base", "initial") if known.get(name) is not None}
    text = json.dumps(
        {**known, **places, "version": bora_analysis.__version__, "format": FORMAT}, sort_keys=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _place_stamp(place: Any) -> str:
    """The base model, by a quick look at its files: its content is not hashed."""
    path = Path(place)
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    return f"{place} {stamp((str(each), local(each.stat())) for each in files if each.is_file())}"


def _settle(storage: Storage, settings: Mapping[str, Any]) -> None:
    settled(storage)
    said = {"format": FORMAT, "version": bora_analysis.__version__, "options": settings}
    storage.write(SETTINGS, json.dumps(said, indent=1, default=str).encode())


def _mend(storage: Storage, verify: bool) -> None:
    """Remove parts that are not whole, and let rows that are named by a time to come be earlier than all others."""
    for table in PARTS if verify else ():
        storage.remove([f"{table}/{part}" for part in storage.torn(table)])
    files = storage.names(ADAPTERS)
    if max(files, default="") > f"{time.time_ns():020d}":  # the clock was set back
        storage.write_table(f"{ADAPTERS}/{0:020d}.parquet", rows_of(storage))
        storage.remove([f"{ADAPTERS}/{name}" for name in files])


def _told(outcome: Outcome) -> Outcome:
    """With texts that every file takes, whatever bytes a path or a key has."""
    row = outcome.get("row")
    if row is None:
        return outcome
    return {"row": {name: readable(value) if isinstance(value, str) else value for name, value in row.items()}}


@contextmanager
def _alone(storage: Storage) -> Iterator[None]:
    """Keep a second sweep out of a folder; the system frees it when this process ends, however it ends."""
    if is_url(storage.place):
        yield
        return
    from filelock import FileLock, Timeout  # comes with huggingface_hub

    try:
        Path(storage.place).mkdir(parents=True, exist_ok=True)
        lock = FileLock(Path(storage.place, ".lock"))
        lock.acquire(timeout=0)
    except Timeout:
        raise AdapterError(
            f"{storage}: another sweep is writing there; wait for its end, or choose another folder"
        ) from None
    except OSError as error:
        raise AdapterError(f"{storage}: cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()


# --- how it is done -------------------------------------------------------------------------------------------------


def _outcomes(tasks: list[Task], job: Job, engine: str, address: str | None, workers: int | None) -> Iterator[Outcome]:
    """What comes of all tasks; adapters that are split pass through three rounds: plan, ranges, join."""
    places = {"engine": engine, "address": address, "workers": workers}
    count = workers or available_cores()
    split = [task for task in tasks if _may_split(task.item, job)]
    small = [task for task in tasks if not _may_split(task.item, job)]
    ranges: list[Task] = []
    for task, outcomes in _done([replace(task, kind=PLAN) for task in split], job, places):
        modules = outcomes[0].get("plan")
        if modules is None:
            yield from outcomes
        elif modules < 2:
            small.append(replace(task, kind=WHOLE, hashed=outcomes[0]["hashed"]))
        else:
            pieces = min(modules, _RANGES * count)
            ends = [round(modules * k / pieces) for k in range(pieces + 1)]
            couples = tuple(pairwise(ends))
            planned = replace(task, kind=RANGE, hashed=outcomes[0]["hashed"], ranges=couples)
            ranges += [replace(planned, first=first, last=last) for first, last in couples]
    spent: dict[str, list[float]] = {}
    lost: set[str] = set()
    for task, outcomes in _done([*ranges, *small], job, places):
        if task.kind != RANGE:
            yield from outcomes
        elif "range" in outcomes[0]:
            spent.setdefault(task.item.id, []).append(outcomes[0]["seconds"])
        elif task.item.id not in lost:  # the first error is that of the adapter
            lost.add(task.item.id)
            yield from outcomes
    joins = {task.item.id: replace(task, kind=JOIN, seconds=sum(spent.get(task.item.id, ()))) for task in ranges}
    for _, outcomes in _done([task for id, task in joins.items() if id not in lost], job, places):
        yield from outcomes


def _may_split(item: Item, job: Job) -> bool:
    heavy = item.size >= job.split_from or item.whole or job.reading.get("base") is not None
    return item.kind == PATH and heavy


def _done(tasks: list[Task], job: Job, places: Mapping[str, Any]) -> Iterator[tuple[Task, list[Outcome]]]:
    if not tasks:
        return
    count = places["workers"] or available_cores()
    most = max(1, min(_BATCH, len(tasks) // (4 * count)))
    batches: list[list[Task]] = []
    size = 0
    for task in tasks:
        if not batches or len(batches[-1]) >= most or size + task.item.size > _BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(task)
        size += task.item.size
    for done in run(work, [(batch, job) for batch in batches], **places):
        yield from done
