"""The command that advises a rank."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from .common import command, fail, reading, results
from .output import Output, output


@command("recommend my-adapter --energy 0.95", "recommend my-adapter --simple")
@click.option(
    "--energy", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.99, help="Share of Σσ² to keep."
)
@click.option("--simple", flag_value="projection", help="One rank for each projection, without rows for some layers.")
@click.option("--simple-all", "simple", flag_value="all", help="One rank for all modules.")
@click.option("--pattern", is_flag=True, help="Print only the settings for PEFT's configuration, as JSON.")
@output()
@reading(counting=False)
def recommend(
    paths: tuple[str, ...],
    energy: float,
    simple: str | None,
    pattern: bool,
    out: Output,
    reading: dict[str, Any],
    analysis: dict[str, Any],
) -> None:
    """The rank that the next run needs, by projection.

    Shows where rank is wasted, where it is exhausted, what a lower rank saves, and r, rank_pattern and alpha_pattern
    for PEFT. Of several checkpoints the last counts.
    """
    import pandas as pd

    from ..analysis.recommendation import recommend as advise
    from .text_tables import advice_table

    failed, found = False, []
    with results(paths, reading, analysis) as tables:
        for name in dict.fromkeys(tables.layer_metrics["adapter"]):
            frames = {key: getattr(tables, key) for key in ("spectra", "layer_metrics")}
            try:
                own = {key: frame[frame["adapter"] == name] for key, frame in frames.items()}
                found.append(advise(replace(tables, **own), energy=energy, simple=simple))
            except ValueError as error:  # an untrained adapter; the others still get their advice
                failed = True
                fail(error)
        if not found:
            raise click.exceptions.Exit(1)
        frame = pd.concat([each.table for each in found], ignore_index=True)
        if not pattern:
            out.deliver(frame, lambda: advice_table(found, energy))
        else:
            if out.path is not None:
                out.write(frame, Path(out.path), lambda: advice_table(found, energy))
            click.echo("\n".join(json.dumps(each.config) for each in found))
    if failed:
        raise click.exceptions.Exit(1)
