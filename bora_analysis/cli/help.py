"""--help: the command's own options, then those that several commands share, then examples; all within the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import click

from .output import SharedOption
from .plain_text import printable

PROGRAM = "bora-analysis"


class _Formatter(click.HelpFormatter):
    """Breaks lines of what stdout can show: σ₁ may have to be written sigma_1, which is longer."""

    def write_text(self, text: str) -> None:
        super().write_text(printable(text))

    def write_dl(self, rows: Sequence[tuple[str, str]], *columns: Any, **spacing: Any) -> None:
        super().write_dl([(printable(names), printable(help)) for names, help in rows], *columns, **spacing)


class _Context(click.Context):
    formatter_class = _Formatter


class Command(click.Command):
    """A command with examples; each is what follows the program's name."""

    context_class = _Context

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.examples = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Sections: the options of this command, then each group of shared ones."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            if isinstance(param, click.Argument):
                continue
            record = param.get_help_record(ctx)
            if record is not None:
                record = _listed(param, *record)
                name = param.group if isinstance(param, SharedOption) else "Options"
                groups.setdefault(name, []).append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, long ones over several lines that a shell joins."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    for line in folded(f"{PROGRAM} {example}", formatter.width - formatter.current_indent):
                        formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def _listed(param: click.Parameter, names: str, help: str) -> tuple[str, str]:
    """The record of an option; a long list of choices stands in its text, where lines break."""
    choices = getattr(param.type, "choices", ())
    if not choices or len(names) <= 30:
        return names, help
    names = names.partition("[")[0] + (param.name or "").upper()
    return names, f"{', '.join(map(str, choices))}. {help}"


def folded(command: str, width: int) -> list[str]:
    """The lines of a command that are joined by ``\\`` at their ends.

    >>> folded("bora-analysis capture PATH --method bora -r 8", 34)
    ['bora-analysis capture PATH \\\\', '    --method bora -r 8']
    """
    words = [shlex.quote(word) for word in shlex.split(command)]
    lines = [words[0]]
    for k, word in enumerate(words[1:], 1):
        room = width - (2 if k < len(words) - 1 else 0)
        if len(lines[-1]) + 1 + len(word) <= room:
            lines[-1] += f" {word}"
        else:
            lines[-1] += " \\"
            lines.append(f"    {word}")
    return lines
