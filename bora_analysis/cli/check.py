"""The command that looks for what is wrong with adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import command, reading, usage

if TYPE_CHECKING:
    from ..fleet.checks import Report

# Spelled out here, because the library is loaded when the command runs; a test compares them.
SEVERITIES = ("note", "warning", "error")
FORMS = ("text", "json", "sarif", "junit")


@command("check my-adapter", "check adapters --fail-on warning --format sarif -o check.sarif", "check --rules")
@reading(required=False, solving=False, counting=False)
@click.option("--fail-on", type=click.Choice(SEVERITIES), default="error", help="Exit code 1 from this severity on.")
@click.option("--limits", metavar="FILE", help="A TOML file with limits and severities; --rules prints one.")
@click.option("--format", "form", type=click.Choice(FORMS), default="text")
@click.option("-o", "--output", metavar="FILE", help="Write the report there, and print it as text.")
@click.option("--rules", is_flag=True, help="Print the rules with their limits, as a file for --limits.")
def check(
    paths: tuple[str, ...],
    fail_on: str,
    limits: str | None,
    form: str,
    output: str | None,
    rules: bool,
    reading: dict[str, Any],
) -> None:
    """Look for what is wrong with adapters, with value, limit and remedy.

    NaN, nothing trained, ranks that are not the configuration's, missing layers, dead modules, spikes of σ₁ and more;
    with --base also whether the base model fits, and intruder dimensions. A PATH may be a folder of adapters, a
    pattern, or a list (.txt, .csv). An adapter that cannot be read is a finding. Nothing here says that an adapter is
    safe or malicious.

    Exit codes: 0 nothing at --fail-on or above, 1 findings, 2 wrong usage.
    """
    if rules:
        from ..fleet.checks import template

        click.echo(template(), nl=False)
        return
    if not paths:
        raise click.UsageError("Missing argument 'PATH...'.")
    from ..fleet import checks
    from ..fleet.checks.forms import FORMS as WRITERS

    with usage():
        report = checks.check(list(paths), limits=limits, **reading)
    if output is not None:
        from ..atomic import replacing

        written = WRITERS[form](report, fail_on) if form in WRITERS else as_text(report)
        with usage(), replacing(Path(output)) as temporary:
            temporary.write_text(written, encoding="utf-8")
    click.echo(as_text(report) if form == "text" or output is not None else WRITERS[form](report, fail_on), nl=False)
    if report.at_least(fail_on):
        raise click.exceptions.Exit(1)


def as_text(report: Report, shown: int = 3) -> str:
    """A block per adapter; of many findings of one rule the first few."""
    from ..fleet.checks import RULES
    from ..fleet.checks.forms import line
    from .plain_text import terminal_width, wrapped

    width = min(110, terminal_width() or 80)

    def folded(text: str, indent: int) -> list[str]:
        return wrapped(text, width, " " * indent, " " * (indent + 2))

    lines: list[str] = []
    for adapter in report.checked:
        lines += folded(f"{adapter}: {report.counts(adapter)}", 0)
        own = [each for each in report.findings if each.adapter == adapter]
        for rule in dict.fromkeys(each.rule for each in own):
            found = [each for each in own if each.rule == rule]
            lines += folded(f"{found[0].severity}: {rule}. {RULES[rule].words}.", 2)
            lines += [part for each in found[:shown] for part in folded(line(each), 4)]
            if len(found) > shown:
                lines += folded(f"and {len(found) - shown} more; --format json has all", 4)
            lines += folded(f"→ {found[0].mend}", 4)
    if len(report.checked) > 1:
        lines += ["", f"{len(report.checked)} adapters: {report.counts()}"]
    return "\n".join(lines) + "\n"
