"""Tables in LaTeX, with booktabs; a document needs \\usepackage{booktabs}, and no other package."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..patterns import late
from .grid import Page, View, answer_lines, legend
from .plain_text import spelled

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$",
}  # fmt: skip
_MATHS = {
    "σ": r"\sigma", "Σ": r"\Sigma", "τ": r"\tau", "φ": r"\phi", "α": r"\alpha", "ε": r"\epsilon", "Δ": r"\Delta",
    "λ": r"\lambda", "μ": r"\mu", "ρ": r"\rho", "×": r"\times", "±": r"\pm", "−": "-", "≤": r"\le", "≥": r"\ge",
    "≠": r"\ne", "√": r"\surd", "‖": r"\|", "·": r"\cdot", "→": r"\to", "∈": r"\in", "⌊": r"\lfloor",
    "⌋": r"\rfloor", "²": "^2", "³": "^3", "₁": "_1", "₂": "_2", "ᵢ": "_i", "ⱼ": "_j", "ᵀ": "^T",
}  # fmt: skip
_TEXTS = {"–": "--", "—": "---", "…": r"\dots{}", "’": "'", "“": "``", "”": "''", "\N{NO-BREAK SPACE}": "~"}
# A letter or sign of mathematics with what belongs to it: ‖ΔW‖_F, σ_{k+1}, Σσ², σ>0.005.
_FORMULA = late(rf"(?:(?:ΔW|[{''.join(_MATHS)}])(?:_\{{[^}}]*\}}|_\w)?)+(?: ?[<>=] ?[\d.]+)?")


def as_latex(page: Page, view: View) -> str:
    """The page as tabulars, one below the other; titles and notes are comments."""
    page = view.chosen(page)
    parts = ["\n".join(map(_comment, answer_lines(page, None)))] if page.first else []
    for block in page.blocks:
        heads = [column.head for column in block.columns]
        rows = [list(cells) for cells in zip(*(column.cells for column in block.columns), strict=True)]
        last = [[column.last for column in block.columns]] if any(column.last for column in block.columns) else []
        lines = [rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule", _row(heads), r"\midrule"]
        lines += [*map(_row, rows), *([r"\midrule", *map(_row, last)] if last else []), r"\bottomrule"]
        lines.append(r"\end{tabular}")
        title = [_comment(block.title)] if block.title else []
        parts.append("\n".join([*title, *lines, *map(_comment, block.below)]))
    notes = [] if view.quiet else [note for note in (legend(page, ()), *page.notes) if note]
    return "\n\n".join([*parts, *map(_comment, notes)])


def escaped(text: str) -> str:
    """A text for LaTeX, its formulas in dollars.

    >>> print(*map(escaped, ("q_proj", "σ>0.005", "‖ΔW‖_F", "99 %", "384×384", "‖error‖₂", "σ_R/σ₁", "é")))
    q\\_proj $\\sigma >0.005$ $\\|\\Delta W\\|_F$ 99 \\% 384$\\times$384 $\\|$error$\\|_2$ $\\sigma_R$/$\\sigma_1$ e
    """
    out, place = [], 0
    for hit in _FORMULA.finditer(text):
        out += [_plain(text[place : hit.start()]), f"${_formula(hit[0])}$"]
        place = hit.end()
    return "".join([*out, _plain(text[place:])])


def _formula(text: str) -> str:
    words = "".join(f"{_MATHS[char]} " if char in _MATHS else char for char in text)
    return re.sub(r" (?=[_^\\}]|$)|(?<=[_^\d|]) ", "", words).replace("_{", "_{").strip()


def _plain(text: str) -> str:
    known = "".join(_TEXTS.get(char) or _SPECIAL.get(char) or char for char in text)
    return known if known.isascii() else spelled(known)


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"


def _comment(text: str) -> str:
    return "\n".join(f"% {line}" for line in text.splitlines())
