"""Tables as text: whole in a pipe, no line wider than the terminal in one; and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..analysis.columns import Columns, missing
from .cells import cells_of, is_numeric, mean_of
from .help import folded
from .plain_text import cells_wide, padded, printable, wrapped
from .short_names import cut_to, shorter

#: Where notes break that no terminal limits.
PIPE = 110


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    head, cells : as they are shown.
    name : what the column is called in csv, for --sort and --columns, which take the head too.
    values : what --sort compares; by default the cells.
    spare : 0 for a column that stays; where the terminal is too narrow those with the highest number go first.
    last : its cell in the row below the others, such as a mean.
    meaning : for the legend.
    left : whether the cells stand at the left, as those of the first column do; such a last column wraps.
    key : whether the column is repeated, as the first one is, where a table is cut into parts.
    names : of what the cells are names, such as "adapter": they get shorter together, those of the first column, which
        are names always, and those of other columns that name the same.
    """

    head: str
    cells: Sequence[str]
    name: str = ""
    values: Sequence[Any] | None = None
    spare: int = 0
    last: str = ""
    meaning: str = ""
    left: bool = False
    key: bool = False
    names: str = ""


@dataclass(frozen=True)
class Block:
    """A title, a table whose first column has the names of its rows, and lines below it.

    ``rows`` has the rows of the table as they are in csv, columns or a frame, for columns that are not shown.
    ``totals`` has their cells in a last row of sums, by name; a column without a sum has a dot there.
    """

    title: str
    columns: Sequence[Column]
    rows: Any = None
    below: Sequence[str] = ()
    totals: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """What a command prints: a line that answers, tables, and notes; the legend is that of the columns shown."""

    blocks: Sequence[Block]
    notes: Sequence[str] = ()
    first: Sequence[str] = ()
    next: str = ""  # a command that goes on from here
    prose: Callable[[int | None], str] | None = None  # in place of the tables, for a width


@dataclass(frozen=True)
class View:
    """How a page is shown: the options --sort, --top, --columns, --quiet; ``width`` None for a pipe."""

    sort: str | None = None
    top: int | None = None
    columns: tuple[str, ...] = ()
    quiet: bool = False
    width: int | None = None

    def chosen(self, page: Page) -> Page:
        """The page with the rows and columns that are asked for. ValueError for one that no table has."""
        words = [*self.columns, *([self.sort.removeprefix("-")] if self.sort else [])]
        missing = [word for word in words if not any(_find(block, word) for block in page.blocks)]
        if missing:
            raise ValueError(no_column(missing[0], [name for block in page.blocks for name in _names(block)]))
        return replace(page, blocks=[self._rows(self._columns(block), self._order(block)) for block in page.blocks])

    def _columns(self, block: Block) -> Block:
        if not self.columns:
            return block
        found = (block.columns[0], *(column for word in self.columns if (column := _find(block, word))))
        return replace(block, columns=[*{column.head: column for column in found}.values()])

    def _order(self, block: Block) -> list[int]:
        """The places of the rows that are shown."""
        order = list(range(len(block.columns[0].cells)))
        if self.sort and (column := _find(block, self.sort.removeprefix("-"))):
            order = in_order(column.values if column.values is not None else column.cells, self.sort.startswith("-"))
        return order[: self.top] if self.top else order

    def _rows(self, block: Block, order: list[int]) -> Block:
        columns = [replace(column, cells=[column.cells[k] for k in order]) for column in block.columns]
        return replace(block, columns=columns)


def table(heads: Iterable[str], columns: Iterable[Iterable[object]], *spare: int) -> list[Column]:
    """Columns of plain cells; ``spare`` is that of each column, 0 for those behind the last one given."""
    made = [Column(head, [str(cell) for cell in cells]) for head, cells in zip(heads, columns, strict=True)]
    return [replace(column, spare=last) for column, last in zip(made, (*spare, *[0] * len(made)), strict=False)]


