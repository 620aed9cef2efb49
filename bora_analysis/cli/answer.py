"""The verdict in front of a table, and the command that goes on from it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from .common import PLACES, reading_flags
from .help import PROGRAM

if TYPE_CHECKING:
    import pandas as pd

    from ..analysis.columns import Columns
    from ..analysis.verdict import Verdict
    from .grid import Page


def answered(page: Page, layers: Columns | pd.DataFrame, reading: Mapping[str, Any], asked: str) -> Page:
    """The page with the verdict on each adapter in front, and the next command.

    Parameters
    ----------
    asked : the command that runs, which is not advised again.
    """
    from ..analysis.verdict import verdicts

    found = verdicts(layers)
    lines = []
    for each in found:
        name = f"{each.adapter}{'' if each.step is None else f' step {each.step}'}: "
        lines.append(f"{name if len(found) > 1 or each.step is not None else ''}{each.sentence}")
    following = command_for(next_of(found, asked), [each.adapter for each in found], reading)
    return replace(page, first=lines, next=following)


def next_of(found: Sequence[Verdict], asked: str) -> str:
    """The command to go on with: compare for several adapters, else what most of the verdicts name."""
    wanted = [each.next for each in found]
    if len(found) > 1 and asked != "compare":
        return "compare"
    following = max(dict.fromkeys(wanted), key=wanted.count) if wanted else ""
    if following == "capture" and any(each.step is not None for each in found):
        return "recommend"  # of a run's many checkpoints it takes the last
    return following


def command_for(name: str, adapters: list[str], reading: Mapping[str, Any]) -> str:
    """A command on these adapters, as they were called, with the options that they were read with."""
    places = click.get_current_context().meta.get(PLACES, {})
    paths = list(dict.fromkeys(places[each] for each in adapters if each in places))
    if not name or not paths:
        return ""
    paths = [f"./{path}" if path.startswith("-") else path for path in paths]
    return shlex.join([PROGRAM, name, *paths, *reading_flags(reading)])
