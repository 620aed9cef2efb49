"""The command line: a thin layer over the library.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 an adapter could not be read (the others are
still reported), 2 wrong usage. This module imports click alone, and each command imports the rest when it runs, so that
``--help`` is instant.
"""

from __future__ import annotations

from typing import Any

import click

from .. import __version__
from .analyze import analyze, compare, factors
from .capture import capture
from .check import check
from .convert import convert, merge
from .cost import cost
from .dashboard import dashboard
from .figure import figure
from .fleet import fleet
from .paper import paper
from .plain_text import spell_missing_characters
from .recommend import recommend
from .relative import relative
from .report import report
from .similarity import similarity
from .sweep import sweep
from .synth import synth
from .train import train

COMMANDS = (
    analyze,
    compare,
    factors,
    recommend,
    capture,
    similarity,
    relative,
    report,
    check,
    sweep,
    fleet,
    convert,
    merge,
    figure,
    synth,
    cost,
    train,
    paper,
    dashboard,
)


class _Main(click.Group):
    def main(self, *arguments: Any, **settings: Any) -> Any:
        spell_missing_characters()
        return super().main(*arguments, **settings)


@click.group(
    cls=_Main,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
    epilog="\b\nExamples:\n  bora-analysis compare first-adapter second-adapter\n  bora-analysis analyze --help",
)
@click.version_option(__version__, prog_name="bora-analysis")
def main() -> None:
    """Show what rank a low-rank adapter really uses.

    Computes the exact singular values of LoRA, MELoRA and BoRA (arXiv 2508.06953) adapters from the adapter file
    alone, in seconds. A PATH is a PEFT folder, a weights file, a folder of checkpoints, or a Hub id such as org/name.
    """
