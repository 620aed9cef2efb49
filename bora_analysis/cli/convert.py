"""The commands that write a LoRA: convert, merge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import FORMATS, named_apart, progress, read_one, reading, usage

if TYPE_CHECKING:
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
    from ..analysis.conversion import refuse_own_folder, shared_settings

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
    from ..analysis import conversion
    from .text_tables import cut_table, text

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
