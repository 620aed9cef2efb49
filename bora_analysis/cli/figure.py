"""The command that draws figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from .capture import SURVEY
from .common import command, fail, note, null_of, opened, progress, read_one, reading, results, usage
from .similarity import compared

if TYPE_CHECKING:
    from ..updates.contract import Update


@command(
    "figure figure4 first-adapter second-adapter -o figure4.pdf",
    "figure trajectory run-folder -o rank.pdf",
    "figure pareto first second --y accuracy --from results.csv -o front.pdf",
)
@click.option("--list", "listing", is_flag=True, help="List the figures and exit.")
@click.option("-o", "--output", metavar="FILE", multiple=True, help="A .pdf, .svg or .png file; repeatable.")
@click.option(
    "--metric",
    help="A column of the metrics table (heatmap, trajectory, accuracy_by_measured_rank); one of `evaluate` "
    "(accuracy_by_rank).",
)
@click.option("--projection", help="q, k, v … (figure4, spectra, threshold_sweep, trajectory, similarity).")
@click.option("--model", help="Layer shapes of a known model (optimal_blocks).  [default: queries of the paper's five]")
@click.option("--y", metavar="COLUMN", help="An outcome such as accuracy, with --from: then with its front (pareto).")
@click.option("--from", "outcome", metavar="FILE", help="CSV or JSON with the columns adapter and COLUMN (pareto).")
@click.option("--null", is_flag=True, default=None, help="With that of random factors (spectra, figure4, trajectory).")
@click.option("--order", help="Which k directions were kept: largest, smallest, random, energy (accuracy_by_rank).")
@click.option("--lower", is_flag=True, default=None, help="Lower values of COLUMN are better (pareto).")
@click.option("--width", help="Text width of a venue: neurips, iclr, icml, icml2.")
@click.argument("name", required=False)
@reading(required=False)
def figure(
    name: str | None,
    paths: tuple[str, ...],
    listing: bool,
    output: tuple[str, ...],
    reading: dict[str, Any],
    analysis: dict[str, Any],
    **options: Any,
) -> None:
    """Draw figure NAME, ready for a paper, with the same bytes each time.

    Most figures show the adapters at PATH...; --list says which. figure1 shows the first module of each adapter, or,
    without PATH, small synthetic adapters.
    """
    from ..figures import FIGURES, draw, save

    if listing:
        width, marks = max(map(len, FIGURES)), {"required": "PATH...", "optional": "[PATH...]", "none": ""}
        for key, spec in FIGURES.items():
            click.echo(f"{key.ljust(width)}  {marks[spec.adapters].ljust(9)}  {spec.description}")
        return
    if name is None or not output:
        raise click.UsageError("expected NAME PATH... -o FILE; `figure --list` names the figures")
    # Checked before the analysis, which may take long.
    if name not in FIGURES:
        raise click.UsageError(f"unknown figure {name!r}; expected one of {', '.join(FIGURES)}")
    spec = FIGURES[name]
    if spec.adapters == "required" and not paths:
        raise click.UsageError(f"{name} needs adapters: expected {name} PATH... -o FILE")
    if spec.source == "similarity" and len(paths) != 2:
        raise click.UsageError(f"{name} needs two adapters: expected {name} PATH PATH -o FILE")
    if spec.source == "capture" and len(paths) > 1:
        raise click.UsageError(f"{name} shows one adapter, or the table of `capture`: expected {name} PATH -o FILE")
    if spec.source == "evaluation" and len(paths) != 1:
        raise click.UsageError(f"{name} is drawn from the table of `evaluate`: expected {name} TABLE.csv -o FILE")
    if spec.adapters == "none" and paths:
        raise click.UsageError(f"{name} takes no adapters: expected {name} -o FILE, without {' '.join(paths)}")
    reading["steps"] |= name == "trajectory"
    wished = {key: value for key, value in options.items() if value is not None}
    if "threshold" in spec.options:
        wished["threshold"] = analysis["threshold"]

    def write(**sources: Any) -> None:
        drawn = draw(name, **sources, **wished)
        for path in output:
            click.echo(f"wrote {save(drawn, path)}", err=True)

    if spec.source == "similarity":
        with usage():
            grid, _ = compared(paths, 64, 64, reading)
            write(similarity=grid)
    elif spec.source == "capture":
        from ..analysis.capture import capture, sampled
        from ..figures.data import is_table_file

        with usage():
            path = next(iter(paths))
            if is_table_file(path):
                write(capture=path)
                return
            adapter = read_one(path, reading)
            modules = len(sampled(adapter, SURVEY))
            if modules < len(adapter):
                note(f"{adapter.name}: {modules} of {len(adapter)} modules; --modules chooses others")
            with progress(modules) as step:
                write(capture=capture(adapter, starts=1, sample=SURVEY, on_module=step))
    elif spec.source == "evaluation":
        with usage():
            write(evaluation=next(iter(paths)))
    elif spec.source == "runs":
        _of_runs(paths, write)
    elif spec.adapters == "required":
        with results(paths, reading, analysis) as tables:
            if wished.get("null") and "null" in spec.options:
                wished["null"] = null_of(tables)
            write(spectra=tables.spectra, layer_metrics=tables.layer_metrics)
    elif paths:
        with first_modules(paths, reading) as updates:
            write(updates=updates)
    else:
        with usage():
            if spec.source == "accuracy":
                from ..paper.tables import tables as paper_tables

                write(accuracy=paper_tables())
            else:
                write()


def _of_runs(paths: tuple[str, ...], write: Callable[..., None]) -> None:
    """Runs that cannot be read are reported; the others are drawn."""
    from ..analysis.runs import run_table

    failures: list[Exception] = []

    def failed(error: Exception) -> None:
        failures.append(error)
        fail(error)

    with usage():
        write(runs=run_table(paths, failed=failed))
    if failures:
        raise click.exceptions.Exit(1)


@contextmanager
def first_modules(paths: tuple[str, ...], reading: dict[str, Any]) -> Iterator[dict[str, Update]]:
    """Adapter → the factors of its first module, of its last step; errors are handled as in :func:`opened`."""
    from ..adapters import AdapterError

    updates: dict[str, Update] = {}
    with opened(paths, reading) as (chosen, failed):
        for adapter in {adapter.name: adapter for adapter in chosen}.values():
            module = next(iter(adapter))
            try:
                updates[adapter.name] = adapter[module]
                note(f"{adapter.name}: {module}")
            except AdapterError as error:
                failed(error)
        if not updates:
            raise click.exceptions.Exit(1)
        with usage():
            yield updates
