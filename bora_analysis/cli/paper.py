"""The command that prints the BoRA paper's tables, recomputes its #Params and judges its claims."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ..catalogue import METHODS
from .common import command, stop, usage
from .output import Output, output
from .plain_text import wrapped

if TYPE_CHECKING:
    import pandas as pd

    from .grid import Page

# The paper's ablations; its other names are methods of the catalogue.
_ABLATIONS = {"bora-no-exp": "BoRA w.o. Exp", "bora-no-norm": "BoRA w.o. Norm"}


#: The columns that name a run, by their heads.
SETTINGS = ("model", "method", "r", "b", "target")


def _label(method: str) -> str:
    return _ABLATIONS.get(method) or METHODS[method].label


@command("paper --table 2", "paper --check", "paper --claims")
@click.option("--table", "number", type=click.IntRange(1, 9), metavar="K", help="Print table K, 1 to 9.")
@click.option(
    "--check",
    "checking",
    is_flag=True,
    help="Compare every #Params entry with the architecture; exit code 1 if one differs.",
)
@click.option("--claims", "judging", is_flag=True, help="Judge each of the paper's claims by a computation made now.")
@output()
def paper(number: int | None, checking: bool, judging: bool, out: Output) -> None:
    """The tables and claims of the BoRA paper (arXiv 2508.06953), checked.

    Without an option the command lists the tables. csv, json and parquet have a table in long form (one row per run
    and task, with standard deviations), and the check with exact counts.
    """
    if (number is not None) + checking + judging > 1:
        raise click.UsageError("--table, --check and --claims exclude each other; give one of them")
    with usage():
        frame, shown = _check() if checking else _claims() if judging else _list() if number is None else _table(number)
        out.deliver(frame, lambda: shown)
    if checking and not frame["ok"].all():
        stop(f"{(~frame['ok']).sum()} of {len(frame)} #Params entries differ from the architecture's count")


def _list() -> tuple[pd.DataFrame, Page]:
    import pandas as pd

    from ..paper.tables import SETTING, TITLES, table
    from .grid import Block, Column, Page

    rows = []
    for k, title in TITLES.items():
        frame = table(k)
        rows.append((k, len(frame.drop_duplicates(SETTING)), len(frame), title))
    listing = pd.DataFrame(rows, columns=["table", "runs", "values", "title"])
    columns = [
        Column(str(head), [*map(str, listing[head])], str(head), [*listing[head]], left=head == "title")
        for head in listing
    ]
    return listing, Page([Block("", columns, listing)])


def _table(k: int) -> tuple[pd.DataFrame, Page]:
    from ..paper.tables import TITLES, table, wide
    from .grid import Block, Page
    from .grid import table as columns_of

    frame = wide(k)
    columns = _settings(frame)
    if (frame["params"] != "").any():
        columns["#Params"] = frame["params"]
    for task in frame.columns[6:]:
        columns[task] = [f"{value:.1f}" if task == "time_min" else f"{value:.2f}" for value in frame[task]]
    shown = [replace(each, key=each.head in SETTINGS) for each in columns_of(columns, columns.values())]
    return table(k), Page([Block(f"Table {k}: {TITLES[k]}", shown)])


def _check() -> tuple[pd.DataFrame, Page]:
    from ..paper.tables import averages, check, repeats
    from .grid import Block, Page, table

    frame, means, again = check(), averages(), repeats()
    columns = {"table": frame["table"], **_settings(frame), "paper": frame["paper"], "computed": frame["computed"]}
    columns["ok"] = ["yes" if ok else "NO" for ok in frame["ok"]]
    off = means[~means["ok"]]
    lines = [
        "",
        f"#Params: {frame['ok'].sum()} of {len(frame)} agree with the architecture, to the digits printed.",
        f"Avg: {means['ok'].sum()} of {len(means)} printed values are the mean of the printed sub-tasks, to rounding"
        + ("; the others:" if len(off) else ""),
        *(
            f"  table {row.table}, {_label(str(row.method))} r = {row.r}, b = {row.blocks}, {row.target}: "
            f"{row.avg:.2f} printed, mean {row.mean:.4f}"
            + ("; the rounding of the sub-tasks can explain it" if row.explained else "")
            for row in off.itertuples()
        ),
        f"Runs printed in several tables: {again['ok'].sum()} of {len(again)} values agree.",
    ]
    return frame, Page([Block("", table(columns, columns.values()), frame, lines)])


def _claims() -> tuple[pd.DataFrame, Page]:
    from ..paper.claims import claims
    from .grid import Block, Page, table

    frame = claims()
    counts = frame["verdict"].value_counts()
    names = {
        "holds": "hold", "holds under a condition": "hold under a condition", "erratum": "errata", "fails": "fail",
        "cannot be told": "cannot be told",
    }  # fmt: skip
    total = f"{len(frame)} claims: " + ", ".join(f"{counts.get(verdict, 0)} {name}" for verdict, name in names.items())

    def prose(width: int | None) -> str:
        blocks = []
        for row in frame.to_dict("records"):
            head = f"{row['id']:<4} {row['verdict'].upper()} · {row['where']}"
            texts = (head, "", "     "), (row["claim"], "     ", "     "), (row["evidence"], "     → ", "       ")
            blocks.append("\n".join(line for each in texts for line in wrapped(each[0], width or 100, *each[1:])))
        return "\n\n".join([*blocks, "\n".join(wrapped(total, width or 100))])

    return frame, Page(
        [Block("", table(map(str, frame.columns), (frame[head] for head in frame)), frame)], [total], prose=prose
    )


def _settings(frame: pd.DataFrame) -> dict[str, Iterable[object]]:
    """The columns that name a run, by their heads."""
    named = frame.assign(method=frame["method"].map(_label)).rename(columns={"blocks": "b"})
    return {head: named[head] for head in SETTINGS}
