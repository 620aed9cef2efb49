"""The page that a figure stands on: our settings, its width, height and font, and places that repeat."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from matplotlib import font_manager, rc_context, rcParams
from matplotlib import style as mpl_style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from .. import style

_P = ParamSpec("_P")
_R = TypeVar("_R")

_STYLE = Path(__file__).with_name("paper.mplstyle")
#: Inches that a figure may be high.
LEAST, MOST = 0.8, 20.0
# The fonts of formulas that go with a family; other families are their own.
_FORMULAS = {"stix": "stix", "dejavu serif": "dejavuserif", "dejavu sans": "dejavusans"}


def in_style(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator of everything that draws: our settings, whatever the user's are, and the call's ``font``."""

    @wraps(function)
    def styled(*given: _P.args, **options: _P.kwargs) -> _R:
        with mpl_style.context(["default", _STYLE]), _with(_settings(options.get("font"))):
            return function(*given, **options)

    return styled


def _with(settings: Any) -> AbstractContextManager[None]:
    return rc_context(settings)


def font_of(figure: Figure) -> AbstractContextManager[None]:
    """The settings of the figure's font, for texts that are made when it is drawn."""
    return _with(getattr(figure, "font", {}))


def _settings(font: Any) -> dict[str, Any]:
    """Settings of a font family; what it lacks (σ, ‖ …) comes from DejaVu Sans."""
    if font is None:
        return {}
    try:
        path = font_manager.findfont(str(font), fallback_to_default=False)
    except ValueError:
        raise ValueError(f"unknown font {font!r}; {_fonts(str(font))}") from None
    with Path(path).open("rb") as file:
        if file.read(4) == b"OTTO":
            raise ValueError(
                f"font {font!r} has PostScript outlines ({path}), which a PDF cannot hold as TrueType; {_fonts('')}"
            )
    family = font_manager.get_font(path).family_name
    formulas = next((kind for name, kind in _FORMULAS.items() if family.lower().startswith(name)), "custom")
    settings: dict[str, Any] = {"font.family": [family, "DejaVu Sans"], "mathtext.fontset": formulas}
    if formulas == "custom":
        parts = {"rm": "", "it": ":italic", "bf": ":bold"}
        settings |= {f"mathtext.{part}": f"{family}{how}" for part, how in parts.items()}
        settings["mathtext.fallback"] = "stix"
    return settings


def _fonts(font: str) -> str:
    from difflib import get_close_matches  # here: a miss is rare

    # The others that matplotlib brings have only signs of formulas.
    known = [
        name
        for name in font_manager.get_font_names()
        if not name.startswith(("cm", "STIXSize", "STIXNon", "Last Resort"))
    ]
    close = get_close_matches(font, known, 1)
    more = f"did you mean {close[0]}? " if close else ""
    return f"{more}there are {', '.join(sorted(known)[:12])}{' …' if len(known) > 12 else ''}"


class PaperFigure(Figure):
    """A figure that keeps its font, and that a notebook shows whichever backend is there or none.

    Attributes
    ----------
    high : whether its height was asked for, so that a legend takes its room from the axes.
    """

    def __init__(self, *given: Any, high: bool = False, **options: Any) -> None:
        super().__init__(*given, **options)
        self.high = high
        self.font = {key: rcParams[key] for key in rcParams if key.startswith("mathtext.") or key == "font.family"}

    @in_style
    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        with font_of(self):
            self.savefig(buffer, format="png", dpi=self.dpi)
        return buffer.getvalue()


def inches(width: str) -> float:
    """Text width of a venue."""
    if width not in style.VENUES:
        raise ValueError(f"unknown width {width!r}; there are {', '.join(style.VENUES)}")
    return style.VENUES[width]


def blank(width: str, usual: float, height: float | None = None) -> PaperFigure:
    """An empty figure of a venue's width, ``usual`` inches high unless a height is asked for."""
    if height is not None and not LEAST <= height <= MOST:
        raise ValueError(f"height is {height:g} inches; expected {LEAST:g} to {MOST:g}")
    size = inches(width), usual if height is None else float(height)
    figure = PaperFigure(figsize=size, layout="constrained", high=height is not None)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(w_pad=0.03, h_pad=0.04, hspace=0.03, wspace=0.02)  # pyright: ignore[reportCallIssue]
    return figure


def one_axes(width: str, usual: float, height: float | None, ax: Axes | None) -> Axes:
    """The axes to draw into: those that the caller gives, else the only ones of a new figure."""
    return blank(width, usual, height).subplots() if ax is None else ax


def figure_of(axes: Axes) -> Figure:
    """The figure that the axes stand in, also where they stand in a part of it."""
    assert axes.figure is not None
    return axes.figure.canvas.figure


def settle(figure: Figure) -> None:
    """Lay the figure out once and for all.

    Each drawing would start from the layout of the one before. And the solver of the layout takes its equations in the
    order of their addresses in memory, so that the last digits of a place differ from run to run, and with them the
    names that an SVG makes of the places: they are rounded.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(Bbox(np.round(axes.get_position(original=True).get_points(), 6)))