def no_column(word: str, names: Iterable[str]) -> str:
    """That no column is called so, and which there are."""
    from difflib import get_close_matches  # here: a miss is rare

    known = list(dict.fromkeys(filter(None, names)))
    close = get_close_matches(word, known, 1)
    return f"no column {word!r}{f'; did you mean {close[0]}?' if close else ''}; there are {', '.join(known)}"


def in_order(values: Sequence[Any], descending: bool) -> list[int]:
    """Places of the values in ascending or descending order, missing ones last; text in natural order."""
    from ..files.keys import natural

    there = [place for place, value in enumerate(values) if not missing(value)]
    key = natural if any(isinstance(values[place], str) for place in there) else lambda value: value
    return [
        *sorted(there, key=lambda place: key(values[place]), reverse=descending),
        *(place for place, value in enumerate(values) if missing(value)),
    ]


def _names(block: Block) -> Iterator[str]:
    shown = [column.name or column.head for column in block.columns]
    yield from shown
    if block.rows is not None:
        yield from (name for name in map(str, block.rows) if name not in shown)


def _find(block: Block, word: str) -> Column | None:
    """The column of that name or head, one of csv's among them."""
    plain = word.strip().casefold()
    for column in block.columns:
        if plain in (column.name.casefold(), column.head.casefold(), printable(column.head).casefold()):
            return column
    if block.rows is not None:
        rows = Columns.of(block.rows)
        for name in rows:
            if name.casefold() == plain:
                values = rows[name]
                return Column(name, cells_of(values), name, values.tolist(), last=_last(block, name, values))
    return None


def _last(block: Block, name: str, values: Any) -> str:
    """The cell of a column in the row below the others."""
    if _has_means(block):
        return mean_of(values) if is_numeric(values) else ""
    return block.totals.get(name, "·") if block.totals else ""


def _has_means(block: Block) -> bool:
    return block.columns[0].last.startswith("mean")


def as_text(page: Page, view: View) -> str:
    """The page for a terminal of ``view.width`` columns, or for a pipe, where nothing is left out."""
    if page.prose is not None and not (view.columns or view.sort or view.top):
        return page.prose(view.width)
    page, width = view.chosen(page), view.width
    kind = page.blocks[0].columns[0].head if page.blocks else ""
    page = replace(page, blocks=[_named(block, kind) for block in page.blocks])
    fit = _Fit({}) if width is None else _fitted(page.blocks, width, droppable=not view.columns)
    parts = [*answer_lines(page, width), *([""] if page.first else [])]
    parts += [each for line in fit.told for each in _lines(line, width)]
    blocks = []
    for block in page.blocks:
        title = _lines(block.title, width) if block.title else []
        below = [line for text in block.below for line in _lines(text, width)]
        blocks.append("\n".join([*title, *fit.grids(block), *below]))
    text = "\n".join([*parts, "\n\n".join(blocks)])
    notes = [] if view.quiet else [*filter(None, [legend(page, fit.dropped)]), *page.notes]
    told = [line for note in notes for line in wrapped(note, width or PIPE) or [""]]
    return "\n".join([text, *([""] if told else []), *told])


def _named(block: Block, kind: str) -> Block:
    """The block whose first column is said to be names."""
    first, *others = block.columns
    return replace(block, columns=[replace(first, names=first.names or kind), *others])


def answer_lines(page: Page, width: int | None) -> list[str]:
    """What the page says first, and the next command: behind it, or on lines of its own that a shell can read."""
    first, following = list(page.first), f"next: {page.next}" if page.next else ""
    if following and len(first) == 1 and (width is None or cells_wide(f"{printable(first[0])}; {following}") <= width):
        first, following = [f"{first[0]}; {following}"], ""
    lines = [line for text in first for line in _lines(text, width)]
    if following and width is not None:
        return [*lines, *folded(printable(following), width)]
    return [*lines, *([printable(following)] if following else [])]


