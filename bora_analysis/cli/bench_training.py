"""The command that measures training steps: table 4 of the paper."""

from __future__ import annotations

from dataclasses import replace

import click

from ..catalogue import METHODS, check_may_pad, trained
from .common import POSITIVE, command, stop, usage
from .cost import Batch
from .names import Named, Several, flat
from .output import Output, output


@command("bench-training --model all-minilm-l6-v2 --methods lora,bora --step 32x64")
@click.option(
    "--model", default="all-minilm-l6-v2", metavar="NAME|DIR|ID", help="A model as for cost; its weights are random."
)
@click.option(
    "--methods",
    "--method",
    multiple=True,
    metavar="NAMES",
    type=Several(Named(trained())),
    callback=flat,
    default=["lora,bora,melora,hydralora,dora"],
    help="Names with commas between them; LoRA comes first.",
)
@click.option("--target", default="qv", help="Projections, as letters of QKVOGUD, or names with commas between them.")
@click.option("-r", "--rank", type=POSITIVE, default=8, help="r; HydraLoRA has half of it, as in the paper.")
@click.option("--blocks", type=POSITIVE, help="b of every method with blocks.  [default: the method's own in training]")
@click.option("--pad", is_flag=True, help="BoRA with a --blocks that need not divide the layers.")
@click.option("--step", "batch", type=Batch(), default="32x64", metavar="BxL", help="B examples of L tokens.")
@click.option("--rounds", type=POSITIVE, default=10, help="Of which each has a step of every method.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), help="Of the base model.  [default: bfloat16 on a GPU]"
)
@click.option("--checkpointing", is_flag=True, help="Gradient checkpointing.")
@output("Write the records there; its end names the format: .csv, .json, .parquet, .md, .tex.")
def bench_training(
    model: str,
    methods: tuple[str, ...],
    target: str,
    rank: int,
    blocks: int | None,
    pad: bool,
    batch: tuple[int, int],
    rounds: int,
    dtype: str | None,
    checkpointing: bool,
    out: Output,
) -> None:
    """Measure time and memory of a training step as multiples of LoRA's (extra `train`).

    The paper's table 4 on your model and machine. The methods take turns, a ratio is taken within a round, and the
    median and quartiles over the rounds are shown.
    """
    try:
        import torch

        from ..training import TrainingError
        from ..training.benchmark import PEER, bench
        from ..training.steps import Work
    except ImportError as error:
        stop(error)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    work = Work(
        model, target, *batch, rank, blocks, dtype=dtype or ("bfloat16" if device == "cuda" else "float32"),
        checkpointing=checkpointing, pad=pad,
    )  # fmt: skip
    works = {name: replace(work, r=max(1, rank // 2)) if METHODS[name].experts else work for name in (PEER, *methods)}
    with usage():
        if pad:
            check_may_pad(methods)
        try:
            frame = bench(works, methods, rounds=rounds, device=device)
        except TrainingError as error:
            stop(error)
    from .cells import short
    from .grid import Block, Column, Page

    columns = [
        Column("method", [METHODS[name].label for name in frame["method"]], "method"),
        Column("trained", [f"{x:,}" for x in frame["parameters"]], "parameters", [*frame["parameters"]], 2),
        Column("a step", [*map(_duration, frame["seconds"])], "seconds", [*frame["seconds"]]),
        Column("time", [f"{x:.3f}" for x in frame["time"]], "time", [*frame["time"]]),
        Column(
            "quartiles",
            [f"{a:.3f}–{b:.3f}" for a, b in zip(frame["time_low"], frame["time_high"], strict=True)],
            "time_low",
        ),
        Column("processor", [f"{x:.3f}" for x in frame["processor"]], "processor", [*frame["processor"]], 1),
        Column("peak", [f"{short(x, ' ')}B" for x in frame["peak"]], "peak", [*frame["peak"]]),
        Column("memory", [f"{x:.3f}" for x in frame["memory"]], "memory", [*frame["memory"]]),
    ]
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads of the CPU"
    title = f"{model}, {target}: {batch[0]} × {batch[1]} tokens, {work.dtype}, {where}, {rounds} rounds"
    told = (
        "time, memory: as multiples of LoRA's; time is the median of the ratios within a round, beside its quartiles, "
        "processor that of the processor's time, which says more on a busy machine. peak: the most that tensors hold."
    )
    out.deliver(frame, lambda: Page([Block(title, columns, frame)], [told]))


def _duration(seconds: float) -> str:
    """Three digits, in milliseconds below a second."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
