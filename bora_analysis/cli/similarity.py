"""The command that compares the subspaces of two adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import FORMATS, named_apart, progress, read_one, reading, usage

if TYPE_CHECKING:
    import pandas as pd


@click.command()
@click.option("-i", type=click.IntRange(min=1), default=8, show_default=True, help="Directions of the first adapter.")
@click.option("-j", type=click.IntRange(min=1), default=8, show_default=True, help="Directions of the second.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("-o", "--output", metavar="FILE", help="Write φ at every i, j and side there (or csv).")
@reading(count=2, metavar="PATH PATH", solving=False, counting=False)
def similarity(
    paths: tuple[str, str], modules: str | None, i: int, j: int, form: str, output: str | None, **options: Any
) -> None:
    """How much the subspaces of two adapters, or two seeds, overlap.

    φ(i, j), LoRA §7.2: the share of the smaller subspace that lies in the other, for the top i and j directions of
    ΔW, left and right, beside what chance gives. The table has φ at -i and -j; csv, json and parquet have it at every i
    and j up to those.
    """
    if form == "parquet" and output is None:
        raise click.UsageError("parquet is no text: give a file with -o FILE")
    from .text_tables import similarity_table, text, write

    with usage():
        grid, summary = compared(paths, modules, i, j, options)
        if output is not None:
            write(grid, Path(output), "csv" if form == "table" else form)
        if form == "table":
            click.echo(similarity_table(summary))
        elif output is None:
            click.echo(text(grid, form), nl=False)


def compared(
    paths: tuple[str, ...], modules: str | None, i: int, j: int, options: dict[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Grid and summary of two adapters; modules of one alone are said on stderr."""
    from ..analysis.subspaces import similarity as compare

    one, two = named_apart([read_one(path, modules, options) for path in paths])
    if one.name == two.name and one.step != two.step:  # two steps of one run
        one, two = (replace(each, name=f"{each.name} step {each.step}") for each in (one, two))
    for adapter, other in ((one, two), (two, one)):
        alone = [module for module in adapter if module not in other]
        if alone:
            click.echo(f"note: {len(alone)} modules are in {adapter.name} alone ({alone[0]} …)", err=True)
    with progress(len([module for module in one if module in two])) as step:
        return compare(one, two, i=i, j=j, on_module=step)