def as_markdown(page: Page, view: View) -> str:
    """The page in GitHub's Markdown."""
    page = view.chosen(page)
    blocks = []
    for block in page.blocks:
        heads = [column.head for column in block.columns]
        rows = [list(cells) for cells in zip(*(column.cells for column in block.columns), strict=True)]
        rows += [[column.last for column in block.columns]] if any(column.last for column in block.columns) else []
        marks = ["---", *["---:"] * (len(heads) - 1)]
        lines = [f"| {' | '.join(map(_escaped, cells))} |" for cells in (heads, *rows)]
        lines.insert(1, f"|{'|'.join(marks)}|")
        title = [f"**{_escaped(block.title)}**", ""] if block.title else []
        below = ["", *(f"`{line}`" if line.startswith("{") else _escaped(line) for line in block.below)]
        blocks.append("\n".join([*title, *lines, *(below if block.below else [])]))
    notes = [] if view.quiet else [note for note in (legend(page, ()), *page.notes) if note]
    first = answer_lines(page, None)
    return "\n\n".join([*map(_escaped, first), *blocks, *map(_escaped, notes)])


def _escaped(text: str) -> str:
    for sign in "\\|*<":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def legend(page: Page, dropped: Sequence[str]) -> str:
    """What the heads of the columns mean, of those that are shown."""
    shown = [column for block in page.blocks for column in block.columns if column.head not in dropped]
    return "; ".join(dict.fromkeys(f"{c.head}: {c.meaning}" for c in shown if c.meaning)) + "." * any(
        column.meaning for column in shown
    )


def _lines(text: str, width: int | None) -> list[str]:
    indent = " " * (len(text) - len(text.lstrip()))
    return [printable(text)] if width is None else wrapped(text, width, others=indent) or [""]


