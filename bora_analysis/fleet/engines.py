"""Where the work is done: joblib, on this machine's processes or on a cluster."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..adapters import AdapterError
from ..extras import require
from ..linalg.threads import available_cores

#: Engine → the extra that it needs, and its packages.
ENGINES = {
    "local": ("", ()),
    "loky": ("", ()),
    "dask": ("dask", ("dask", "distributed")),
    "ray": ("ray", ("ray",)),
    "spark": ("spark", ("pyspark", "joblibspark")),
}
#: How often in a row an engine may break without a single result.
_BREAKS = 3


class EngineBroke(Exception):
    """Workers, or the engine itself, were lost; what it had not answered can be asked again."""


def run(
    function: Callable[..., tuple[int, Any]],
    batches: Sequence[tuple[Any, ...]],
    *,
    engine: str = "loky",
    address: str | None = None,
    workers: int | None = None,
) -> Iterator[Any]:
    """``function(k, *batches[k])`` for each k as they are finished, each once, through the loss of workers.

    The function returns k and a result, and raises nothing.

    Raises
    ------
    AdapterError
        The engine is not installed, cannot be reached, or loses its workers again and again.
    """
    waiting = dict(enumerate(batches))
    breaks = 0
    while waiting:
        try:
            with _backend(engine, address, workers) as each:
                for place, result in each(function, waiting):
                    del waiting[place]
                    breaks = 0
                    yield result
        except EngineBroke as error:
            breaks += 1
            if breaks == _BREAKS:
                raise AdapterError(
                    f"engine {engine}: lost its workers {breaks} times without a result: {error}; what is done is "
                    "kept, start the command again"
                ) from None


@contextmanager
def _backend(engine: str, address: str | None, workers: int | None) -> Iterator[Callable[..., Iterator[Any]]]:
    extra, packages = ENGINES[engine]
    require(extra, f"engine {engine}", *packages, error=AdapterError)
    if engine in ("local", "loky") and address is not None:
        raise AdapterError(f"engine {engine} works on this machine; expected no address, got {address}")
    start = {"local": _local, "loky": _loky, "dask": _dask, "ray": _ray, "spark": _spark}[engine]
    with start(address, workers or 0) as each:
        yield each


@contextmanager
def _local(address: str | None, workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Threads of this process, for a function that leaves its work to a process of its own, as :mod:`.keeper` does.

    The standard library's, which are joblib's threads, too: its import takes as long as ten adapters.
    """
    from multiprocessing.pool import ThreadPool

    with ThreadPool(workers or available_cores()) as pool:
        yield lambda function, waiting: pool.imap_unordered(
            lambda batch: function(batch[0], *batch[1]), list(waiting.items())
        )


@contextmanager
def _loky(address: str | None, workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    yield lambda function, waiting: _unordered(function, waiting, workers or available_cores(), backend="loky")


@contextmanager
def _dask(address: str | None, workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    from dask.distributed import Client

    with _reaching(f"engine dask: {address or 'this machine'}"):
        settings: dict[str, Any] = {"address": address, "timeout": "10s"} if address else {}
        if not address:
            settings = {"n_workers": workers or available_cores(), "threads_per_worker": 1, "dashboard_address": None}
        client = Client(set_as_default=False, **settings)
    with _quiet("distributed"), client:  # a lost scheduler is told in one line, and not in its tracebacks
        yield lambda function, waiting: _unordered(function, waiting, workers or -1, backend="dask", client=client)


@contextmanager
def _quiet(package: str) -> Iterator[None]:
    """Nothing from a package's loggers."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == package]
    loggers = [logging.getLogger(name) for name in names]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)


@contextmanager
def _ray(address: str | None, workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    import ray
    from ray.util.joblib import register_ray

    with _reaching(f"engine ray: {address or 'this machine'}"):
        began = not ray.is_initialized()
        if began:
            count = {} if address else {"num_cpus": workers or available_cores(), "include_dashboard": False}
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **count)
        register_ray()
    try:
        count = workers or int(ray.cluster_resources().get("CPU", 1))
        with _quiet("ray"):
            yield lambda function, waiting: _in_waves(function, waiting, count, backend="ray")
    finally:
        if began:
            ray.shutdown()


@contextmanager
def _spark(address: str | None, workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    from joblibspark import register_spark  # pyright: ignore[reportMissingImports]
    from pyspark.sql import SparkSession  # pyright: ignore[reportMissingImports]

    with _reaching(f"engine spark: {address or 'this machine'}"):
        builder: Any = SparkSession.builder
        session = builder.master(address or f"local[{workers or available_cores()}]").getOrCreate()
        register_spark()
    count = workers or session.sparkContext.defaultParallelism
    yield lambda function, waiting: _in_waves(function, waiting, count, backend="spark")


@contextmanager
def _reaching(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each engine has its own
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise AdapterError(f"{what} cannot be reached: {reason}") from None


def _unordered(function: Any, waiting: dict[int, Any], workers: int, **backend: Any) -> Iterator[Any]:
    """Results as they come."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped while some jobs")
        yield from _called(function, list(waiting.items()), workers, backend, return_as="generator_unordered")


def _in_waves(function: Any, waiting: dict[int, Any], workers: int, **backend: Any) -> Iterator[Any]:
    """Results some at a time, of an engine that cannot give them as they come."""
    batches = list(waiting.items())
    for start in range(0, len(batches), 8 * workers):
        yield from _called(function, batches[start : start + 8 * workers], workers, backend)


def _called(function: Any, batches: Any, workers: int, backend: dict[str, Any], **how: Any) -> Iterator[Any]:
    """The results; EngineBroke for whatever the engine raises: what it was given to do raises nothing."""
    from joblib import Parallel, delayed, parallel_config

    settings: dict[str, Any] = {"batch_size": 1, "pre_dispatch": "3*n_jobs", **how}
    try:
        with parallel_config(**backend):
            call = delayed(function)
            results: Any = Parallel(workers, **settings)(call(place, *batch) for place, batch in batches)
        yield from results
    except Exception as error:
        raise EngineBroke((str(error).splitlines() or [""])[0] or type(error).__name__) from error
