"""The command that writes a report: verdict, tables and figures of adapters on one page."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import command, gathered, note, reading, results, usage

if TYPE_CHECKING:
    from ..analysis.tables import Tables
    from ..threshold import Threshold

#: Figures of a report: name, options, and what it shows.
_FIGURES: tuple[tuple[str, dict[str, Any], str], ...] = (
    (
        "spectra",
        {},
        "Singular values against their index: median over the modules, and the range.",
    ),
    ("figure4", {}, "Energy and effective rank over the layers; dashed, the rank bound."),
    ("heatmap", {"metric": "energy_rank_99"}, "Directions that hold 99 % of the energy, by layer and projection."),
    ("heatmap", {"metric": "effective_rank"}, "Effective rank by layer and projection."),
    ("threshold_sweep", {}, "Effective rank against the threshold: how much the count depends on it."),
)
_TRAJECTORY = ("trajectory", {"metric": "effective_rank"}, "Effective rank against the training step.")


@command("report my-adapter -o report.html", "report run-a run-b --steps -o runs.html")
@click.option("-o", "--output", metavar="FILE", required=True, help="The HTML file to write.")
@click.option("--title", default="What rank do these adapters use?", help="The page's title.")
@reading()
def report(paths: tuple[str, ...], output: str, title: str, reading: dict[str, Any], analysis: dict[str, Any]) -> None:
    """One page on adapters, to read, send and print.

    The file needs no network and no other file: the verdict, the adapters side by side, figures, a row per module in
    tables that a click on a head sorts, and how all of it was computed. Of several steps the tables show the last.
    """
    from ..atomic import replacing

    target = Path(output)
    if target.suffix.lower() not in (".html", ".htm"):
        raise click.UsageError(f"-o {output}: expected the name of an .html file")
    if target.is_dir():
        raise click.UsageError(f"-o {output}: is a folder; expected a file")
    with results(paths, reading, analysis) as tables, usage():
        text = page_of(tables, title, reading, analysis)
        with replacing(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
        click.echo(f"wrote {target}", err=True)


def page_of(tables: Tables, title: str, reading: dict[str, Any], analysis: dict[str, Any]) -> str:
    """The HTML of the report."""
    from ..analysis.summary import summary
    from ..analysis.views import last_steps
    from .answer import answered
    from .grid import answer_lines
    from .text_tables import layer_table, summary_table
    from .web_page import as_html, document, heading, paragraphs

    threshold = analysis["threshold"]
    layers = last_steps(tables.layer_metrics)
    modules = answered(layer_table(layers, threshold), layers, reading, "report")
    parts = [paragraphs(answer_lines(modules, None), "answer")]
    if layers["adapter"].nunique() > 1:
        page = summary_table(summary(layers), threshold)
        parts += [heading("Side by side"), as_html(replace(page, blocks=page.blocks[:1]))]
        by_projection = replace(page, blocks=page.blocks[1:])
        parts += [heading("By projection"), as_html(by_projection)] if by_projection.blocks else []
    parts += [heading("Figures"), *_pictures(tables, threshold), heading("Module by module"), as_html(modules)]
    return document(title, [*parts, heading("How this was computed"), paragraphs(_methods(tables, threshold))])


def _pictures(tables: Tables, threshold: Threshold) -> Iterator[str]:
    from ..figures import FIGURES, draw, save
    from .web_page import paragraphs, picture

    stepped = tables.layer_metrics["step"].nunique() > 1
    with tempfile.TemporaryDirectory() as folder:
        for name, options, words in (*_FIGURES, *([_TRAJECTORY] if stepped else [])):
            wished = options | ({"threshold": threshold} if "threshold" in FIGURES[name].options else {})
            try:
                figure = draw(name, spectra=tables.spectra, layer_metrics=tables.layer_metrics, **wished)
            except ValueError as error:  # such as spectra of an adapter that learned nothing
                note(f"figure {name} is left out: {error}")
                yield paragraphs([f"{words} Left out: {error}."], "small")
                continue
            yield picture(save(figure, Path(folder) / "figure.svg").read_bytes(), words, f"{words} ({name})")


def _methods(tables: Tables, threshold: Threshold) -> Iterator[str]:
    import platform

    import numpy as np

    from .. import __version__
    from ..metrics import METRICS

    yield from gathered([*tables.layer_metrics["adapter"].unique()], tables.provenance)
    yield (
        "Singular values are those of ΔW, exact and in float64, from the factors alone; ΔW is not formed where a small "
        f"core has the same singular values. Effective rank is the count of σ > {threshold.formula} (0.005 in BoRA, "
        "arXiv 2508.06953, §4.5)."
    )
    for name in ("entropy_rank", "stable_rank", "energy_rank_99"):
        yield f"{METRICS[name].label}: {METRICS[name].formula}."
    yield (
        f"Written by bora_analysis {__version__} with NumPy {np.__version__} on Python {platform.python_version()}. "
        "Energy is not accuracy: small directions may matter, and large ones may not."
    )
