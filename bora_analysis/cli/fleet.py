"""The command that shows what many adapters have in common, from the results of a sweep."""

from __future__ import annotations

import click
from click.core import ParameterSource

from .common import command, note, usage
from .output import Output, output

#: What --show may name, and of these what --figure draws.
VIEWS = ("distributions", "growth", "outliers", "ranks", "basis", "similarity", "duplicates", "clusters")
DRAWN = ("growth", "basis", "similarity", "clusters")


@command(
    "fleet results",
    "fleet results --show outliers --top 20",
    "fleet results --show ranks --share 0.95",
    "fleet results --pairs my-adapter another",
)
@click.argument("results", metavar="RESULTS")
@click.option("--show", type=click.Choice(VIEWS), default=VIEWS[0], help="What to look at; see below.")
@click.option("--pairs", nargs=2, multiple=True, metavar="A B", help="Exact similarity of two, by name, id or path.")
@click.option("--base-model", metavar="NAME", help="Only adapters of this base model, as their configurations name it.")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=0.99, help="Of Σσ², for ranks and basis.")
@click.option("--metric", metavar="COLUMN", help="For growth (stable_rank) and outliers (spectral_norm).")
@click.option("--figure", metavar="FILE", help=f"Draw {', '.join(DRAWN[:-1])} or {DRAWN[-1]}: .pdf, .svg or .png.")
@output()
@click.pass_context
def fleet(
    context: click.Context,
    results: str,
    show: str,
    pairs: tuple[tuple[str, str], ...],
    base_model: str | None,
    share: float,
    metric: str | None,
    figure: str | None,
    out: Output,
) -> None:
    """What the adapters of a sweep show together. RESULTS is a folder or URL of `sweep -o`.

    distributions: stable rank, energy rank and σ₁'s share by base model, method, projection and r. growth: the
    exponent with which a metric grows with r, with its interval. outliers: modules that stand out of their projection.
    ranks: the smallest rank that serves each adapter, and so all of them. basis: what one basis for all adapters of a
    base model would keep of each, which reads them again. similarity, duplicates, clusters: every pair of one base
    model, where the sweep stored sketches (`--sketch bora_analysis.fleet.sketches:sketch`).
    """
    from ..files.errors import counted
    from ..fleet.numbers import read_fleet
    from . import fleet_views

    if pairs and context.get_parameter_source("show") is not ParameterSource.DEFAULT:
        raise click.UsageError("--pairs has a table of its own; expected no --show")
    if figure is not None and (pairs or show not in DRAWN):
        got = "--pairs" if pairs else show
        raise click.UsageError(f"--figure goes with --show {', '.join(DRAWN[:-1])} or {DRAWN[-1]}; got {got}")
    with usage():
        whole = read_fleet(results)
        if base_model is not None:
            whole = whole.of_base(base_model)
        shown = fleet_views.exact(whole, pairs) if pairs else fleet_views.VIEWS[show](whole, share, metric)
        if figure is not None and shown.draw is not None:
            from ..figures import save

            click.echo(f"wrote {save(shown.draw(), figure)}", err=True)
    failed = 0 if whole.results is None else int(whole.results.adapters()["error"].notna().sum())
    if failed:
        note(f"{counted(failed, 'adapter')} of the sweep could not be analysed, and left out")
    out.deliver(shown.frame, shown.page)
