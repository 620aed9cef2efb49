"""What notebooks show of an object: a title, a few lines, a small table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def card(title: object, told: Callable[[], tuple[list[str], Any]], rows: int = 8) -> str:
    """HTML of the title, and of the lines and the data frame that ``told`` gives; the title alone where it fails.

    >>> card("a < b", lambda: (["one", ""], None))
    '<b>a &lt; b</b><br>one'
    """
    from html import escape  # here: whoever only reads adapters does without

    try:
        lines, frame = told()
        table = "" if frame is None else frame.head(rows).to_html(index=False, border=0, float_format="{:.4g}".format)
        more = [f"… {len(frame) - rows} more rows"] if frame is not None and len(frame) > rows else []
    except Exception:  # what is shown in passing must not fail
        lines, table, more = [], "", []
    return "<br>".join([f"<b>{escape(str(title))}</b>", *map(escape, filter(None, lines))]) + table + "".join(more)


def based_on(base_model: str | None) -> str:
    """The line about the base model; empty where it is not known."""
    return f"base model: {base_model}" if base_model else ""
