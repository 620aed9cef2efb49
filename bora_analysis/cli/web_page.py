"""Pages as one HTML file that needs nothing else: tables that a click sorts, figures, print as it is."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

from .grid import Block, Column, Page, legend

_STYLE = """
:root { color-scheme: light; font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: .3rem } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem }
.answer { font-size: 1.05rem; border-left: 4px solid #d55e00; padding: .2rem 0 .2rem .9rem }
.answer p { margin: .3rem 0 } p { overflow-wrap: anywhere }
figure { margin: 1.2rem 0; break-inside: avoid } figure img { max-width: 100%; height: auto }
figcaption, .small { font-size: .85rem; color: #595959 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4rem 0 1.2rem }
caption { text-align: left; font-weight: 600; padding: .3rem 0 } thead { border-bottom: 1px solid #1c1c1c }
td, th { text-align: right; padding: .15rem .6rem; white-space: nowrap } tr > :first-child, .left { text-align: left }
tbody tr:nth-child(even) { background: #f6f6f6 } tfoot { border-top: 1px solid #b0b0b0 }
th button { font: inherit; font-weight: 600; border: 0; background: none; padding: 0; cursor: pointer; color: inherit }
th button:focus-visible { outline: 2px solid #0072b2 }
th[aria-sort=ascending] button::after { content: " \\2191" }
th[aria-sort=descending] button::after { content: " \\2193" }
@media print { body { max-width: none; margin: 0; font-size: 10pt } th button::after { content: "" !important }
  .wide { overflow: visible } table { font-size: 8pt } td, th { padding: .05rem .35rem } h2 { break-after: avoid } }
"""

# A head sorts its table: the first click puts the largest number, or the first word, on top.
_SCRIPT = """
for (const table of document.querySelectorAll('table')) {
  const heads = [...table.querySelectorAll('thead th')];
  heads.forEach((head, k) => head.querySelector('button').addEventListener('click', () => {
    const rows = [...table.tBodies[0].rows], key = row => row.cells[k].dataset.v ?? row.cells[k].textContent;
    const numbers = rows.every(row => key(row) === '' || !isNaN(key(row)));
    const falls = head.ariaSort ? head.ariaSort === 'ascending' : numbers;
    const order = (a, b) => numbers ? a - b : String(a).localeCompare(b, undefined, {numeric: true});
    rows.sort((a, b) => (key(a) === '') - (key(b) === '') || (falls ? -1 : 1) * order(key(a), key(b)));
    heads.forEach(each => each.removeAttribute('aria-sort'));
    head.ariaSort = falls ? 'descending' : 'ascending';
    table.tBodies[0].append(...rows);
  }));
}
"""


def document(title: str, parts: Iterable[str]) -> str:
    """One HTML file; the parts are HTML."""
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *parts,
            f"<script>{_SCRIPT}</script></body></html>\n",
        ]
    )


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraphs(lines: Iterable[str], kind: str = "") -> str:
    """Lines of text as one division of the class ``kind``."""
    return f'<div class="{kind}">' + "".join(f"<p>{escape(line)}</p>" for line in lines if line) + "</div>"


def picture(svg: bytes, words: str, caption: str) -> str:
    """A figure; as an image of its own, so that its names stand apart from those of others."""
    data = base64.b64encode(svg).decode()
    source = f"data:image/svg+xml;base64,{data}"
    return f'<figure><img src="{source}" alt="{escape(words)}"><figcaption>{escape(caption)}</figcaption></figure>'


def as_html(page: Page) -> str:
    """The tables of a page, with their legend and notes; nothing is left out."""
    told = [legend(page, ()), *page.notes]
    return "".join([*map(_table, page.blocks), paragraphs(told, "small")])


def _table(block: Block) -> str:
    columns = block.columns
    rows = ["".join(_cell(column, k) for column in columns) for k in range(len(columns[0].cells))]
    foot = "".join(f"<td{_left(column)}>{escape(column.last)}</td>" for column in columns)
    parts = [
        f"<caption>{escape(block.title)}</caption>" if block.title else "",
        "<thead><tr>" + "".join(map(_head, columns)) + "</tr></thead>",
        "<tbody>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</tbody>",
        f"<tfoot><tr>{foot}</tr></tfoot>" if any(column.last for column in columns) else "",
    ]
    return f'<div class="wide"><table>{"".join(parts)}</table></div>' + paragraphs(block.below, "small")


def _head(column: Column) -> str:
    told = f' title="{escape(column.meaning)}"' if column.meaning else ""
    return f'<th scope="col"{_left(column)}><button type="button"{told}>{escape(column.head)}</button></th>'


def _cell(column: Column, k: int) -> str:
    value = None if column.values is None else column.values[k]
    exact = ""
    if isinstance(value, int | float) or hasattr(value, "dtype"):
        exact = f' data-v="{"" if value != value else value}"'  # a missing value sorts last
    return f"<td{_left(column)}{exact}>{escape(column.cells[k])}</td>"


def _left(column: Column) -> str:
    return ' class="left"' if column.left else ""
