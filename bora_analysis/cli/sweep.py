"""The command that analyses many adapters, on this machine or on a cluster."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import command, engines, fail, note, reading, usage

if TYPE_CHECKING:
    from ..fleet.sweep import Progress

#: Errors of adapters that are printed; all are in the results.
_SHOWN = 20
#: Processes that are started before it is known how many adapters there are.
_AHEAD = 4


@command(
    "sweep adapters/ -o results",
    "sweep list.csv 'runs/**/final' org/some-lora -o results --spectra",
    "sweep s3://bucket/adapters -o results --engine dask --address tcp://host:8786",
)
@reading(metavar="SOURCE...")
@click.option("-o", "--output", "results", required=True, metavar="RESULTS", help="A folder or an fsspec URL.")
@engines("Adapters at a time.  [default: one per core]", "local")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=600, help="Seconds for one adapter.")
@click.option("--memory", type=click.FloatRange(0), default=4, help="GB that a worker may take (Linux); 0: no bound.")
@click.option("--spectra", is_flag=True, help="Store all singular values too.")
@click.option("--sketch", metavar="PACKAGE.MODULE:FUNCTION", help="Store what it returns for each module's update.")
@click.option("--quick", is_flag=True, help="As for analyze.")
@click.option("--verify", is_flag=True, help="Compare the contents of all files, not only times; renew torn parts.")
@click.option("--keep-errors", is_flag=True, help="Do not try again what failed before.")
@click.option("--prune", is_flag=True, help="Remove from RESULTS what is not in SOURCE.")
@click.option("--keep-downloads", is_flag=True, help="Leave what comes from the Hub in its cache.")
@click.option("--progress/--no-progress", "shown", default=None, help="On stderr.  [default: in a terminal]")
def sweep(
    paths: tuple[str, ...],
    memory: float,
    shown: bool | None,
    reading: dict[str, Any],
    analysis: dict[str, Any],
    **options: Any,
) -> None:
    """Analyse many adapters into Parquet files, on all cores or a cluster; a second start goes on.

    A SOURCE is a path, a folder to be searched, a pattern, a list (.txt, .csv), a Hub id, org/name@revision, or a URL
    (s3://, gs://, hf:// …). What was analysed with the same options and has not changed is passed over. An adapter
    that cannot be read, crashes or hangs is a row with its error.
    """
    taken = int(memory * 2**30)
    if options["engine"] == "local":
        _begin(options, taken, analysis["device"])
    from .. import sweep as run
    from ..files.errors import counted
    from ..fleet.child import without_pandas

    # Clusters and the sketches of others may want pandas.
    bare = without_pandas() if options["engine"] == "local" and not options["sketch"] else nullcontext()
    with bare, usage(), _progress(sys.stderr.isatty() if shown is None else shown) as told:
        done = run(paths, memory=taken, on_progress=told, **options, **reading, **analysis)
    for line in done.errors:
        fail(line)
    if done.failed:
        frame = done.results.adapters()
        lines = frame.loc[frame["error"].notna() & frame["id"].isin(done.failures), "error"].tolist()
        for line in lines[:_SHOWN]:
            fail(line)
        if len(lines) > _SHOWN:
            note(f"and {len(lines) - _SHOWN} more errors; all are in the column error of {options['results']}/adapters")
    if done.models:
        note(f"{counted(done.models, 'whole model')} passed over; --base reads what differs from it")
    counts = f"{done.analysed:,} analysed, {done.kept:,} as before, {done.failed:,} failed"
    click.echo(f"{options['results']}: {counted(done.analysed + done.kept + done.failed, 'adapter')}, {counts}")
    if done.failed or done.errors:
        raise click.exceptions.Exit(1)


def _begin(options: dict[str, Any], memory: int, device: str) -> None:
    """Let the first processes start while this one imports what it needs, which takes it as long as them."""
    results = options["results"]
    try:
        if "://" in results or Path(results, "adapters").exists():  # there may be nothing to do
            return
    except OSError:  # which the sweep says
        return
    from ..fleet.keeper import Wanted, begin

    wanted = Wanted.of(memory, device, tuple(sys.path), options["sketch"])
    begin(wanted, min(options["workers"] or os.cpu_count() or 1, _AHEAD))


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A line on stderr, renewed some times a second where it can be; a line every ten seconds in a file."""
    if not shown:
        yield None
        return
    renewed = sys.stderr.isatty()
    last = [0.0]

    def tell(progress: Progress) -> None:
        ended = progress.kept + progress.done == progress.total
        if time.monotonic() - last[0] < (0.2 if renewed else 10) and not ended:
            return
        last[0] = time.monotonic()
        line = describe(progress)
        click.echo(f"\r\033[K{line}" if renewed else line, nl=not renewed, err=True)

    yield tell
    if renewed:
        click.echo("\r\033[K", nl=False, err=True)


def describe(progress: Progress) -> str:
    """``412 of 10,000 adapters, 3 failed, 61/s, 2:37 left``, at most 80 columns."""
    parts = [f"{progress.kept + progress.done:,} of {progress.total:,} adapters"]
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.left is not None:
        rate, left = progress.rate, round(progress.left)
        parts.append(f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min")
        hours, minutes = divmod(left // 60, 60)
        parts.append(f"{hours}:{minutes:02d}:{left % 60:02d} left" if hours else f"{minutes}:{left % 60:02d} left")
    return ", ".join(parts)
