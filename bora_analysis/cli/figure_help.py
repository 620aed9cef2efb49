"""`figure NAME --help`: what the figure shows, which options it has, and examples with them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

import click

from .help import Command

# Option of a figure → its flag, where that is not the same word.
_FLAGS = {"labels": "--label", "outcome": "--from"}
# Of Python alone: a module is chosen with --modules, axes are an object.
_PYTHON = ("ax", "module")
_TYPED = "bora_analysis.typed"  # of the context: the words that were typed


def flag(option: str) -> str:
    return _FLAGS.get(option, f"--{option.replace('_', '-')}")


def flags(options: Iterable[str]) -> str:
    return ", ".join(flag(option) for option in options if option not in _PYTHON)


class FigureCommand(Command):
    """The command `figure`, whose --help behind the name of a figure is that figure's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_TYPED] = [each for each in args if not each.startswith("-")]  # --help comes ahead of what it parses
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        typed = ctx.meta.get(_TYPED)
        if not typed:
            super().format_help(ctx, formatter)
            return
        from ..figures import FIGURES  # here: matplotlib comes with it

        name = next((each for each in typed if each in FIGURES), None)
        if name is None:
            super().format_help(ctx, formatter)
            return
        spec = FIGURES[name]
        marks = {"required": " PATH...", "optional": " [PATH...]", "none": ""}
        formatter.write_usage(ctx.command_path, f"{name}{marks[spec.adapters]} -o FILE [OPTIONS]")
        formatter.write_paragraph()
        with formatter.indentation():
            for paragraph in _said(spec.function.__doc__ or ""):
                formatter.write_text(paragraph)
                formatter.write_paragraph()
        with formatter.section("Options of this figure"):
            records = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
            named = [*spec.options, *(["outcome"] if spec.source == "accuracy" else [])]  # --from, another PATH
            own = [records.get("output"), *(records.get(option) for option in named)]
            formatter.write_dl([record for record in own if record is not None])
        formatter.write_text(f"{ctx.command_path} --help lists the options that say how adapters are read.")
        examples = [each for each in self.examples if each.startswith(f"figure {name} ") and "--help" not in each]
        self.examples, before = tuple(examples or [f"figure {name}{marks[spec.adapters]} -o {name}.pdf"]), self.examples
        self.format_epilog(ctx, formatter)
        self.examples = before


def _said(doc: str) -> list[str]:
    """The paragraphs of a docstring ahead of its parameters, and its notes, without markup."""
    text = inspect.cleandoc(doc)
    ahead, _, behind = text.partition("\nParameters\n")
    notes = behind.partition("\nNotes\n-----\n")[2]
    paragraphs = [each for part in (ahead, notes) for each in re.split(r"\n\s*\n", part.strip()) if each]
    return [" ".join(re.sub(r":\w+:`[.\w]*?(\w+)`|`+", r"\1", each).split()) for each in paragraphs]
