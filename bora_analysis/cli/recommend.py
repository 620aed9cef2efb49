"""The command that advises a rank."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import command, each_analysed, fail, note, opened, progress, reading, stop, tell, usage
from .output import Output, output

if TYPE_CHECKING:
    import pandas as pd

    from ..adapters import Adapter
    from ..analysis.consensus import Consensus
    from ..analysis.tables import Tables


@command("recommend my-adapter --energy 0.95", "recommend my-adapter --simple")
@click.option(
    "--energy", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.99, help="Share of Σσ² to keep."
)
@click.option("--simple", flag_value="projection", help="One rank for each projection, without rows for some layers.")
@click.option("--simple-all", "simple", flag_value="all", help="One rank for all modules.")
@click.option(
    "--consensus", "common", is_flag=True, help="Only what several adapters agree on, also as csv, json or parquet."
)
@click.option(
    "--capture", "by_capture", is_flag=True, help="Name the method, too, from the nearest ΔW of each in eight modules."
)
@click.option("--pattern", is_flag=True, help="Print only the settings for PEFT's configuration, as JSON.")
@output()
@reading(counting=False)
def recommend(
    paths: tuple[str, ...],
    energy: float,
    simple: str | None,
    common: bool,
    by_capture: bool,
    pattern: bool,
    out: Output,
    reading: dict[str, Any],
    analysis: dict[str, Any],
) -> None:
    """The rank that the next run needs, by projection.

    Shows where rank is wasted, where it is exhausted, what a lower rank saves, and r, rank_pattern and alpha_pattern
    for PEFT. Of several adapters of one base model it says which advice they agree on. Of several checkpoints the last
    counts.
    """
    from ..analysis.columns import Columns
    from ..analysis.recommendation import recommend as advise
    from ..analysis.tables import analyse, join
    from .text_tables import advice_table, consensus_table

    if pattern and (common or by_capture):
        raise click.UsageError("--pattern prints settings alone; leave out --consensus and --capture")
    failed, found = False, []
    with opened(paths, reading) as (chosen, unreadable):
        parts = each_analysed(chosen, unreadable, analyse, **analysis)
        tell(chosen, [line for part in parts for line in part.provenance])
        if not parts:
            raise click.exceptions.Exit(1)
        tables = join(parts)
        for name in tables.adapters:
            try:
                own = tables.rows(tables.layers["adapter"] == name)
                found.append(advise(own, energy=energy, simple=simple))
            except ValueError as error:  # an untrained adapter; the others still get their advice
                failed = True
                fail(error)
        if not found:
            raise click.exceptions.Exit(1)
        agreed = _consensus(tables, energy, asked=common)
        last = {adapter.name: adapter for adapter in chosen if adapter.name in tables.adapters}
        methods = _methods(last.values()) if by_capture else None
        table = Columns.joined([each.columns for each in found])
        if common and agreed is not None:
            page = consensus_table(agreed)
            out.deliver(agreed.columns, lambda: page)
        elif not pattern:
            out.deliver(table, lambda: advice_table(found, energy, agreed, methods))
        else:
            if out.path is not None:
                out.write(table, Path(out.path), lambda: advice_table(found, energy))
            click.echo("\n".join(json.dumps(each.config) for each in found))
    if failed:
        raise click.exceptions.Exit(1)


def _consensus(tables: Tables, energy: float, asked: bool) -> Consensus | None:
    """What the adapters agree on; None, with a note, where they cannot be compared."""
    from ..analysis.consensus import consensus, of_one_base

    if not asked and len(tables.adapters) < 2:
        return None
    try:
        if not of_one_base(tables.base_models.values()):
            raise ValueError("the adapters name different base models; expected adapters of one")
        return consensus(tables, energy=energy)
    except ValueError as error:
        if asked:
            stop(error)
        note(f"no consensus: {error}")
        return None


def _methods(adapters: Iterable[Adapter]) -> pd.DataFrame:
    from ..analysis.method_advice import method_advice, modules_tried

    adapters = list(adapters)
    with usage(), progress(modules_tried(adapters)) as step:
        return method_advice(adapters, on_module=step)
