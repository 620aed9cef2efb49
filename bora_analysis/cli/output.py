"""Where a command's result goes and how it is shown: the options --format, -o, --sort, --top, --columns, --quiet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .plain_text import is_unicode, terminal_width

if TYPE_CHECKING:
    import pandas as pd

    from ..analysis.columns import Columns
    from .grid import Page

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

#: Value of --format → the ends of its files.
FORMATS = {
    "table": (".txt",), "csv": (".csv",), "json": (".json",), "parquet": (".parquet", ".pq"),
    "markdown": (".md", ".markdown"), "latex": (".tex",),
}  # fmt: skip
RECORDS = ("csv", "json", "parquet")
QUIET = "bora_analysis.quiet"


class SharedOption(click.Option):
    """An option that --help lists below the command's own, in the group that is named."""

    def __init__(self, *arguments: Any, group: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group


def shared(group: str, *names: str, **settings: Any) -> Decorator:
    """An option of several commands."""
    return click.option(*names, cls=SharedOption, group=group, **settings)


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator; --help lists them in the given order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@dataclass(frozen=True)
class Output:
    """``form`` is the value of --format, ``path`` that of -o; the others those of their options."""

    form: str
    path: str | None = None
    sort: str | None = None
    top: int | None = None
    columns: tuple[str, ...] = ()
    quiet: bool = False

    def deliver(self, frame: Columns | pd.DataFrame, page: Callable[[], Page]) -> None:
        """Write the file that -o names, and print: the table, or, without -o, the text of the format."""
        if self.path is not None:
            self.write(frame, Path(self.path), page)
        self.show(frame, page)

    def write(self, frame: Columns | pd.DataFrame, path: Path, page: Callable[[], Page] | None = None) -> None:
        """Write a file: the frame as records, whole where no page is given, or the page."""
        from ..atomic import replacing
        from .common import usage
        from .text_tables import write

        with usage():
            if self.file_format in RECORDS:
                write(frame if page is None else self._chosen(frame, page), path, self.file_format)
            elif page is not None:
                with replacing(path) as temporary:
                    temporary.write_text(self._text(page(), None) + "\n", encoding="utf-8")

    def show(self, frame: Columns | pd.DataFrame, page: Callable[[], Page]) -> None:
        """Print the table, or, without -o, the text of the format."""
        from .common import usage
        from .text_tables import text

        with usage():
            if self.form == "table":
                click.echo(self._text(page(), terminal_width()))
            elif self.path is not None:
                return
            elif self.form in RECORDS:
                click.echo(text(self._chosen(frame, page), self.form, ascii_only=not is_unicode()), nl=False)
            else:
                click.echo(self._text(page(), None))

    @property
    def file_format(self) -> str:
        """That of --format, or else of the end of the file's name; csv where neither says it."""
        if self.form != "table" or self.path is None:
            return "csv" if self.form == "table" else self.form
        return _by_suffix(self.path) or "csv"

    def check(self, metavar: str) -> None:
        """Raise a usage error for what cannot be printed or written, before the work begins."""
        folder = metavar == "DIR"
        if self.form == "parquet" and self.path is None:
            raise click.UsageError(f"--format parquet cannot be printed; add -o {metavar}")
        if self.path is None:
            return
        place = Path(self.path)
        if folder:
            if self.form in ("markdown", "latex"):
                raise click.UsageError(f"-o DIR holds the whole tables; expected --format {', '.join(RECORDS)}")
            if place.is_file():
                raise click.UsageError(f"-o {self.path}: is a file; expected a folder")
            return
        if place.is_dir():
            raise click.UsageError(f"-o {self.path}: is a folder; expected a file")
        if self.form == "table" and place.suffix and _by_suffix(self.path) is None:
            ends = ", ".join(end for form, own in FORMATS.items() if form != "table" for end in own)
            raise click.UsageError(
                f"-o {self.path}: {place.suffix} is no format of tables; expected {ends}, or --format {metavar}"
            )

    def _text(self, page: Page, width: int | None) -> str:
        from .grid import View, as_markdown, as_text
        from .latex import as_latex

        view = View(self.sort, self.top, self.columns, self.quiet, width)
        form = self.form if self.form != "table" or width is not None or self.path is None else self.file_format
        ways = {"markdown": as_markdown, "latex": as_latex}
        return ways.get(form, as_text)(page, view)

    def _chosen(self, frame: Columns | pd.DataFrame, page: Callable[[], Page]) -> Columns | pd.DataFrame:
        """The rows and columns of the table that are asked for, which may be named as in the page."""
        from ..analysis.columns import Columns
        from .grid import in_order, no_column

        wanted = [*self.columns, *([self.sort.removeprefix("-")] if self.sort else [])]
        if not wanted and not self.top:
            return frame
        frame = Columns.of(frame)
        known = {name.casefold(): name for name in frame}
        if any(word.casefold() not in known for word in wanted):
            own = {column.head.casefold(): column.name for block in page().blocks for column in block.columns}
            known = {head: name for head, name in own.items() if name in frame} | known
        for word in wanted:
            if word.casefold() not in known:
                raise ValueError(no_column(word, frame))
        if self.sort:
            values = frame[known[self.sort.removeprefix("-").casefold()]]
            frame = frame.rows(in_order(values.tolist(), self.sort.startswith("-")))
        frame = frame.rows(slice(self.top)) if self.top else frame
        return frame.only(dict.fromkeys(known[word.casefold()] for word in self.columns)) if self.columns else frame


def _by_suffix(path: str) -> str | None:
    end = Path(path).suffix.lower()
    return next((form for form, ends in FORMATS.items() if end in ends and form != "table"), None)


def _columns(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in (value or "").split(","))))


def _quiet(context: click.Context, option: click.Parameter, value: bool) -> bool:
    context.meta[QUIET] = value
    return value


def is_quiet() -> bool:
    """Whether the command that runs was given --quiet."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(QUIET))


def output(
    help: str = "Write the table there; its end names the format: .csv, .json, .parquet, .md, .tex.",
    *,
    metavar: str | None = "FILE",
) -> Decorator:
    """The options of a command that prints a table, which it receives as ``out``, an :class:`Output`.

    Without ``metavar`` there is no -o: the command writes something else.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def checked(*args: Any, form: str, sort: Any, top: Any, columns: Any, quiet: bool, **others: Any) -> Any:
            path = others.pop("output") if metavar else None
            out = Output(form, path, sort, top, columns, quiet)
            out.check(metavar or "")
            return function(*args, out=out, **others)

        forms = [form for form in FORMATS if metavar or form != "parquet"]
        options = [
            shared(
                "Output", "--format", "form", type=click.Choice(forms), default="table",
                help="csv, json and parquet are not rounded.",
            ),
            shared("Output", "-o", "--output", metavar=metavar, help=help),
            shared("Output", "--sort", metavar="COLUMN", help="Sort the rows; -COLUMN begins with the largest."),
            shared(
                "Output", "--top", type=click.IntRange(min=0), metavar="N", help="Only the first N rows of each table."
            ),
            shared(
                "Output", "--columns", metavar="NAME,…", callback=_columns,
                help="These columns, by their heads or their names in csv.",
            ),
            shared("Output", "-q", "--quiet", is_flag=True, callback=_quiet, help="No notes and no legend."),
        ]  # fmt: skip
        return together(*(each for k, each in enumerate(options) if metavar or k != 1))(checked)

    return decorate
