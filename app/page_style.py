"""What Streamlit's settings cannot say about how pages look, as a style sheet."""

from __future__ import annotations

from collections.abc import Mapping

from app import palette
from app.palette import Theme

_SHEET = """
/* The title stands at the top; on a phone the button of the sidebar stands above it. */
[data-testid="stMainBlockContainer"] {{ padding-top: 2.25rem; padding-bottom: 4rem; }}
[data-testid="stHeader"] {{ background: transparent; pointer-events: none; }}
[data-testid="stHeader"] * {{ pointer-events: auto; }}
@media (max-width: 768px) {{
  [data-testid="stMainBlockContainer"] {{ padding-top: 3.5rem; }}
  [data-testid="stMainBlockContainer"] h1 {{ font-size: 2rem; }}
}}
/* "Press Enter to submit form  14/4096" would lie over what is typed. */
[data-testid="InputInstructions"] {{ display: none; }}
[data-testid="stCaptionContainer"] {{ color: {guide}; opacity: 1; }}
/* What is chosen has no colour of its own; an adapter has at its edge that of its line. */
[data-testid="stMultiSelect"] [data-tag] {{
  background: {ground}; color: {ink}; box-shadow: inset 0 0 0 1px {guide};
}}
"""
_CHIP = """
.st-key-adapters [data-tag-index="{place}"] {{
  background: {ground}; box-shadow: inset 0 0 0 1px {guide}, inset 6px 0 0 0 {colour}; padding-left: 12px;
}}
"""
_BAD = """
.st-key-adapters [data-tag-index="{place}"] {{
  background: {alarm}; color: {ground}; box-shadow: none;
}}
"""


def sheet(theme: Theme, chips: Mapping[int, str | None]) -> str:
    """The style sheet.

    Parameters
    ----------
    chips : the place of an adapter in the sidebar's choice → the colour of its line; None where it cannot be read.
    """
    colours = {name: getattr(theme, name) for name in ("ground", "ink", "guide", "alarm")}
    rules = [_SHEET.format(**colours)]
    for place, colour in chips.items():
        rule = _BAD if colour is None else _CHIP
        rules.append(rule.format(place=place, colour=colour and palette.readable(colour, theme.ground), **colours))
    return f"<style>{''.join(rules)}</style>"
