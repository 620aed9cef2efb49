"""The commands that act on what the analysis shows: convert, merge, recommend, similarity."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import FORMATS, fail, named_apart, progress, read_one, reading, results, usage

if TYPE_CHECKING:
    import pandas as pd

    from ..adapters import Adapter


def _cutting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of the commands that write a LoRA."""
    options = (
        click.option("-o", "--output", required=True, metavar="DIR", help="The folder of the LoRA."),
        click.option("--rank", type=click.IntRange(min=1), help="At most this rank in every module."),
        click.option(
            "--energy", type=click.FloatRange(0, 1, min_open=True), help="The least rank with this share of Σσ²."
        ),
        click.option(
            "--threshold", type=click.FloatRange(min=0), help="As many as there are singular values above it."
        ),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "float16", "bfloat16", "float64"]),
            default="float32",
            show_default=True,
        ),
        click.option("--pad", is_flag=True, help="Zeros up to the largest rank: for servers without alpha_pattern."),
        click.option("--format", "form", type=click.Choice(FORMATS[:3]), default="table", show_default=True),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@_cutting
@reading(count=1, metavar="PATH", solving=False, counting=False)
def convert(paths: str, modules: str | None, **options: Any) -> None:
    """Write an adapter as a plain LoRA, for PEFT and every server of LoRA.

    Without --rank, --energy or --threshold ΔW is kept whole. stdout has the error of each module, which is known:
    the truncated SVD is the best there is, and loses the singular values cut off.
    """
    with usage():
        _write(read_one(paths, modules, options), **options)


@click.command()
@_cutting
@reading(metavar="PATH[@WEIGHT]...", solving=False, counting=False)
def merge(paths: tuple[str, ...], modules: str | None, **options: Any) -> None:
    """Write the sum of adapters, each times its WEIGHT, as one LoRA.

    The weight is 1 unless given: one@0.5 two@0.5 is the mean, trained initial@-1 the difference. A module that an
    adapter lacks is zero there. The rank is that of the sum; --rank, --energy and --threshold cut it.
    """
    from ..adapters import merge as add
    from ..conversion import refuse_own_folder, shared_settings

    with usage():
        given = [_weighted(path) for path in paths]
        adapters = [read_one(path, modules, options) for path, _ in given]
        refuse_own_folder(Path(options["output"]), adapters)
        for adapter in adapters:
            if adapter.passed_over:
                click.echo(f"note: {adapter.name}: {len(adapter.passed_over)} tensors beside ΔW are left out", err=True)
        adapters = named_apart(adapters)
        total = add([replace(each, warnings=()) for each in adapters], [weight for _, weight in given])
        for line in total.warnings:
            click.echo(f"note: {line}", err=True)
        _write(total, settings=shared_settings(adapters), **options)


def _weighted(path: str) -> tuple[str, float]:
    """PATH and WEIGHT of PATH@WEIGHT; a path that exists is a path."""
    head, mark, tail = path.rpartition("@")
    if not mark or Path(path).exists():
        return path, 1.0
    try:
        return head, float(tail)
    except ValueError:
        raise click.UsageError(f"{path}: {tail!r} is no weight; expected PATH@NUMBER, such as {head}@-1") from None


def _write(
    adapter: Adapter,
    *,
    output: str,
    rank: int | None,
    energy: float | None,
    threshold: float | None,
    dtype: str,
    pad: bool,
    form: str,
    settings: dict[str, Any] | None = None,
    **_: Any,
) -> None:
    from .. import conversion
    from ..report import cut_table, text

    wish: dict[str, Any] = {"rank": rank, "energy": energy, "threshold": threshold, "dtype": dtype, "pad": pad}
    with progress(len(adapter)) as step:
        done = conversion.convert(adapter, output, settings=settings, on_module=step, **wish)
    frame = done.table
    click.echo(cut_table(frame) if form == "table" else text(frame, form), nl=form == "table")
    if done.left_behind:
        shown = ", ".join(done.left_behind[:3]) + (", …" if len(done.left_behind) > 3 else "")
        click.echo(f"note: {len(done.left_behind)} tensors beside ΔW are left behind ({shown})", err=True)
    zero = [module for module, cut in done.cuts.items() if cut.rank == 0]
    if zero:
        click.echo(f"note: {len(zero)} modules have rank 0: written as zeros of rank 1 ({zero[0]} …)", err=True)
    click.echo(f"wrote {done.folder}: {len(done.cuts)} modules", err=True)


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

    from ..recommendation import recommend as advise
    from ..report import advice_table, text, write

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
    from ..report import similarity_table, text, write

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
    from ..subspaces import similarity as compare

    one, two = named_apart([read_one(path, modules, options) for path in paths])
    if one.name == two.name and one.step != two.step:  # two steps of one run
        one, two = (replace(each, name=f"{each.name} step {each.step}") for each in (one, two))
    for adapter, other in ((one, two), (two, one)):
        alone = [module for module in adapter if module not in other]
        if alone:
            click.echo(f"note: {len(alone)} modules are in {adapter.name} alone ({alone[0]} …)", err=True)
    with progress(len([module for module in one if module in two])) as step:
        return compare(one, two, i=i, j=j, on_module=step)
