"""The commands that write a LoRA: convert, merge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import catalogue
from .common import POSITIVE, command, first_of, note, progress, read_one, reading, threshold_options, usage
from .output import Output, output, together

if TYPE_CHECKING:
    from ..adapters import Adapter
    from ..threshold import Threshold


_cutting = together(
    click.option(
        "-o",
        "--output",
        required=True,
        metavar="DIR",
        help="The folder of the LoRA, or a file.",
    ),
    click.option("--rank", type=click.IntRange(min=1), help="Cut every module to at most this rank."),
    click.option(
        "--energy", type=click.FloatRange(0, 1, min_open=True), help="Cut to the least rank with this share of Σσ²."
    ),
    threshold_options("Keep the singular values above", None),
    click.option(
        "--cap-sigma",
        type=click.FloatRange(min=0, min_open=True),
        metavar="X",
        help="Set singular values above X to X.",
    ),
    click.option(
        "--layout",
        type=click.Choice(catalogue.LAYOUTS),
        default="peft",
        show_default=True,
        help="The program that loads it; same: the layout of PATH, with its α/r and metadata; per-expert: PEFT's, with "
        "each expert of a mixture a module.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16", "float64"]),
        default="float32",
    ),
    click.option(
        "--force",
        is_flag=True,
        help="Replace the adapter in DIR; merge adapters of different base models.",
    ),
    click.option("--pad", is_flag=True, help="Pad with zeros to the largest rank, for servers without alpha_pattern."),
)


@command(
    "convert my-bora -o my-lora --energy 0.99",
    "convert style.safetensors -o small.safetensors --layout same --rank 16",
    "convert my-lora -o for-mac --layout mlx",
    "convert my-lora -o my-lora.gguf --layout gguf --base Llama-3-8B",
    "convert spiky -o calm --cap-sigma 2",
    "convert fine-tuned --base org/base -o start --to bora -r 8 --blocks 16",
)
@_cutting
@click.option("--to", metavar="METHOD", help="Write the nearest adapter of this method; `capture` says how near it is.")
@click.option("-r", type=POSITIVE, help="r of --to.")
@click.option("--blocks", type=POSITIVE, help="Blocks, minis or experts of --to.")
@output(metavar=None)
@reading(count=1, metavar="PATH", solving=False, counting=False)
def convert(
    paths: str, reading: dict[str, Any], to: str | None, r: int | None, blocks: int | None, **options: Any
) -> None:
    """Write an adapter as a plain LoRA, for PEFT and servers of LoRA, or in the layout of another program.

    Without --rank, --energy or --threshold ΔW is kept whole. The output states the error of each module as it is
    written: the singular values that were cut off, no rank-k matrix loses less, and the rounding to --dtype.
    Modules get the names that the layout has for them; kohya's need known names, or --base. What a layout cannot hold
    is refused by name.
    """
    with usage():
        if to is None:
            if r or blocks:
                raise click.UsageError("-r and --blocks are sizes of --to METHOD; to cut to a rank give --rank")
            _write(read_one(paths, reading), base=reading["base"], **options)
        else:
            _represent(read_one(paths, reading), (to, r or 0, blocks or 0), **options)


@command("merge first@0.5 second@0.5 -o mean", "merge trained initial@-1 -o difference")
@_cutting
@output(metavar=None)
@reading(metavar="PATH[@WEIGHT]...", solving=False, counting=False)
def merge(paths: tuple[str, ...], reading: dict[str, Any], **options: Any) -> None:
    """Write the sum of adapters, each times its WEIGHT, as one LoRA.

    The default WEIGHT is 1: one@0.5 two@0.5 is the mean, trained initial@-1 the difference. A module that an
    adapter lacks counts as zero. The result has the rank of the sum; --rank, --energy and --threshold cut it.
    """
    from ..adapters import merge as add
    from ..adapters.given import named_apart
    from ..analysis.conversion import refuse_own_folder, shared_settings

    with usage():
        given = [_weighted(path) for path in paths]
        adapters = [read_one(path, reading) for path, _ in given]
        refuse_own_folder(Path(options["output"]), adapters)
        adapters = named_apart(adapters)
        total = add(
            [replace(each, warnings=()) for each in adapters],
            [weight for _, weight in given],
            force=options["force"],
        )
        for line in total.warnings:
            note(line)
        _write(total, settings=shared_settings(adapters, force=options["force"]), base=reading["base"], **options)


def _weighted(path: str) -> tuple[str, float]:
    """PATH and WEIGHT of PATH@WEIGHT; the name of an existing file or folder is a PATH as a whole."""
    head, mark, tail = path.rpartition("@")
    if not mark or Path(path).exists():
        return path, 1.0
    try:
        return head, float(tail)
    except ValueError:
        raise click.UsageError(f"{path}: {tail!r} is not a weight; expected PATH@NUMBER, such as {head}@-1") from None


def _represent(
    adapter: Adapter, member: tuple[str, int, int], *, output: str, dtype: str, force: bool, out: Output, **others: Any
) -> None:
    from ..analysis.representation import represent
    from .text_tables import representation_table

    for name, value in others.items():
        if value not in (None, False, "peft"):
            raise click.UsageError(f"--{name.replace('_', '-')} is for a LoRA; leave it out, or leave out --to")
    with progress(len(adapter)) as step:
        frame = represent(adapter, output, member, dtype=dtype, force=force, on_module=step)
    out.show(frame, lambda: representation_table(frame))
    click.echo(f"wrote {output}: {len(frame)} modules", err=True)


def _write(
    adapter: Adapter,
    *,
    output: str,
    rank: int | None,
    energy: float | None,
    threshold: Threshold | None,
    cap_sigma: float | None,
    layout: str,
    dtype: str,
    pad: bool,
    force: bool,
    out: Output,
    base: Any = None,
    settings: dict[str, Any] | None = None,
) -> None:
    from ..analysis import conversion
    from .text_tables import cut_table

    cut: dict[str, Any] = {"rank": rank, "energy": energy, "threshold": threshold, "cap_sigma": cap_sigma}
    cut |= {"layout": layout, "dtype": dtype, "pad": pad, "base": base}
    with progress(len(adapter)) as step:
        done = conversion.convert(adapter, output, settings=settings, on_module=step, force=force, **cut)
    frame = done.table
    out.show(frame, lambda: cut_table(frame))
    if done.left_behind:
        note(f"{len(done.left_behind)} tensors beside ΔW are left out ({first_of(done.left_behind)})")
    capped = [module for module, own in done.cuts.items() if own.capped]
    if capped:
        note(f"capped: how many σ above {cap_sigma:g} were set to it, in {len(capped)} modules; removed: share of Σσ²")
    zero = [module for module, own in done.cuts.items() if own.rank == 0]
    if zero:
        note(f"{len(zero)} modules have rank 0: written as zeros of rank 1 ({zero[0]} …)")
    click.echo(f"wrote {done.folder}: {len(done.cuts)} modules", err=True)
