"""How adapters look in figures, on paper and on screen: colours, markers, labels, orders, widths.

Constants, and functions from names to constants. No plotting library is imported here, so that the dashboard can
look like the figures without loading matplotlib.

Colours are those of Okabe & Ito ("Color Universal Design", 2008), which stay apart under colour blindness. Each
method has one colour and one marker everywhere; the pair is its own, also where two methods share the colour.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from . import catalogue
from .catalogue import Method
from .catalogue.palette import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, YELLOW
from .metrics import METRICS
from .threshold import Threshold

__all__ = [
    "BLACK", "BLUE", "GREEN", "GREY", "MARKERS", "MODELS", "ORANGE", "PROJECTIONS", "PURPLE", "SKY", "VENUES",
    "VERMILLION", "YELLOW", "Look", "ink_on_viridis", "looks", "method_look", "metric_label", "mixed",
    "projections_in_order", "series_looks", "shade", "shortened",
]  # fmt: skip

#: Order of projections in a heat map's rows and in menus; any other name follows, alphabetically.
PROJECTIONS = ("q", "k", "v", "qkv", "o", "gate", "up", "down")

#: Venue → text width in inches; "icml2" spans both columns.
VENUES = {"neurips": 5.5, "iclr": 5.5, "icml": 3.25, "icml2": 6.75}

#: Models of the paper, as figures name them.
MODELS = {
    "roberta-base": "RoBERTa-Base",
    "roberta-large": "RoBERTa-Large",
    "gemma-7b": "Gemma-7B",
    "llama-3-8b": "LLaMA-3-8B",
    "qwen2.5-14b": "Qwen2.5-14B",
}

# Colours and markers of lines that are no methods, such as projections.
_SERIES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (VERMILLION, "D"), (PURPLE, "v"), (SKY, "P"), (BLACK, "X"))
#: Markers of lines whose colours are shades of one, such as the ranks of one method: they are told apart in grey too.
MARKERS = ("D", "s", "^", "v", ">", "o")
# Shares of white (above 0) or black (below 0) mixed into a colour for the first, second … adapter that has it.
_SHADES = (0.0, -0.45, 0.45, -0.25, 0.25, -0.65)
# Dashes in points after the first adapter of a colour, so that shades also differ in black and white.
_DASHES: tuple[tuple[float, ...], ...] = ((), (4.0, 1.2), (1.2, 1.0), (4.0, 1.0, 1.2, 1.0))


@dataclass(frozen=True)
class Look:
    """How one adapter is drawn.

    Attributes
    ----------
    label : for the legend.
    colour : ``"#rrggbb"``, a shade of the method's colour.
    marker : the method's.
    dash : on and off lengths in points; empty for a solid line.
    filled : whether the marker is filled or open.
    """

    label: str
    colour: str
    marker: str
    dash: tuple[float, ...]
    filled: bool


def method_look(method: str) -> Method:
    """Label, colour and marker of a method; grey for one that is not in the catalogue.

    >>> method_look("rslora").label, method_look("newra").label
    ('rsLoRA', 'newra')
    """
    return catalogue.method(method) or Method(method, method, GREY, "o")


def looks(adapters: Iterable[tuple[str, str]], limit: int = 30) -> dict[str, Look]:
    """Adapter → look, for the (adapter, method) pairs that one figure shows, in their order.

    The first adapter of a colour gets the method's own colour, a solid line and a filled marker; the next ones get
    shades of it, other dashes, and alternately open and filled markers.

    >>> pair = looks([("a", "bora"), ("b", "bora")])
    >>> pair["a"].label, pair["a"].colour == pair["b"].colour
    ('a (BoRA)', False)
    """
    methods: dict[str, Method] = {}
    for adapter, method in adapters:
        methods.setdefault(adapter, method_look(method))
    seen: dict[str, int] = {}
    result = {}
    for (adapter, method), name in zip(methods.items(), shortened(methods, limit), strict=True):
        nth = seen.get(method.colour, 0)
        seen[method.colour] = nth + 1
        result[adapter] = Look(
            label=name if _says(adapter, method.label) else f"{name} ({method.label})",
            colour=shade(method.colour, nth),
            marker=method.marker,
            dash=_DASHES[nth % len(_DASHES)],
            filled=nth % 2 == 0,
        )
    return result


def series_looks(names: Iterable[str]) -> dict[str, Look]:
    """Name → look, for lines that are no adapters, in their order: the palette's colours, then other dashes of them.

    >>> [look.marker for look in series_looks(["q", "k"]).values()]
    ['o', 's']
    """
    found = {}
    for nth, name in enumerate(names):
        colour, marker = _SERIES[nth % len(_SERIES)]
        turn = nth // len(_SERIES)
        found[name] = Look(name, shade(colour, turn), marker, _DASHES[turn % len(_DASHES)], turn % 2 == 0)
    return found


def shade(colour: str, nth: int) -> str:
    """The nth shade of a colour; the colour itself is shade 0.

    >>> [shade(BLUE, nth) for nth in range(3)]
    ['#0072B2', '#003F62', '#73B1D5']
    """
    return mixed(colour, _SHADES[nth % len(_SHADES)])


def mixed(colour: str, share: float) -> str:
    """The colour with a share of white (above 0) or of black (below 0) mixed into it.

    >>> mixed("#D55E00", 1.0), mixed("#D55E00", -0.5)
    ('#FFFFFF', '#6A2F00')
    """
    towards = 255 if share > 0 else 0
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(c + abs(share) * (towards - c)):02X}" for c in channels)


def ink_on_viridis(share: float) -> str:
    """The colour of words on a place of the scale viridis, from 0 to 1, such that they can be read (4.5, WCAG 2.2).

    >>> ink_on_viridis(0.1), ink_on_viridis(0.9)
    ('white', 'black')
    """
    return "white" if share < 0.44 else "black"


def shortened(names: Iterable[str], limit: int) -> list[str]:
    """Names of at most ``limit`` characters, cut in the middle with "…", still different from one another.

    >>> shortened(["llama-commonsense-run-seed-1", "llama-commonsense-run-seed-2"], 12)
    ['llama-…eed-1', 'llama-…eed-2']
    """
    full = [" ".join(name.split()) for name in names]
    kept = limit - 1
    # From the even split outwards: the first one that keeps the names apart.
    for head in sorted(range(kept + 1), key=lambda head: abs(head - (kept + 1) // 2)):
        short = [name if len(name) <= limit else f"{name[:head]}…{name[len(name) - kept + head :]}" for name in full]
        if len(set(short)) == len(short):
            return short
    # They differ in a place that no cut shows: number them.
    return [name if len(name) <= limit else f"{name[: limit - len(str(i)) - 2]}…#{i}" for i, name in enumerate(full, 1)]


def projections_in_order(names: Iterable[str]) -> list[str]:
    """The canonical order of :data:`PROJECTIONS`, then the others.

    >>> projections_in_order(["router", "down", "q"])
    ['q', 'down', 'router']
    """
    return sorted(set(names), key=lambda name: (PROJECTIONS.index(name) if name in PROJECTIONS else 99, name))


def metric_label(metric: str, threshold: float | str | Threshold, separator: str = "\n") -> str:
    """Name and formula of a metric, for an axis.

    >>> metric_label("effective_rank", 0.005, "  ")
    'effective rank  #{σ > 0.005}'
    """
    row = METRICS[metric]
    return f"{row.label}{separator}{row.formula.replace('τ', Threshold.of(threshold).formula)}"


def _says(name: str, label: str) -> bool:
    """Whether a name tells its method: "my-bora-r8" does for BoRA, "melora" does not for LoRA."""
    return re.search(rf"(?<![a-z]){re.escape(label.lower())}(?![a-z])", name.lower()) is not None
