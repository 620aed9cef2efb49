"""The tables of the documentation that are derived: of methods, layouts, metrics, and the rules of checks.

``python -m bora_analysis.documentation docs`` writes them anew in the pages below that folder, between the marks
``<!-- methods -->`` and ``<!-- end -->``; a test says when that is due.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from .catalogue import METHODS
from .catalogue.layouts import READ, WRITTEN
from .metrics import METRICS, STATISTICS


def method_table() -> str:
    """One line per method: ΔW, the cheapest core, what a matrix trains, and what can be done with it."""
    lines = [
        "| method | ΔW | cheapest core | trained numbers | made | `train` | source |",
        "|---|---|---|---|:-:|:-:|---|",
    ]
    for row in METHODS.values():
        if row.update:
            base = " (`--base`)" if row.needs_base else ""
            cells = row.label, row.update + base, row.core, row.cost.parameters if row.cost else ""
            lines.append(f"| {' | '.join(cells)} | {'✔' * row.made} | {'✔' * bool(row.training)} | {row.paper} |")
    return "\n".join(lines)


def metric_table() -> str:
    """One line per metric: the column, its formula, where it comes from."""
    lines = ["| column | formula | |", "|---|---|---|"]
    for name, row in METRICS.items():
        lines.append(f"| {name} | {row.formula} | {row.source} |")
    for name, row in STATISTICS.items():
        lines.append(f"| {name} | {row.formula} | on request, `--statistics`: {row.source} |")
    return "\n".join(lines)


def layout_table() -> str:
    """One line per layout that is read."""
    lines = ["| layout | what is read | scaling |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in READ)])


def written_table() -> str:
    """One line per layout that is written."""
    lines = ["| layout | what is written |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {words} |" for name, words in WRITTEN.items())])


def rule_table() -> str:
    """One line per rule of `check`: its severity, what it looks for, its limits."""
    from .fleet.checks import RULES

    lines = ["| rule | severity | what it looks for | limits |", "|---|---|---|---|"]
    for name, row in RULES.items():
        limits = ", ".join(f"`{limit}` {value:g}" for limit, value in row.limits.items())
        lines.append(f"| `{name}` | {row.severity} | {row.words} | {limits} |")
    return "\n".join(lines)


#: Mark on a page → its table.
TABLES = {
    "methods": method_table,
    "layouts": layout_table,
    "written": written_table,
    "metrics": metric_table,
    "rules": rule_table,
}


def renewed(text: str) -> str:
    """A text with the tables as they are now.

    Examples
    --------
    >>> renewed("a <!-- metrics -->old<!-- end --> b").splitlines()[1]
    '| column | formula | |'
    """
    for name, table in TABLES.items():
        marked = rf"(<!-- {name} -->).*?(<!-- end -->)"
        text = re.sub(marked, lambda hit, table=table: f"{hit[1]}\n{table()}\n{hit[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    for page in (page for folder in sys.argv[1:] for page in Path(folder).rglob("*.md")):
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
