"""The command that draws figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from .capture import SURVEY
from .common import command, fail, note, null_of, opened, print_listed, progress, read_one, reading, results, usage
from .figure_help import FigureCommand, flag, flags
from .similarity import compared

if TYPE_CHECKING:
    from ..updates.contract import Update


@command(
    "figure figure4 first-adapter second-adapter -o figure4.pdf",
    "figure trajectory run-folder -o rank.pdf",
    "figure pareto first second --y accuracy --from results.csv -o front.pdf",
    "figure spectra first second --label LoRA --label BoRA --font STIXGeneral --width icml --height 2 -o spectra.pdf",
    "figure spectra first second --band quartiles --null --threshold 1% --title Spectra -o spectra.svg",
    "figure figure4 runs/lora-seed* runs/bora-seed* --group seed --projection v -o seeds.pdf",
    "figure heatmap first second --metric energy_rank_99 --scale each -o where.pdf",
    "figure trajectory runs/lora runs/bora --metric effective_rank --panels bound -o training.pdf",
    "figure similarity first second --above-chance -o phi.pdf",
    "figure figure3 runs -o ablations.pdf",
    "figure figure3 --from runs --paper -o beside.pdf",
    "figure accuracy_by_rank accuracy.csv --order random --metric accuracy -o kept.pdf",
    "figure threshold_sweep tables/spectra.csv --only seed=0 -o sweep.pdf",
    "figure pareto first second --y perplexity --lower --from results.csv -o front.png",
    "figure optimal_blocks --model llama-3-8b -o blocks.pdf",
    "figure heatmap --help",
    cls=FigureCommand,
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
@click.option(
    "--from",
    "outcome",
    metavar="FILE",
    help="CSV or JSON with the columns adapter and COLUMN (pareto); a folder of runs, as PATH (figure3).",
)
@click.option("--paper", is_flag=True, default=None, help="With the paper's panels above those of your runs (figure3).")
@click.option("--null", is_flag=True, default=None, help="With that of random factors (spectra, figure4, trajectory).")
@click.option(
    "--band",
    type=click.Choice(["range", "quartiles"]),
    help="What a band shows of the modules or layers (spectra, threshold_sweep, trajectory).  [default: range]",
)
@click.option(
    "--group",
    type=click.Choice(["seed"]),
    help="One curve, point or panel for adapters whose names differ in their seed alone: mean and standard deviation.",
)
@click.option(
    "--only", metavar="COLUMN=VALUE", multiple=True, help="Only these rows, where PATH is a table's file; repeatable."
)
@click.option(
    "--panels", type=click.Choice(["bound", "one"]), help="A panel for each rank bound, or one for all (trajectory)."
)
@click.option(
    "--scale", type=click.Choice(["shared", "each"]), help="Colour scale of the panels (heatmap).  [default: shared]"
)
@click.option(
    "--above-chance", is_flag=True, default=None, help="φ less what two random subspaces would have (similarity)."
)
@click.option("--order", help="Which k directions were kept: largest, smallest, random, energy (accuracy_by_rank).")
@click.option("--lower", is_flag=True, default=None, help="Lower values of COLUMN are better (pareto).")
@click.option("--width", help="Text width of a venue: neurips, iclr, icml, icml2.")
@click.option("--height", type=float, metavar="INCHES", help="Height; the default goes with what is shown.")
@click.option("--font", help="A font family, such as 'Times New Roman', or STIXGeneral, which is always there.")
@click.option("--title", help="A title above the figure; captions of papers belong to LaTeX.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="Name of an adapter, in their order, or ADAPTER=NAME for some; repeatable.",
)
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

    Most figures show the adapters at PATH...; --list says which. In their place stand the tables that `analyze -o`
    wrote. figure1 shows the first module of each adapter, or, without PATH, small synthetic adapters; figure3 the
    paper's tables, or your own runs. `figure NAME --help` explains a figure and lists its options.
    """
    from ..figures import FIGURES, draw, save
    from ..figures.data import is_table_file, of_files

    if listing:
        marks = {"required": "PATH...", "optional": "[PATH...]", "none": ""}
        print_listed([(key, marks[spec.adapters], spec.description) for key, spec in FIGURES.items()])
        return
    if name is None or not output:
        raise click.UsageError("expected NAME PATH... -o FILE; `figure --list` names the figures")
    # Checked before the analysis, which may take long.
    if name not in FIGURES:
        raise click.UsageError(f"unknown figure {name!r}; expected one of {', '.join(FIGURES)}")
    spec = FIGURES[name]
    if spec.source == "accuracy" and options["outcome"] is not None:
        paths = (*paths, options.pop("outcome"))
    if spec.adapters == "required" and not paths:
        raise click.UsageError(f"{name} needs adapters: expected {name} PATH... -o FILE")
    if spec.source == "similarity" and len(paths) != 2:
        raise click.UsageError(f"{name} needs two adapters: expected {name} PATH PATH -o FILE")
    for option in wished_options(options):
        if option not in spec.options and option != "only":
            raise click.UsageError(f"{name} has no {flag(option)}; it has {flags(spec.options)}")
    if spec.source == "capture" and len(paths) > 1:
        raise click.UsageError(f"{name} shows one adapter, or the table of `capture`: expected {name} PATH -o FILE")
    if spec.source == "evaluation" and len(paths) != 1:
        raise click.UsageError(f"{name} is drawn from the table of `evaluate`: expected {name} TABLE.csv -o FILE")
    if spec.adapters == "none" and paths:
        raise click.UsageError(f"{name} takes no adapters: expected {name} -o FILE, without {' '.join(paths)}")
    reading["steps"] |= name == "trajectory"
    wished = wished_options(options)
    only = wished.pop("only", ())
    if only and not all(is_table_file(path) for path in paths):
        raise click.UsageError("--only chooses rows of tables' files; choose adapters by their PATHs")
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
    elif spec.source == "accuracy":
        from ..paper.tables import tables as paper_tables

        if wished.pop("paper", None):
            if not paths:
                raise click.UsageError("--paper is drawn beside runs; without PATH figure3 is that of the paper")
            wished["paper"] = paper_tables()
        with usage():
            write(accuracy=list(paths) if paths else paper_tables())
            _missing([path for path in paths if not is_table_file(path)])
    elif spec.adapters == "required" and any(is_table_file(path) for path in paths):
        if not all(is_table_file(path) for path in paths):
            raise click.UsageError("expected adapters or tables' files, not both")
        if wished.pop("null", None):
            raise click.UsageError("--null is made of adapters; a table does not have their sizes")
        with usage():
            write(**{str(spec.source): of_files(paths, only)})
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
            write()


def _missing(folders: list[str]) -> None:
    """Tell which runs of experiments have no result, and why."""
    from ..analysis.runs import missing

    for run, reason in missing(folders).items():
        note(f"missing: {run}: {reason}")


def wished_options(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value not in (None, ())}


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
