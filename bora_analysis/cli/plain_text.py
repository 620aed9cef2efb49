"""Text for terminals and pipes whose encoding lacks Greek letters and signs (cp1252, cp437, gbk, ASCII).

A character that the encoding lacks is spelled out: σ as sigma, ‖ as ||, ≤ as <=, ᵀ as ^T, é as e. What has no spelling
becomes a Python escape such as \\u4e2d. Files that a command writes are UTF-8 and stay as they are.
"""

from __future__ import annotations

import codecs
import io
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Any

from ..patterns import late

_ERRORS = "bora_analysis.spelled"
# click replaces a stream that says ASCII by a UTF-8 one; under this name it leaves the stream alone.
_ASCII = "bora_analysis_ascii"
_SIGNS = {
    "√": "sqrt", "∞": "inf", "∈": "in", "§": "sec. ", "‖": "||", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "→": "->",
    "±": "+-", "×": "x", "⊗": "(x)", "⊙": "(*)", "∘": "(*)", "∗": "*", "·": ".", "–": "-", "—": "-", "−": "-", "⁄": "/",
    "⌊": "floor(", "⌋": ")", "⌈": "ceil(", "⌉": ")", "⟨": "<", "⟩": ">", "✔": "yes", "’": "'", "“": '"', "”": '"',
    "•": "*", "λ": "lambda", "Λ": "Lambda", **dict(zip("▁▂▃▄▅▆▇█", "12345678", strict=True)),
}  # fmt: skip
_GREEK = late(r"GREEK (SMALL|CAPITAL) LETTER (?:FINAL )?([A-Z]+)")


def spell_missing_characters() -> None:
    """Make stdout and stderr spell out what their encodings lack, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=_ASCII if ascii_only else None, errors=_ERRORS)


def printable(text: str) -> str:
    """The text as stdout will show it: what counts for the width of a column."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, _ERRORS).decode(encoding)


def terminal_width(stream: Any = None) -> int | None:
    """The columns of the terminal that stdout, or the stream, is; None for a pipe or a file."""
    out = sys.stdout if stream is None else stream
    return max(20, shutil.get_terminal_size().columns) if out.isatty() else None


def cells_wide(text: str) -> int:
    """The columns that a text takes in a terminal: two for a Chinese character, none for an accent of its own.

    >>> cells_wide("rank"), cells_wide("中中")
    (4, 4)
    """
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def padded(text: str, width: int, *, left: bool = False) -> str:
    """The text with spaces to that width."""
    space = " " * (width - cells_wide(text))
    return text + space if left else space + text


def wrapped(text: str, width: int, first: str = "", others: str = "") -> list[str]:
    """Lines of at most ``width`` characters, as stdout shows them, without breaks at = and inside formulas."""
    bound = re.sub(r" (?=[=<>≤≥])|(?<=[=<>≤≥]) |(?<=\[\d) (?=\d\])|(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text)
    parts = re.split("( |\N{NO-BREAK SPACE})", bound)  # a spelling may bring spaces: ΔW is "Delta W"
    spelled_out = (part if part.isspace() else printable(part).replace(" ", "\N{NO-BREAK SPACE}") for part in parts)
    bound = "".join(spelled_out)
    first, others = printable(first), printable(others)
    lines = textwrap.wrap(
        bound, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False, break_long_words=True
    )
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def in_columns(rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Rows of cells below each other, the last of them broken where a terminal of that width ends.

    >>> print(*in_columns([("a", "the first of them"), ("bc", "another")], 16), sep="\\n")
    a   the first of
        them
    bc  another
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    wide = [max(map(cells_wide, column)) for column in zip(*rows, strict=True)][:-1]
    lines = ["  ".join([*(padded(*cell, left=True) for cell in zip(row, wide, strict=False)), row[-1]]) for row in rows]
    indent = " " * sum(each + 2 for each in wide)
    return lines if width is None else [part for line in lines for part in wrapped(line, width, others=indent)]


def is_unicode() -> bool:
    """Whether stdout can show every character."""
    return codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name.startswith("utf")


def spelled(text: str) -> str:
    """The text in ASCII.

    >>> spelled("Σσ² ≤ ‖ΔW‖_F², √n, ΔW_ij = B_i Σ_ij A_j"), spelled("UᵢᵀUⱼ, 10⁻⁵, Erdős, 中")
    ('Sum sigma^2 <= ||Delta W||_F^2, sqrt n, Delta W_ij = B_i Sigma_ij A_j', 'U_i^T U_j, 10^-5, Erdos, \\\\u4e2d')
    """
    return text.encode("ascii", _ERRORS).decode("ascii")


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_spelling(error.object, place) for place in range(error.start, error.end)), error.end


def _spelling(text: str, place: int) -> str:
    """The spelling of one character, with spaces that keep words apart: Σσ is "Sum sigma", √n is "sqrt n"."""
    char, before, after = text[place], text[place - 1 : place], text[place + 1 : place + 2]
    greek = _GREEK.fullmatch(unicodedata.name(char, ""))
    script, _, _ = unicodedata.decomposition(char).partition(" ")
    word = _SIGNS.get(char, "")
    if char == "Σ":  # the sum over all, or over one index; otherwise BoRA's matrix
        word = "Sum" if re.match(r"Σ(σ|_\{|_[a-z]\b)", text[place:]) else "Sigma"
    elif not word and greek:
        word = greek[2].lower() if greek[1] == "SMALL" else greek[2].capitalize()
    elif not word:
        letters = [c for c in unicodedata.normalize("NFKD", char) if not unicodedata.combining(c)]
        word = "".join(_SIGNS.get(c, c) for c in letters)
        if not word.isascii() or not word:
            return char.encode("ascii", "backslashreplace").decode("ascii")
        if script in ("<super>", "<sub>") and not unicodedata.decomposition(before or " ").startswith(script):
            word = ("^" if script == "<super>" else "_") + word
    if len(word) > 1:
        word = " " * (before.isascii() and before.isalpha() and word[0].isalpha()) + word
        word += " " * (word[-1].isalpha() and after.isalpha() and not unicodedata.decomposition(after).startswith("<"))
    return word


def _find(name: str) -> codecs.CodecInfo | None:
    """ASCII under the name that click does not know."""
    known = codecs.lookup("ascii")
    parts = known.incrementalencoder, known.incrementaldecoder
    return codecs.CodecInfo(*known, *parts, name=_ASCII) if name == _ASCII else None


codecs.register_error(_ERRORS, _spell)
codecs.register(_find)
