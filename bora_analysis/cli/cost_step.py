"""What ``cost --step`` prints: a training step, foreseen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ..catalogue import METHODS, trained
from .common import stop

if TYPE_CHECKING:
    import pandas as pd

    from .grid import Page


def foresee(
    model: str,
    projections: Sequence[str],
    methods: Sequence[str],
    batch: tuple[int, int],
    r: int,
    blocks: int | None,
    experts: int | None,
    dtype: str,
    base: str | None,
    optimizer: str,
    checkpointing: bool,
    pad: bool,
    measure: bool,
) -> tuple[pd.DataFrame, str]:
    """One record per method; with ``measure`` also the seconds, and on what they were measured."""
    wrong = [name for name in methods if name not in trained()]
    if wrong:
        raise click.UsageError(f"--step is for what train accepts, not for {', '.join(wrong)}: {', '.join(trained())}")
    try:
        import pandas as pd
        import torch

        from ..training import TrainingError
        from ..training.steps import Work, estimated_seconds, foreseen, named_targets, network
    except ImportError as error:
        stop(error)
    work = Work(model, "QV", *batch, r, blocks, experts, computed(dtype, base), checkpointing, pad)
    try:
        with torch.device("meta"):
            work = replace(work, target=named_targets(network(work)[0], projections))
        found = foreseen(work, methods, base=base, optimizer=optimizer)
        frame = pd.DataFrame(found)
        frame.insert(0, "model", model)
        if not measure:
            return frame, ""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        frame["seconds"] = [estimated_seconds(work, each, device=device) for each in found]
    except TrainingError as error:
        stop(error)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads of this CPU"
    return frame, f"{work.dtype} on {where}"


def computed(dtype: str, base: str | None) -> str:
    """The dtype of the products: for a quantised model by default that of QLoRA."""
    return "bfloat16" if base in ("int8", "nf4", "nf4-double") and dtype == "float32" else dtype


def step_page(
    frame: pd.DataFrame,
    title: str,
    batch: tuple[int, int],
    dtype: str,
    base: str | None,
    optimizer: str,
    checkpointing: bool,
    measured: str,
) -> Page:
    from .cells import short
    from .grid import Block, Column, Page

    def column(head: str, name: str, unit: str, spare: int = 0) -> Column:
        return Column(head, [short(value, " ") + unit for value in frame[name]], name, [*frame[name]], spare)

    columns = [
        Column("method", [METHODS[name].label for name in frame["method"]], "method"),
        column("trained", "parameters", "", 3),
        column("forward", "forward", "", 1),
        column("backward", "backward", "", 1),
        column("model", "base", "B", 2),
        column("adapter", "adapter", "B", 4),
        column("optimizer", "optimizer", "B", 4),
        column("activations", "activations", "B", 2),
        column("peak", "peak", "B"),
    ]
    kept = f"the frozen weights{f', their linear layers in {base}' if base else ''}"
    passed = f"what the forward pass keeps{', with gradient checkpointing' if checkpointing else ''}"
    told = (
        "forward, backward: FLOPs of the products of matrices of the whole step, as torch counts them. "
        f"model: {kept}. activations: {passed}; peak: the most at a time, with gradients. Of tensors, without what an "
        "allocator keeps beside them; batches without padding."
    )
    notes = [told]
    largest = int(frame["largest"].max())
    if largest:
        notes.append(f"On top comes a quantised layer while it is written out, at most {short(largest, ' ')}B.")
    if measured:
        seconds = [f"{value:.3g} s" for value in frame["seconds"]]
        columns.append(Column("time", seconds, "seconds", [*frame["seconds"]]))
        notes.append(
            f"time: an estimate, at the FLOPs a second of steps of the model's first two layers, measured now, "
            f"{measured}{'; writing out quantised layers comes on top' if largest else ''}."
        )
    how = f"{batch[0]} × {batch[1]} tokens, {computed(dtype, base)}, {optimizer}"
    return Page([Block(f"{title}, {how}", columns, frame)], notes)
