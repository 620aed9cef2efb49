"""The command that advises a rank."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import FORMATS, fail, reading, results

if TYPE_CHECKING:
    pass


@click.command()
@click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.99,
    show_default=True,
    help="Share of Σσ² to keep.",
)
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("--pattern", is_flag=True, help="Print only the settings for PEFT's configuration, as JSON.")
@click.option("-o", "--output", metavar="FILE", help="Write the table there, in the format of --format (or csv).")
@reading(counting=False)
def recommend(
    paths: tuple[str, ...], energy: float, form: str, pattern: bool, output: str | None, **options: Any
) -> None:
    """The rank that the next run needs, by projection.

    Where rank is wasted, where it is exhausted, what it saves, and r, rank_pattern and alpha_pattern for PEFT. Of
    several checkpoints the last counts.
    """
    if form == "parquet" and output is None:
        raise click.UsageError("parquet is no text: give a file with -o FILE")
    import pandas as pd

    from ..analysis.recommendation import recommend as advise
    from .text_tables import advice_table, text, write

    failed, found = False, []
    with results(paths, **options) as tables:
        for name in dict.fromkeys(tables.layer_metrics["adapter"]):
            frames = {key: getattr(tables, key) for key in ("spectra", "layer_metrics")}
            try:
                own = {key: frame[frame["adapter"] == name] for key, frame in frames.items()}
                found.append(advise(replace(tables, **own), energy=energy))
            except ValueError as error:  # one that was never trained; the others are advised on
                failed = True
                fail(error)
        if not found:
            raise click.exceptions.Exit(1)
        frame = pd.concat([each.table for each in found], ignore_index=True)
        if output is not None:
            write(frame, Path(output), "csv" if form == "table" else form)
        if pattern:
            for each in found:
                click.echo(json.dumps(each.config))
        elif form == "table":
            click.echo(advice_table(found, energy))
        elif output is None:
            click.echo(text(frame, form), nl=False)
    if failed:
        raise click.exceptions.Exit(1)
