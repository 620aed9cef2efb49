"""The commands about adapters: analyze, compare, synth, figure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .actions import compared
from .common import (
    ACTIVATIONS,
    FORMATS,
    SIGMA_HELP,
    SYNTHETIC,
    opened,
    progress,
    reading,
    results,
    tell,
    usage,
)

if TYPE_CHECKING:
    from ..delta import Update


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
    from ..report import layer_table, text, write

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
    from ..report import summary_table, text, write
    from ..table import summary

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
    from ..factors import factor_table
    from ..report import factor_ranks_table, text, write

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


@click.command()
@click.option("--model", default="all-minilm-l6-v2", show_default=True, help="Layer shapes of a known model.")
@click.option("--target", default="qv", show_default=True, help="Projections, as letters of QKVOGUD, or all.")
@click.option("--shape", metavar="OUTxIN", help="Instead of --model: one projection q of this shape per layer.")
@click.option("--layers", type=click.IntRange(min=1), help="Number of layers.  [default: the model's; 1 with --shape]")
@click.option(
    "--method",
    type=click.Choice(SYNTHETIC),
    default="bora",
    show_default=True,
    metavar="METHOD",
    help=f"{', '.join(SYNTHETIC)}. LoRA+ is lora with two learning rates: the same update.",
)
@click.option(
    "-r",
    "--rank",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="r of one factor pair; krona, c3a and fourierft have none.",
)
@click.option(
    "--blocks",
    type=click.IntRange(min=1),
    help="b of BoRA, minis of MELoRA, experts of MoELoRA, gcd(m, n) in sizes of C³A's blocks (each 8), "
    "experts of HydraLoRA (3), k of GraLoRA, blocks of BD-LoRA (2).",
)
@click.option("--alpha", type=float, help="α of the methods that have one.  [default: 2r, as in the paper]")
@click.option(
    "--kind",
    type=click.Choice(["init", "gaussian", "decay"]),
    default="decay",
    show_default=True,
    help="init: B = 0; gaussian: a flat spectrum; decay: singular values falling as k^-p.",
)
@click.option("--decay", type=float, default=1.0, show_default=True, help="p of --kind decay.")
@click.option("--scale", type=float, default=0.1, show_default=True, help="Size of the largest singular values.")
@click.option("--activation", type=click.Choice(ACTIVATIONS), default="exp-norm", show_default=True, help=SIGMA_HELP)
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("-o", "--output", required=True, metavar="DIR", help="The adapter's folder.")
def synth(
    model: str,
    target: str,
    shape: str | None,
    layers: int | None,
    method: str,
    rank: int,
    blocks: int | None,
    activation: str,
    dtype: str,
    output: str,
    **numbers: Any,
) -> None:
    """Write a random adapter, in the format of a trained one."""
    from ..architectures import Architecture, architecture, targets
    from ..recipes import RECIPES
    from ..synthetic import Synthetic, write_synthetic

    with usage():
        if shape is not None:
            match = re.fullmatch(r"(\d+)[x×](\d+)", shape)
            if match is None:
                raise click.BadParameter(f"{shape!r}; expected OUTxIN, e.g. 1024x4096", param_hint="--shape")
            size = int(match[1]), int(match[2])
            known = Architecture(layers or 1, "model.layers", {"q": ("self_attn.q_proj", *size)})
            chosen = ("q",)
        else:
            known = architecture(model)
            known = replace(known, layers=layers or known.layers)
            chosen = targets(target, known)
        if blocks is None:
            blocks = RECIPES[method].blocks or 1
        raw = Synthetic(method, known.modules(chosen), rank, blocks, **numbers)
        folder = write_synthetic(output, raw, activation=activation, dtype=dtype)
    click.echo(f"wrote {folder}: {len(raw)} modules", err=True)


@click.command()
@click.option("--list", "listing", is_flag=True, help="List the figures and exit.")
@click.option("-o", "--output", metavar="FILE", multiple=True, help="Where to write: .pdf, .svg or .png; repeatable.")
@click.option("--metric", help="A column of the metrics table (heatmap, trajectory).")
@click.option("--projection", help="q, k, v … (figure4, spectra, threshold_sweep, trajectory, similarity).")
@click.option("--model", help="Layer shapes of a known model (optimal_blocks).  [default: queries of the paper's five]")
@click.option("--width", help="Text width of a venue: neurips, iclr, icml, icml2.")
@click.argument("name", required=False)
@reading(required=False)
def figure(name: str | None, paths: tuple[str, ...], listing: bool, output: tuple[str, ...], **options: Any) -> None:
    """Draw figure NAME, ready for a paper, the same bytes each time.

    Most show the adapters at PATH...; --list says which. figure1 shows the first module of each adapter, without
    PATH small synthetic ones.
    """
    from ..figures import FIGURES, draw, save

    if listing:
        width, marks = max(map(len, FIGURES)), {"required": "PATH...", "optional": "[PATH...]", "none": ""}
        for key, spec in FIGURES.items():
            click.echo(f"{key.ljust(width)}  {marks[spec.adapters].ljust(9)}  {spec.description}")
        return
    if name is None or not output:
        raise click.UsageError("expected NAME PATH... -o FILE; `figure --list` names the figures")
    # Said before the analysis, which may take long.
    if name not in FIGURES:
        raise click.UsageError(f"unknown figure {name!r}; there are {', '.join(FIGURES)}")
    spec = FIGURES[name]
    if spec.adapters == "required" and not paths:
        raise click.UsageError(f"{name} shows adapters: expected {name} PATH... -o FILE")
    if spec.source == "similarity" and len(paths) != 2:
        raise click.UsageError(f"{name} shows two adapters: expected {name} PATH PATH -o FILE")
    if spec.adapters == "none" and paths:
        raise click.UsageError(f"{name} shows no adapters: expected {name} -o FILE, without {' '.join(paths)}")
    options["steps"] |= name == "trajectory"
    names = ("metric", "projection", "model", "width")
    wished = {key: value for key in names if (value := options.pop(key)) is not None}
    if "threshold" in spec.options:
        wished["threshold"] = options["threshold"]

    def write(**sources: Any) -> None:
        drawn = draw(name, **sources, **wished)
        for path in output:
            click.echo(f"wrote {save(drawn, path)}", err=True)

    if spec.source == "similarity":
        with usage():
            grid, _ = compared(paths, options.pop("modules"), 64, 64, options)
            write(similarity=grid)
    elif spec.adapters == "required":
        with results(paths, **options) as tables:
            write(spectra=tables.spectra, layer_metrics=tables.layer_metrics)
    elif paths:
        with first_modules(paths, **options) as updates:
            write(updates=updates)
    else:
        with usage():
            if spec.source == "accuracy":
                from ..paper import tables as paper_tables

                write(accuracy=paper_tables())
            else:
                write()


@contextmanager
def first_modules(paths: tuple[str, ...], *, modules: str | None, **options: Any) -> Iterator[dict[str, Update]]:
    """Adapter → the factors of its first module, of its last step; for errors see :func:`opened`."""
    from ..adapters import AdapterError

    updates: dict[str, Update] = {}
    with opened(paths, modules, options) as (chosen, failed):
        for adapter in {adapter.name: adapter for adapter in chosen}.values():
            module = next(iter(adapter))
            try:
                updates[adapter.name] = adapter[module]
                click.echo(f"note: {adapter.name}: {module}", err=True)
            except AdapterError as error:
                failed(error)
        if not updates:
            raise click.exceptions.Exit(1)
        with usage():
            yield updates
