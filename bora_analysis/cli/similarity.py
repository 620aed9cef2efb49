"""The command that compares the subspaces of two adapters."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from .common import POSITIVE, command, note, progress, read_one, reading, usage
from .output import Output, output

if TYPE_CHECKING:
    from ..analysis.subspaces import Similarity


@command("similarity first-adapter second-adapter -i 4 -j 4")
@click.option("-i", type=POSITIVE, default=8, help="Directions of the first adapter.")
@click.option("-j", type=POSITIVE, default=8, help="Directions of the second.")
@click.option("--force", is_flag=True, help="Compare adapters of different base models, too.")
@output("Write φ at every i, j and side there; its end names the format: .csv, .json, .parquet, .md, .tex.")
@reading(count=2, metavar="PATH PATH", solving=False, counting=False)
def similarity(paths: tuple[str, str], i: int, j: int, force: bool, out: Output, reading: dict[str, Any]) -> None:
    """How much the subspaces of two adapters, or two seeds, overlap.

    φ(i, j), LoRA §7.2: the share of the smaller subspace that lies in the other, for the top i and j directions of
    ΔW, left and right, beside the value of two random subspaces. The table has φ at -i and -j; csv, json and parquet
    have it at every i and j up to those.
    """
    from .text_tables import similarity_table

    with usage():
        grid, summary = compared(paths, i, j, reading, force=force)
        out.deliver(grid, lambda: similarity_table(summary))


def compared(paths: tuple[str, ...], i: int, j: int, reading: dict[str, Any], *, force: bool = False) -> Similarity:
    """Grid and summary of two adapters; a note on stderr counts the modules of only one of them."""
    from ..adapters.given import named_apart
    from ..adapters.merging import check_related
    from ..analysis.subspaces import similarity as compare

    one, two = named_apart([read_one(path, reading) for path in paths])
    if one.name == two.name and one.step != two.step:  # two steps of one run
        one, two = (replace(each, name=f"{each.name} step {each.step}") for each in (one, two))
    for line in check_related([one, two], force=force):
        note(line)
    for adapter, other in ((one, two), (two, one)):
        alone = [module for module in adapter if module not in other]
        if alone:
            note(f"{len(alone)} modules are in {adapter.name} alone ({alone[0]} …)")
    with progress(len([module for module in one if module in two])) as step:
        return compare(one, two, i=i, j=j, force=force, on_module=step)
