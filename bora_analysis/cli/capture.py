"""The command that asks how much of an update each method could represent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from .. import catalogue
from .common import SIGMA_HELP, command, note, opened, progress, reading, tell, usage
from .help import Command
from .output import Output, output

#: Modules of an adapter that are tried where no method is named: all methods take seconds for each.
SURVEY = 8


class _Members(Command):
    """Gathers each --method with the -r and --blocks behind it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        order = self.make_parser(ctx).parse_args(list(args))[2]
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            ctx.params["members"] = self._members(ctx, [each.name for each in order])
        return rest

    def _members(self, ctx: click.Context, order: list[str | None]) -> list[tuple[str, int, int]] | None:
        values = {name: list(ctx.params.pop(name)) for name in ("candidate", "r", "blocks")}
        members: list[list[Any]] = []
        for name in order:
            if name == "candidate":
                members.append([values[name].pop(0), 0, 0])
            elif name in ("r", "blocks"):
                if not members:
                    raise click.UsageError(f"expected --method before {'-r' if name == 'r' else '--blocks'}", ctx)
                members[-1][1 if name == "r" else 2] = values[name].pop(0)
        return [(method, r, b) for method, r, b in members] or None


@command(
    "capture my-adapter",
    "capture my-adapter --method lora -r 8 --method bora -r 8 --blocks 16",
    "capture fine-tuned-model --base org/base-model --budget 600000",
    cls=_Members,
)
@click.option(
    "--method",
    "candidate",
    multiple=True,
    metavar="NAME",
    help="A method to try; repeatable.  [default: all that can be tried]",
)
@click.option(
    "-r", multiple=True, type=click.IntRange(min=1), help="r of the --method before it.  [default: by budget]"
)
@click.option("--blocks", multiple=True, type=click.IntRange(min=1), help="Its number of blocks, minis or experts.")
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    help="Trained parameters in all.  [default: ½, 1, 2 and 4 times those of the target]",
)
@click.option("--like", metavar="PATH", help="An adapter whose parameters are the budget.")
@click.option("--starts", type=click.IntRange(min=1), help="Of the local methods.  [default: 3, without --method 1]")
@click.option("--all", "whole", is_flag=True, help=f"All modules; without --method {SURVEY} of each adapter are tried.")
@click.option(
    "--bora-activation",
    type=click.Choice(catalogue.ACTIVATIONS),
    default="exp-norm",
    help=f"{SIGMA_HELP}, in the BoRA that is looked for.",
)
@click.option("--resume", is_flag=True, help="Keep the rows that the FILE of -o has already.")
@output()
@reading(solving=False, counting=False, naming=False)
def capture(
    paths: tuple[str, ...],
    members: list[tuple[str, int, int]] | None,
    budget: int | None,
    like: str | None,
    starts: int | None,
    whole: bool,
    bora_activation: str,
    resume: bool,
    out: Output,
    reading: dict[str, Any],
) -> None:
    """How much of ΔW another method or rank could have held.

    Finds the nearest ΔW of each method, by the same parameters or by the given sizes, and prints the share of Σσ²
    that it keeps, beside the LoRA of as many parameters. Without --method it tries every method that it can, in some
    modules of every projection.
    """
    from ..adapters import AdapterError
    from ..analysis.capture import each_capture, sampled, table_of
    from .text_tables import capture_table

    if resume and out.path is None:
        raise click.UsageError("--resume needs the table so far; add -o FILE")
    sample = None if members or whole else SURVEY
    options: dict[str, Any] = {"budget": budget, "like": like, "bora_activation": bora_activation, "sample": sample}
    options["starts"] = starts or (3 if members else 1)
    with opened(paths, reading) as (chosen, failed), usage():
        if resume:
            options["known"] = _known(Path(str(out.path)), out.file_format)
        rows, saved = [], time.monotonic()
        counts = [len(sampled(adapter, sample)) for adapter in chosen]
        for adapter, count in zip(chosen, counts, strict=True):
            if count < len(adapter):
                note(f"{adapter.name}: {count} of {len(adapter)} modules, of every projection; --all takes them all")
        with progress(sum(counts)) as step:
            for adapter in chosen:
                try:
                    for found in each_capture([adapter], members, **options):
                        rows += found
                        step()
                        if out.path is not None and time.monotonic() - saved > 30:  # for --resume
                            out.write(table_of(rows), Path(out.path))
                            saved = time.monotonic()
                except AdapterError as error:
                    failed(error)
        tell(chosen)
        if not rows:
            raise click.exceptions.Exit(1)
        frame = table_of(rows)
        out.deliver(frame, lambda: capture_table(frame))


def _known(path: Path, form: str) -> Any:
    import pandas as pd

    read = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}
    return read[form](path) if path.exists() else None
