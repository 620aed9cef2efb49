"""Text from outside (names, paths, messages that hold them), made fit for the page."""

from __future__ import annotations

import re


def markdown(text: str) -> str:
    r"""The text such that ``st.markdown``, ``st.error`` and labels show it as it is: no markup, images, links, icons.

    >>> print(markdown("a*b* <b> [x](y) :red[z] $k$"))
    a\*b\* \<b\> \[x\]\(y\) \:⁠red\[z\] \$k\$
    """
    escaped = re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", one_line(text))
    # Icons and emoji are looked for after the escapes have been read: a word joiner, which has no width, parts them.
    return re.sub(r":(?=\w)", ":\u2060", escaped)


def one_line(text: str, limit: int | None = None) -> str:
    """The text in one line without characters that cannot be seen (controls, marks of writing direction).

    >>> one_line("a\\n\\u202eb   c"), one_line("abcdef", 4)
    ('a b c', 'abc…')
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"
