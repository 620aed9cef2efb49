"""The colours of the pages, light and dark, in one place, and how far they stand out from what lies behind them.

The grounds, the ink and the accent are Streamlit's too and stand in ``.streamlit/config.toml``; they are read there.
Contrasts are those of WCAG 2.2: text needs 4.5 (1.4.3), lines and markers 3 (1.4.11).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import streamlit as st

from bora_analysis import style

#: The least contrast of text, and of lines and markers.
TEXT, MARK = 4.5, 3.0
#: The share of the accent in the ground of a button that is chosen, at most; its words have the accent's colour.
TINT = 0.15
#: A line that lies over a picture in viridis, half of it seen through.
OVER_PICTURE = "#FFFFFF"


@dataclass(frozen=True)
class Theme:
    """The colours of one theme, ``"#rrggbb"``.

    Attributes
    ----------
    ground, panel : what lies behind the page, and behind the sidebar and boxes.
    ink : text, and what stands out without a colour of its own.
    accent : what is chosen.
    guide : lines that are no data, and the words on axes and legends.
    alarm : what is in error.
    viridis : the part of that scale whose colours can be lines on the ground.
    """

    ground: str
    panel: str
    ink: str
    accent: str
    guide: str
    alarm: str
    viridis: tuple[float, float]


@cache
def themes() -> Mapping[str, Theme]:
    """``"light"`` and ``"dark"``."""
    ours = {"light": ("#60666C", "#B3261E", (0.0, 0.59)), "dark": ("#A0A6AC", "#F2867E", (0.36, 1.0))}
    told = tomllib.loads((Path(__file__).parent / ".streamlit" / "config.toml").read_text(encoding="utf-8"))["theme"]
    names = "backgroundColor", "secondaryBackgroundColor", "textColor", "primaryColor"
    return {name: Theme(*(told[name][key] for key in names), *more) for name, more in ours.items()}  # pyright: ignore[reportCallIssue]


def dark() -> bool:
    """Whether the visitor's theme is dark."""
    return st.context.theme.type == "dark"


def theme() -> Theme:
    """The visitor's."""
    return themes()["dark" if dark() else "light"]


def on_screen(colour: str) -> str:
    """The figures' colour, so far from the page's ground that a line can be seen."""
    return readable(colour, theme().ground)


def readable(colour: str, ground: str, least: float = MARK) -> str:
    """The colour, mixed with white on a dark ground and with black on a light one, as far as the contrast needs it.

    >>> readable("#D55E00", "#FFFFFF"), readable("#E69F00", "#FFFFFF"), readable("#000000", "#14171A")
    ('#D55E00', '#C48700', '#666666')
    """
    towards = 1 if luminance(ground) < 0.18 else -1
    mixtures = (style.mixed(colour, towards * share) for share in np.linspace(0, 1, 21))
    return next(each for each in mixtures if contrast(each, ground) >= least)


def ramp(colour: str, count: int) -> list[str]:
    """Shades of a colour for what has an order, the faintest first, all of which can be lines on the page."""
    ground = theme().ground
    shades = [style.mixed(colour, share) for share in np.linspace(-0.85, 0.95, 181)]
    wanted = np.geomspace(MARK + 0.1, 11, max(2, count))[:count]
    return [min(shades, key=lambda shade: abs(contrast(shade, ground) - each)) for each in wanted]


def over(colour: str, ground: str, share: float) -> str:
    """What is seen of a colour that lets the ground through.

    >>> over("#000000", "#FFFFFF", 0.6)
    '#666666'
    """
    pairs = ((int(each[i : i + 2], 16) for each in (colour, ground)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(share * front + (1 - share) * behind):02X}" for front, behind in pairs)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, from 1 to 21.

    >>> contrast("#000000", "#FFFFFF")
    21.0
    """
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
