"""The command that writes random adapters."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import click

from ..catalogue import ACTIVATIONS, METHODS, labels, made
from ..files.errors import counted
from .common import POSITIVE, SIGMA_HELP, command, usage
from .names import Named

# The methods that get a base model beside them.
NEEDS = labels(lambda row: row.made and row.needs_base, ", ")


@command("synth --method bora -r 8 --blocks 16 -o random-bora")
@click.option("--model", default="all-minilm-l6-v2", help="Layer shapes of a known model.")
@click.option("--target", default="qv", help="Projections, as letters of QKVOGUD, or all.")
@click.option("--shape", metavar="OUTxIN", help="Instead of --model: one projection q of this shape per layer.")
@click.option("--layers", type=POSITIVE, help="Number of layers.  [default: the model's; 1 with --shape]")
@click.option(
    "--method",
    type=Named(made()),
    default="bora",
    metavar="METHOD",
    help=f"{', '.join(made())}. For LoRA+ take lora: the two differ in learning rates only.",
)
@click.option(
    "-r", "--rank", type=POSITIVE, default=8, help="r of one factor pair; krona, c3a and fourierft ignore it."
)
@click.option(
    "--blocks",
    type=POSITIVE,
    help="b of BoRA, minis of MELoRA, experts of MoELoRA, gcd(m, n) over the block size of C³A (8 by default); "
    "experts of HydraLoRA (3); stages of ReLoRA (4); k of GraLoRA, blocks of BD-LoRA (2).",
)
@click.option("--pad", is_flag=True, help="BoRA with a --blocks that need not divide the layers.")
@click.option("--alpha", type=float, help="α, for methods with one.  [default: 2r, as in the paper]")
@click.option(
    "--kind",
    type=click.Choice(["init", "gaussian", "decay"]),
    default="decay",
    help="init: B = 0; gaussian: a flat spectrum; decay: singular values that fall as k^-p.",
)
@click.option("--decay", type=float, default=1.0, help="p of --kind decay.")
@click.option("--scale", type=float, default=0.1, help="Size of the largest singular values.")
@click.option(
    "--base-spectrum",
    type=click.Choice(["mp", "flat", "power"]),
    default="mp",
    help=f"Singular values of the random base model that a method needs for its update ({NEEDS}): mp: independent "
    "normal weights, Marchenko and Pastur's law; flat: all equal; power: they fall as k^-p.",
)
@click.option("--base-decay", type=float, default=0.5, help="p of --base-spectrum power.")
@click.option("--large-base", is_flag=True, help="Write the base model even if it has more than 1 GB.")
@click.option("--activation", type=click.Choice(ACTIVATIONS), default="exp-norm", help=SIGMA_HELP)
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32")
@click.option("--seed", type=click.IntRange(min=0), default=0)
@click.option("-o", "--output", required=True, metavar="DIR", help="The adapter's folder.")
@click.option("--force", is_flag=True, help="Replace an adapter in DIR that was not made by this command.")
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
    large_base: bool,
    force: bool,
    **numbers: Any,
) -> None:
    """Write a random adapter, in the format of a trained one.

    A method whose update depends on the base model gets a random one beside it, in DIR/base, of the adapted layers
    alone and the same for every method. `analyze DIR` finds it there.
    """
    from ..adapters.synthetic import BESIDE, Synthetic, base_bytes, write_synthetic
    from ..catalogue.architectures import Architecture, architecture, chosen
    from .cells import short

    with usage():
        if shape is not None:
            match = re.fullmatch(r"(\d+)[x×](\d+)", shape)
            if match is None:
                raise click.BadParameter(f"{shape!r}; expected OUTxIN, e.g. 1024x4096", param_hint="--shape")
            size = int(match[1]), int(match[2])
            known = Architecture(layers or 1, "model.layers", {"q": ("self_attn.q_proj", *size)})
            picked = ("q",)
        else:
            known = architecture(model)
            known = replace(known, layers=layers or known.layers)
            picked = chosen(target, known.projections)
        if blocks is None:
            row = METHODS[method]
            blocks = row.blocks.default if row.blocks else 1
        raw = Synthetic(method, known.modules(picked), rank, blocks, **numbers)
        folder = write_synthetic(output, raw, activation=activation, dtype=dtype, large_base=large_base, force=force)
    size = base_bytes(raw, dtype)
    beside = f", and their base model in {folder / BESIDE} ({short(size, ' ')}B)" if size else ""
    click.echo(f"wrote {folder}: {counted(len(raw), 'module')}{beside}", err=True)
