"""The commands that measure adapters: analyze, compare, factors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import FORMATS, opened, progress, reading, results, tell, usage

if TYPE_CHECKING:
    pass


@click.command()
@reading()
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("-o", "--output", metavar="DIR", help="Also write layer_metrics and spectra there (csv by default).")
@click.option(
    "--quick",
    is_flag=True,
    help="With --base: count the σ above the threshold instead of finding them; columns that need them are empty.",
)
def analyze(paths: tuple[str, ...], form: str, output: str | None, **options: Any) -> None:
    """One row per module: ranks, norms, bound.

    The table shows a choice of columns, rounded. csv, json and parquet have all of them, unrounded; parquet needs -o.
    """
    if form == "parquet" and output is None:
        raise click.UsageError("parquet is no text: give a folder with -o DIR")
    from .text_tables import layer_table, text, write

    with results(paths, **options) as tables:
        if output is not None:
            suffix = "csv" if form == "table" else form
            for name in ("layer_metrics", "spectra"):
                write(getattr(tables, name), Path(output) / f"{name}.{suffix}", suffix)
        if form == "table":
            click.echo(layer_table(tables.layer_metrics, options["threshold"]))
        elif output is None:
            click.echo(text(tables.layer_metrics, form), nl=False)


@click.command()
@reading()
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("-o", "--output", metavar="FILE", help="Write the summary there, in the format of --format (or csv).")
def compare(paths: tuple[str, ...], form: str, output: str | None, **options: Any) -> None:
    """Adapters side by side: one row per adapter, then one per projection.

    Ranks are means over modules; parameters and energy are sums. Adapters with the same letter under "budget" train
    the same number of parameters to within 5 %.
    """
    if form == "parquet" and output is None:
        raise click.UsageError("parquet is no text: give a file with -o FILE")
    from ..analysis.summary import summary
    from .text_tables import summary_table, text, write

    with results(paths, **options) as tables:
        frame = summary(tables.layer_metrics)
        if output is not None:
            write(frame, Path(output), "csv" if form == "table" else form)
        if form == "table":
            click.echo(summary_table(frame, options["threshold"]))
        elif output is None:
            click.echo(text(frame, form), nl=False)


@click.command()
@reading(solving=False, counting=False)
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("-o", "--output", metavar="FILE", help="Write the table there, in the format of --format (or csv).")
def factors(paths: tuple[str, ...], modules: str | None, form: str, output: str | None, **options: Any) -> None:
    """Which factor limits the rank: rank(B'), rank(Σ'), rank(A'), by step.

    For methods with block factors: LoRA, MELoRA, BoRA. The table shows means over the modules; csv, json and parquet
    have a row for each.
    """
    if form == "parquet" and output is None:
        raise click.UsageError("parquet is no text: give a file with -o FILE")
    from ..analysis.factors import factor_table
    from .text_tables import factor_ranks_table, text, write

    with opened(paths, modules, options) as (chosen, _):
        tell(chosen)
        if not chosen:
            raise click.exceptions.Exit(1)
        with usage(), progress(sum(map(len, chosen))) as step:
            frame = factor_table(chosen, on_module=step)
            if frame.empty:
                methods = ", ".join(sorted({adapter.method for adapter in chosen}))
                raise ValueError(f"{methods} has no B', Σ', A' (eq. 6); expected LoRA, MELoRA, BoRA …")
        if output is not None:
            write(frame, Path(output), "csv" if form == "table" else form)
        if form == "table":
            click.echo(factor_ranks_table(frame))
        elif output is None:
            click.echo(text(frame, form), nl=False)
