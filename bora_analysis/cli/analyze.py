"""The commands that measure adapters: analyze, compare, factors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import command, null_of, opened, progress, reading, results, tell, usage
from .output import Output, output

if TYPE_CHECKING:
    from ..analysis.tables import Tables


@command("analyze my-adapter --modules 'layer[.]0' --format csv", "analyze my-adapter -o tables")
@reading()
@output("Also write layer_metrics and spectra there (csv by default).", metavar="DIR")
@click.option(
    "--quick",
    is_flag=True,
    help="With --base, and of large cores (BoRA with br from 1024 on, LoHa from r = 32): count the σ above the "
    "threshold without computing them; columns that need all σ stay empty.",
)
@click.option(
    "--reference",
    metavar="RESULTS",
    help="The results of a sweep; each adapter's place among those of its base model is told.",
)
@click.option("--statistics", is_flag=True, help="With what the entries of ΔW are like: rows, columns, kurtosis, bulk.")
def analyze(
    paths: tuple[str, ...],
    out: Output,
    quick: bool,
    statistics: bool,
    reference: str | None,
    reading: dict[str, Any],
    analysis: dict[str, Any],
) -> None:
    """One row per module: ranks, norms, bound.

    The table shows some columns, rounded. csv, json and parquet have all columns, unrounded; parquet needs -o.
    """
    from .answer import answered
    from .text_tables import layer_table

    with results(paths, reading, analysis | {"quick": quick, "statistics": statistics}) as tables:
        if out.path is not None:
            for name, table in (("layer_metrics", tables.layers), ("spectra", tables.spectra_columns())):
                out.write(table, Path(out.path) / f"{name}.{out.file_format}")
        places = _places(tables, reference) if reference is not None else ()
        layers = tables.layers
        page = answered(layer_table(layers, analysis["threshold"]), layers, reading, "analyze")
        out.show(layers, lambda: replace(page, notes=(*page.notes, *places)))


def _places(tables: Tables, reference: str) -> list[str]:
    """A line per adapter: where it stands among those of its base model."""
    from ..fleet.numbers import percentiles, placed, read_fleet
    from .text_tables import step_of

    with usage():
        fleet = read_fleet(reference)
        lines = []
        for (name, step), part in tables.layer_metrics.groupby(["adapter", "step"], sort=False, dropna=False):
            base = tables.base_models.get(str(name))
            called = f"{name}{step_of(step)}"
            lines.append(f"{called}: {placed(percentiles(part, fleet, base), base)}")
    return lines


@command("compare first-adapter second-adapter")
@reading()
@output("Write the summary there; its end names the format: .csv, .json, .parquet, .md, .tex.")
@click.option("--null", "beside", is_flag=True, help="With the ranks of random factors of the same sizes and ‖ΔW‖_F.")
def compare(
    paths: tuple[str, ...], out: Output, beside: bool, reading: dict[str, Any], analysis: dict[str, Any]
) -> None:
    """Adapters side by side: one row per adapter, then one per projection.

    Ranks are means over modules; parameters and energy are sums. Adapters with the same letter under "budget" train
    the same number of parameters to within 5 %.
    """
    from ..analysis.summary import summary_columns
    from .answer import answered
    from .text_tables import summary_table

    with results(paths, reading, analysis) as tables:
        layers = tables.layers
        table = summary_columns(layers, null_of(tables) if beside else None)
        out.deliver(table, lambda: answered(summary_table(table, analysis["threshold"]), layers, reading, "compare"))


@command("factors run-folder -o factors.csv")
@reading(solving=False, counting=False)
@output()
def factors(paths: tuple[str, ...], out: Output, reading: dict[str, Any]) -> None:
    """Which factor limits the rank: rank(B'), rank(Σ'), rank(A'), by step.

    For methods with block factors: LoRA, MELoRA, BoRA. The table shows means over the modules; csv, json and parquet
    have a row for each module.
    """
    from ..analysis.factors import factor_table
    from .text_tables import factor_ranks_table

    with opened(paths, reading) as (chosen, _):
        tell(chosen)
        if not chosen:
            raise click.exceptions.Exit(1)
        with usage(), progress(sum(map(len, chosen))) as step:
            frame = factor_table(chosen, on_module=step)
            if frame.empty:
                methods = ", ".join(sorted({adapter.method for adapter in chosen}))
                raise ValueError(f"{methods} has no factors B', Σ', A' (eq. 6); expected LoRA, MELoRA, BoRA …")
        out.deliver(frame, lambda: factor_ranks_table(frame))