@dataclass(frozen=True)
class _Fit:
    """How names and columns go into the width."""

    names: dict[str, dict[str, str]]  # of what → name → what is shown
    told: Sequence[str] = ()
    dropped: Sequence[str] = ()
    stacked: bool = False  # heads over two lines
    width: int | None = None  # where the columns themselves are stacked, one part of the table below the other

    def grids(self, block: Block) -> list[str]:
        """The lines of a block's table."""
        first, *others = (column for column in block.columns if column.head not in self.dropped)
        if self.width is None:
            return self._grid([first, *others])
        heads = [first, *(column for column in others if column.key)]
        if self._wide(heads) > self.width // 2:
            heads = [first]
        parts: list[list[Column]] = [[*heads]]
        for column in others:
            if column in heads:
                continue
            room = self.width - self._wide(parts[-1]) - 2
            if len(parts[-1]) > len(heads) and room < min(self._width_of(column), 30 if column.left else self.width):
                parts.append([*heads])
            parts[-1].append(column)
        lines: list[str] = []
        for part in parts:
            lines += ([""] if lines else []) + self._grid(part)
        return lines

    def needs(self, block: Block) -> int:
        """The width of a block's table."""
        return self._wide([column for column in block.columns if column.head not in self.dropped])

    def _wide(self, columns: Sequence[Column]) -> int:
        return sum(map(self._width_of, columns)) + 2 * (len(columns) - 1)

    def _width_of(self, column: Column) -> int:
        head, body = self._cells(column)
        return max(map(cells_wide, (*head, *body)))

    def _grid(self, columns: Sequence[Column]) -> list[str]:
        cells = [self._cells(column) for column in columns]
        tall = max(len(head) for head, _ in cells)
        aligned = []
        for column, (head, body) in zip(columns, cells, strict=True):
            whole = [*[""] * (tall - len(head)), *head, *body]
            left, wide = column is columns[0] or column.left, max(map(cells_wide, (*head, *body)))
            aligned.append([padded(cell, wide, left=left) for cell in whole])
        if not any(column.last for column in columns):
            aligned = [column[:-1] for column in aligned]
        rows = ["  ".join(row) for row in zip(*aligned, strict=True)]
        if not columns[-1].left:
            return rows
        indent = " " * (self._wide(columns[:-1]) + 2)
        return [
            line
            for row in map(str.rstrip, rows)
            for line in (wrapped(row, self.width, others=indent) if self.width and len(indent) < self.width else [row])
        ]

    def _cells(self, column: Column) -> tuple[list[str], list[str]]:
        """The lines of the head, and the cells with that of the last row."""
        shown = self.names.get(column.names, {})
        body = [printable(shown.get(cell, cell)) for cell in column.cells] + [printable(column.last)]
        head, rest = printable(column.head), max(map(cells_wide, body))
        lines = head.split(" ") if self.stacked and cells_wide(head) > rest and len(head) > 4 else [head]
        if len(lines) > 2:  # into two
            middle = min(range(1, len(lines)), key=lambda k: max(map(len, (" ".join(lines[:k]), " ".join(lines[k:])))))
            lines = [" ".join(lines[:middle]), " ".join(lines[middle:])]
        if self.width is not None and not column.left and rest > (most := self.width // 2 - 1):  # a long text
            gap = printable("…")
            body = [cut_to([cell], most, gap)[cell] if cells_wide(cell) > most else cell for cell in body]
        return lines, body


def _fitted(blocks: Sequence[Block], width: int, *, droppable: bool) -> _Fit:
    """The first of these that fits: shorter names, heads over two lines, fewer columns, names cut, columns stacked."""
    named = [[column for column in block.columns if column.names] for block in blocks]
    kinds: dict[str, list[str]] = {}
    for column in (column for own in named for column in own):
        kinds.setdefault(column.names, []).extend(column.cells)
    ways = {kind: list(shorter(names)) for kind, names in kinds.items()}
    spare = {column.head: column.spare for block in blocks for column in block.columns if column.spare}
    order = sorted(spare, key=lambda name: -spare[name]) if droppable else []

    def made(way: dict[str, tuple[dict[str, str], str]], dropped: Sequence[str], **settings: Any) -> _Fit:
        told = [
            f"{kind} = {pattern}, of which the * {'are' if pattern.count('*') > 1 else 'is'} shown"
            for kind, (_, pattern) in way.items()
            if pattern
        ]
        if dropped:
            few = "; ".join(column for column in spare if column in dropped)
            told.append(f"not shown, for want of room: {few} (--columns, or a wider terminal)")
        return _Fit({kind: shown for kind, (shown, _) in way.items()}, told, dropped, **settings)

    def fits(fit: _Fit) -> bool:
        return all(fit.needs(block) <= width for block in blocks)

    if any(column.left for block in blocks for column in block.columns[-1:]):
        return made({}, (), width=width)
    count = max(map(len, ways.values()), default=0)
    tried = [{kind: own[min(nth, len(own) - 1)] for kind, own in ways.items()} for nth in range(count)]
    for dropped in (order[:few] for few in range(len(order) + 1)):
        for way in tried:
            for stacked in (False, True):
                fit = made(way, dropped, stacked=stacked)
                if fits(fit):
                    return fit
    shortest = tried[-1]

    def cut(room: int) -> dict[str, tuple[dict[str, str], str]]:
        found = {}
        for kind, (shown, pattern) in shortest.items():
            short = cut_to([printable(word) for word in shown.values()], room, printable("…"))
            found[kind] = {name: short[printable(word)] for name, word in shown.items()}, pattern
        return found

    empty = {kind: (dict.fromkeys(shown, ""), pattern) for kind, (shown, pattern) in shortest.items()}
    taken = max(made(empty, order, stacked=True).needs(block) for block in blocks)
    beside = max(map(len, named))
    if (room := (width - taken) // beside) >= max(12, width // 4 // beside):
        fit = made(cut(room), order, stacked=True)
        if fits(fit):
            return fit
    return made(cut(max(12, width // 2 // beside - 2)), order, stacked=True, width=width)
