"""The command paper: the BoRA paper's tables, its #Params recomputed, its claims judged."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..catalogue import METHODS
from .common import FORMATS, fail, usage

if TYPE_CHECKING:
    import pandas as pd

# The paper's ablations; its other names are methods of the catalogue.
_ABLATIONS = {"bora-no-exp": "BoRA w.o. Exp", "bora-no-norm": "BoRA w.o. Norm"}


def _label(method: str) -> str:
    return _ABLATIONS.get(method) or METHODS[method].label


@click.command()
@click.option("--table", "number", type=click.IntRange(1, 9), metavar="K", help="Print table K, 1 to 9.")
@click.option(
    "--check", "checking", is_flag=True, help="Every #Params entry against the architecture; 1 if any differs."
)
@click.option("--claims", "judging", is_flag=True, help="The paper's claims, each judged by a computation made now.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("-o", "--output", metavar="FILE", help="Write it there, in the format of --format (or csv).")
def paper(number: int | None, checking: bool, judging: bool, form: str, output: str | None) -> None:
    """The tables and claims of the BoRA paper (arXiv 2508.06953), checked.

    Without an option: a list of the tables. csv, json and parquet have a table in long form (one row per run and
    task, with standard deviations), the check with exact counts.
    """
    if (number is not None) + checking + judging > 1:
        raise click.UsageError("--table, --check and --claims are different things: give one of them")
    if form == "parquet" and output is None:
        raise click.UsageError("parquet is no text: give a file with -o FILE")
    from .text_tables import text, write

    with usage():
        frame, shown = _check() if checking else _claims() if judging else _list() if number is None else _table(number)
        if output is not None:
            write(frame, Path(output), "csv" if form == "table" else form)
        if form == "table":
            click.echo(shown)
        elif output is None:
            click.echo(text(frame, form), nl=False)
    if checking and not frame["ok"].all():
        fail(f"{(~frame['ok']).sum()} of {len(frame)} #Params entries differ from what the architecture gives")
        raise click.exceptions.Exit(1)


def _list() -> tuple[pd.DataFrame, str]:
    import pandas as pd

    from ..paper.tables import SETTING, TITLES, table

    rows = []
    for k, title in TITLES.items():
        frame = table(k)
        rows.append((k, len(frame.drop_duplicates(SETTING)), len(frame), title))
    listing = pd.DataFrame(rows, columns=["table", "runs", "values", "title"])
    lines = [f"{k:>5}  {runs:>4}  {values:>6}  {title}" for k, runs, values, title in rows]
    return listing, "\n".join(["table  runs  values", *lines])


def _table(k: int) -> tuple[pd.DataFrame, str]:
    from ..paper.tables import TITLES, table, wide
    from .text_tables import grid

    frame = wide(k)
    heads, columns = _settings(frame)
    if (frame["params"] != "").any():
        heads.append("#Params")
        columns.append(list(frame["params"]))
    for task in frame.columns[6:]:
        heads.append(task)
        columns.append([f"{value:.1f}" if task == "time_min" else f"{value:.2f}" for value in frame[task]])
    return table(k), f"Table {k}: {TITLES[k]}\n{grid(heads, columns)}"


def _check() -> tuple[pd.DataFrame, str]:
    from ..paper.tables import averages, check, repeats
    from .text_tables import grid

    frame, means, again = check(), averages(), repeats()
    heads, columns = _settings(frame)
    shown = grid(
        ["table", *heads, "paper", "computed", "ok"],
        [
            [str(k) for k in frame["table"]],
            *columns,
            list(frame["paper"]),
            list(frame["computed"]),
            ["yes" if ok else "NO" for ok in frame["ok"]],
        ],
    )
    off = means[~means["ok"]]
    lines = [
        f"#Params: {frame['ok'].sum()} of {len(frame)} are what the architecture gives, to the digits printed.",
        f"Avg: {means['ok'].sum()} of {len(means)} printed are the mean of the printed sub-tasks to rounding"
        + (", not" if len(off) else ""),
        *(
            f"  table {row.table}, {_label(str(row.method))} r = {row.r}, b = {row.blocks}, {row.target}: "
            f"{row.avg:.2f} printed, mean {row.mean:.4f}"
            + ("; the rounding of the sub-tasks can do that" if row.explained else "")
            for row in off.itertuples()
        ),
        f"Runs printed in several tables: {again['ok'].sum()} of {len(again)} values agree.",
    ]
    return frame, "\n".join([shown, "", *lines])


def _claims() -> tuple[pd.DataFrame, str]:
    from ..paper.claims import claims

    frame = claims()
    width = max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 100
    blocks = []
    for row in frame.to_dict("records"):
        head = f"{row['id']:<4} {row['verdict'].upper()} · {row['where']}"
        body = [
            *_wrapped(row["claim"], width, "     ", "     "),
            *_wrapped(row["evidence"], width, "     → ", "       "),
        ]
        blocks.append("\n".join([head, *body]))
    counts = frame["verdict"].value_counts()
    names = {"holds": "hold", "holds under a condition": "hold under a condition", "erratum": "errata"}
    total = f"{len(frame)} claims: " + ", ".join(f"{counts.get(verdict, 0)} {name}" for verdict, name in names.items())
    return frame, "\n\n".join([*blocks, total])


def _wrapped(line: str, width: int, first: str, others: str) -> list[str]:
    """Lines of at most ``width``, broken neither at = nor inside brackets."""
    bound = re.sub(r" (?==)|(?<==) |(?<=\[\d) (?=\d\])", "\N{NO-BREAK SPACE}", line)
    lines = textwrap.wrap(bound, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _settings(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The columns that name a run."""
    columns = [
        list(frame["model"]),
        [_label(method) for method in frame["method"]],
        *([str(value) for value in frame[column]] for column in ("r", "blocks", "target")),
    ]
    return ["model", "method", "r", "b", "target"], columns
