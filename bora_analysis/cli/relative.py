"""The command that sets an adapter beside its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import FORMATS, opened, progress, reading, tell, usage


@click.command()
@reading(solving=False, counting=False)
@click.option("-k", default=10, show_default=True, help="Directions of W0 + ΔW that may be intruders.")
@click.option("--epsilon", default=0.5, show_default=True, help="Cosine below which one is an intruder.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("-o", "--output", metavar="FILE", help="Write the table there, in the format of --format (or csv).")
def relative(
    paths: tuple[str, ...],
    modules: str | None,
    k: int,
    epsilon: float,
    form: str,
    output: str | None,
    **options: Any,
) -> None:
    """Updates beside the base model's weights W0 (--base): relative norms, amplification, intruder dimensions."""
    if options["base"] is None:
        raise click.UsageError("expected --base DIR_OR_HUB_ID: the base model that the updates are compared with")
    if form == "parquet" and output is None:
        raise click.UsageError("parquet is no text: give a file with -o FILE")
    import pandas as pd

    from ..adapters import AdapterError
    from ..analysis.relative import base_metrics
    from ..files.base_model import open_base
    from .text_tables import relative_table, text, write

    with usage():
        options["base"] = open_base(options["base"])
    with opened(paths, modules, options) as (chosen, failed):
        frames = []
        with usage(), progress(sum(map(len, chosen))) as step:
            for adapter in chosen:
                try:
                    frames.append(base_metrics(adapter, options["base"], k=k, epsilon=epsilon, on_module=step))
                except AdapterError as error:
                    failed(error)
        tell(chosen)
        if not frames:
            raise click.exceptions.Exit(1)
        frame = pd.concat(frames, ignore_index=True)
        with usage():
            if output is not None:
                write(frame, Path(output), "csv" if form == "table" else form)
        if form == "table":
            click.echo(relative_table(frame))
        elif output is None:
            click.echo(text(frame, form), nl=False)
