"""The command line: a thin layer over the library.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 an adapter could not be read (the others are
still reported), 2 wrong usage. This module imports click alone, and each command imports the rest when it runs, so that
``--help`` is instant.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from .. import __version__
from .analyze import analyze, compare, factors
from .bench_training import bench_training
from .capture import capture
from .card import card
from .check import check
from .common import errors_within_terminal
from .convert import convert, merge
from .cost import cost
from .dashboard import dashboard
from .evaluate import evaluate
from .experiment import experiment, table
from .figure import figure
from .fleet import fleet
from .glance import glance
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
    card,
    check,
    sweep,
    fleet,
    convert,
    merge,
    figure,
    synth,
    cost,
    train,
    evaluate,
    experiment,
    bench_training,
    table,
    paper,
    dashboard,
)


class _Main(click.Group):
    """The commands; what is no command's name and may be a PATH is shown at a glance."""

    def main(self, *arguments: Any, **settings: Any) -> Any:
        # A worker has one BLAS thread anyway. A process without a pool of them has one thread, and may be copied.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        spell_missing_characters()
        return super().main(*arguments, **settings)

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        with errors_within_terminal():
            return super().make_context(*arguments, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        with errors_within_terminal():
            return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in self.commands or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        if not Path(name).exists():
            from difflib import get_close_matches  # here: a miss is rare

            close = get_close_matches(name, self.commands, 1, 0.7)
            if close:
                raise click.UsageError(f"no command and no path {name!r}; did you mean {close[0]}?", ctx)
            if not any(sign in name for sign in "/\\."):  # a Hub id has a slash
                from ..adapters.locate import near

                raise click.UsageError(f"no command and no path {name!r}{near(name) or '; --help lists commands'}", ctx)
        return glance.name, glance, args

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [*super().shell_complete(ctx, incomplete), CompletionItem(incomplete, type="file")]


@click.group(
    cls=_Main,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
    epilog="\b\nExamples:\n  bora-analysis my-adapter\n  bora-analysis compare first-adapter second-adapter\n"
    "  bora-analysis analyze --help",
)
@click.version_option(__version__, prog_name="bora-analysis")
def main() -> None:
    """Show what rank a low-rank adapter really uses.

    Computes the exact singular values of LoRA, MELoRA and BoRA (arXiv 2508.06953) adapters from the adapter file
    alone, in seconds. A PATH is a PEFT folder, a weights file, a folder of checkpoints, or a Hub id such as org/name.
    `bora-analysis PATH` shows an adapter at a glance; one with a command's name is given as ./NAME.
    """
