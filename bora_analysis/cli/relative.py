"""The command that compares an adapter with its base model."""

from __future__ import annotations

from typing import Any

import click

from .common import POSITIVE, command, each_analysed, opened, reading, tell, usage
from .output import Output, output


@command("relative my-adapter --base org/base-model")
@reading(solving=False, counting=False)
@click.option("-k", default=10, help="Directions of W0 + ΔW to test for intruders.")
@click.option("--epsilon", default=0.5, help="A direction with a smaller cosine is an intruder.")
@click.option("--subspace", type=POSITIVE, default=10, help="Directions of W0 for the shares of ΔW within them.")
@output()
def relative(
    paths: tuple[str, ...], k: int, epsilon: float, subspace: int, out: Output, reading: dict[str, Any]
) -> None:
    """Updates beside the base model's weights W0 (--base): relative norms, amplification, intruders, shares in W0."""
    if reading["base"] is None:
        raise click.UsageError("expected --base DIR_OR_HUB_ID: the base model that the updates are compared with")
    import pandas as pd

    from ..analysis.relative import base_metrics
    from ..files.base_model import open_base
    from .text_tables import relative_table

    with usage():
        reading["base"] = open_base(reading["base"])
    with opened(paths, reading) as (chosen, failed):
        frames = each_analysed(chosen, failed, base_metrics, reading["base"], k=k, epsilon=epsilon, subspace=subspace)
        tell(chosen)
        if not frames:
            raise click.exceptions.Exit(1)
        frame = pd.concat(frames, ignore_index=True)
        out.deliver(frame, lambda: relative_table(frame))
