"""The reference of the command line: every command with every option, from the commands themselves."""

from __future__ import annotations

import html
import re

import click

from bora_analysis.cli import main
from bora_analysis.cli.help import PROGRAM, folded
from bora_analysis.cli.output import SharedOption

Record = tuple[str, str]


def reference() -> str:
    """First the options that several commands have word for word, then each command with its own."""
    with main.make_context(PROGRAM, [], resilient_parsing=True) as top:
        contexts = {
            name: click.Context(command, info_name=name, parent=top) for name, command in sorted(main.commands.items())
        }
        seen: dict[tuple[str, Record], int] = {}
        for context in contexts.values():
            for group, record in _records(context):
                seen[group, record] = seen.get((group, record), 0) + 1
        common = [(group, record) for (group, record), count in seen.items() if count > 1 and group != "Options"]
        parts = ["## Options of several commands"]
        for group in dict.fromkeys(group for group, _ in common):
            parts += [f"### {group}", _table([record for own, record in common if own == group])]
        for name, context in contexts.items():
            parts += _command(name, context, common)
    return "\n\n".join(parts)


def _records(context: click.Context) -> list[tuple[str, Record]]:
    """Group and record of each option, as ``--help`` has them."""
    found = []
    for param in context.command.get_params(context):
        record = param.get_help_record(context) if isinstance(param, click.Option) else None
        if record is not None and "--help" not in param.opts:
            found.append((param.group if isinstance(param, SharedOption) else "Options", record))
    return found


def _command(name: str, context: click.Context, common: list[tuple[str, Record]]) -> list[str]:
    command = context.command
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"## {name}", f"```sh\n{PROGRAM} {name} {usage}\n```", *_paragraphs(command.help or "")]
    records = _records(context)
    if own := [record for group, record in records if (group, record) not in common]:
        parts.append(_table(own))
    shared: dict[str, list[str]] = {}
    for group, record in records:
        if (group, record) in common:
            shared.setdefault(group, []).append(_code(re.findall(r"(?:^|, )(--?[\w-]+)", record[0])[-1]))
    parts += [f"[{group}](#{_slug(group)}): {', '.join(names)}." for group, names in shared.items()]
    if examples := getattr(command, "examples", ()):
        lines = [line for example in examples for line in folded(f"{PROGRAM} {example}", 100)]
        parts.append("```sh\n" + "\n".join(lines) + "\n```")
    return parts


def _paragraphs(text: str) -> list[str]:
    """Paragraphs of a help text; those that click leaves as they are stay as they are, too."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        kept = paragraph.startswith("\b")
        parts.append(f"```text\n{paragraph[1:].strip()}\n```" if kept else " ".join(_plain(paragraph).split()))
    return parts


def _table(records: list[Record]) -> str:
    rows = [f"| {_code(names)} | {_plain(words)} |" for names, words in records]
    return "\n".join(["| option | |", "|---|---|", *rows])


def _plain(text: str) -> str:
    """A text whose signs mean nothing in Markdown, but for its code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        _code(part.strip("`")) if part.startswith("`") else re.sub(r"([\\*_<>\[\]|#])", r"\\\1", part) for part in parts
    )


def _code(text: str) -> str:
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")
