"""The card: one picture of an adapter, as wide as a link preview, for a page of the Hub, a post or a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .. import style
from ..analysis import views
from ..metrics import METRICS
from ..threshold import Threshold
from . import drawing as layout
from . import page
from .heat import category_ticks, heat_cells

if TYPE_CHECKING:
    from ..analysis.null import Null

#: Inches; at :data:`DPI` 1200 × 630 points, the size of a link's preview.
SIZE, DPI = (6.0, 3.15), 200
#: The ranks that stand beside the bound.
RANKS = ("effective_rank", "entropy_rank", "energy_rank_99")
_LINES = 4  # of findings
#: Inches of a line of text, of the 5.7 that there are: hinted letters take up to 3.5 % more than their outlines.
_ROOM = 5.5


@dataclass(frozen=True)
class Words:
    """What is written on a card.

    Attributes
    ----------
    name : of the adapter. facts : lines on what it is. verdict : one sentence. findings : one sentence each.
    foot : threshold, null and dtype.
    """

    name: str
    facts: Sequence[str]
    verdict: str
    findings: Sequence[str]
    foot: str


def ranks(layers: Any, null: Null | None) -> list[tuple[str, float, float | None]]:
    """Label, mean over the modules, and that of the null, of each of :data:`RANKS`; None where there is no null."""
    threshold = Threshold.of(layers["threshold"].iloc[0])
    found = []
    for name in RANKS:
        beside = None
        if null is not None:
            rows = null.layer_metrics[null.layer_metrics["metric"] == name]
            beside = float(rows["null_mean"].mean()) if rows["module"].nunique() == len(layers) else None
        metric = METRICS[name]
        label = f"{metric.label} (σ > {threshold.formula})" if name == "effective_rank" else metric.label
        label = "directions for 99 % of Σσ²" if name == "energy_rank_99" else label
        found.append((label, float(layers[name].mean()), beside))
    return found


@page.in_style
def card(layers: Any, spectra: Any, words: Words, *, null: Null | None = None, font: str | None = None) -> Figure:
    """Rank bound against rank used, where the rank is used, the spectrum, and what stands out.

    Parameters
    ----------
    layers, spectra : both tables, of one adapter at one step.
    words : what is written on it.
    null : that of the adapter: a mark beside each rank, and the dotted spectrum.
    font : see :mod:`bora_analysis.figures`.
    """
    figure = page.PaperFigure(figsize=SIZE, high=True)
    method = str(layers["method"].iloc[0])
    look = next(iter(style.looks([(words.name, method)]).values()))
    size = 12.0
    while size > 7 and layout.text_width(words.name, size) > 5.7:
        size -= 1
    name = words.name if layout.text_width(words.name, size) <= 5.7 else style.shortened([words.name], 70)[0]
    figure.text(0.025, 0.955, layout.escaped(name), size=size, weight="bold", va="top", gid="name")
    figure.text(0.025, 0.865, "\n".join(_folded(words.facts, _ROOM, 6.5, 2)), size=6.5, color="0.35", va="top")
    figure.text(0.025, 0.755, "\n".join(_folded([words.verdict], _ROOM, 7.5, 2)), size=7.5, va="top", gid="verdict")
    _ranks(figure.add_axes((0.025, 0.315, 0.29, 0.30)), layers, null, look.colour)
    _where(figure, figure.add_axes((0.405, 0.375, 0.19, 0.24)), layers)
    _spectrum(figure.add_axes((0.74, 0.385, 0.235, 0.23)), spectra, null, look.colour, layers)
    lines = [line for each in words.findings for line in _folded([f"•  {each}"], _ROOM, 6.5, 2)]
    figure.text(0.025, 0.25, "\n".join(lines[:_LINES]), size=6.5, va="top", linespacing=1.25, gid="findings")
    foot = "\n".join(_folded([words.foot], _ROOM, 5.5, 2))
    figure.text(0.025, 0.02, foot, size=5.5, color="0.4", va="bottom", linespacing=1.1, gid="foot")
    return figure


def _folded(texts: Sequence[str], room: float, size: float, most: int) -> list[str]:
    """Lines of at most ``room`` inches, at most ``most`` of each text."""
    lines = []
    for text in texts:
        own = [""]
        for word in text.split(" "):
            longer = f"{own[-1]} {word}".strip()
            if own[-1] and layout.text_width(longer, size) > room:
                own.append(word)
            else:
                own[-1] = longer
        lines += [*own[: most - 1], " ".join(own[most - 1 :])[: int(room * 17)]] if len(own) > most else own
    return [layout.escaped(line) for line in lines]


def _ranks(axes: Axes, layers: Any, null: Null | None, colour: str) -> None:
    """The bound, and beneath it the ranks that are used; a mark at those of random factors."""
    bound = float(layers["rank_bound"].mean())
    rows = [("rank bound", bound, None), *ranks(layers, null)]
    for k, (label, value, beside) in enumerate(rows):
        known = value == value
        axes.barh(k, value if known else 0, height=0.34, color="0.82" if k == 0 else colour, gid=f"bar:{label}")
        if beside is not None:
            axes.plot([beside] * 2, [k - 0.2, k + 0.2], color="black", lw=1.0, gid=f"null:{label}")
        axes.annotate(label, (0, k), (0, 4.5), textcoords="offset points", size=6, va="bottom", color="0.2")
        written = f"{value:.0f}" if k == 0 and value == round(value) else f"{value:.1f}" if known else "not known"
        axes.annotate(written, (bound * 1.03, k), size=6.5, va="center", annotation_clip=False)
    axes.axvline(bound, color=layout.GUIDE, lw=0.6, ls=(0, (4, 2)), zorder=0)
    axes.set_ylim(len(rows) - 0.6, -0.85)
    axes.set_xlim(0, max(bound, 1) * 1.16)
    axes.set_axis_off()
    axes.set_title("rank allowed and used, mean", size=7, loc="left", pad=3)


def _where(figure: Figure, axes: Axes, layers: Any) -> None:
    """The share of the allowed directions that hold 99 % of the energy, over layers and projections."""
    rows = layers.assign(share=100 * layers["energy_rank_99"] / layers["rank_bound"].where(layers["rank_bound"] > 0))
    cells = views.cells(rows, "share")
    columns, names = views.layers_in_order(cells["layer"]), style.projections_in_order(cells["projection"])
    grid = np.full((len(names), len(columns)), np.nan)
    for layer, name, share in zip(cells["layer"], cells["projection"], cells["share"], strict=True):
        grid[names.index(name), columns.index(None if pd.isna(layer) else int(layer))] = share
    norm = Normalize(0, 100)
    high = axes.get_position().height * SIZE[1] / len(names)
    heat_cells(axes, grid, norm, 0.3 if high > 0.08 and len(columns) <= 16 else 0.0, None).set_gid("cells")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks(*category_ticks(columns, axes.get_position().width * SIZE[0] / len(columns)))
    every = max(1, int(np.ceil(0.11 / high)))
    shown = [layout.escaped(name) for name in style.shortened(names, 9)]
    axes.set_yticks(range(0, len(names), every), shown[::every])
    axes.tick_params(labelsize=6)
    axes.set_xlabel("layer", size=6.5)
    axes.set_title("99 % of Σσ²: share of the bound", size=7, loc="left", pad=3)
    place = axes.get_position()
    beside = figure.add_axes((place.x1 + 0.008, place.y0, 0.009, place.height))
    bar = figure.colorbar(ScalarMappable(norm, "viridis"), cax=beside, ticks=[0, 50, 100])
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.set_yticklabels(["0", "50", "100 %"])
    beside.tick_params(width=0.4, length=2, labelsize=5.5, pad=1.5)


def _spectrum(axes: Axes, spectra: Any, null: Null | None, colour: str, layers: Any) -> None:
    """Median and quartiles over the modules, the threshold, and the spectrum of random factors."""
    curves: Any = views.curves(spectra)
    tau = Threshold.of(layers["threshold"].iloc[0])
    limit = next(iter(views.limits_of(spectra, tau).values()), 0.0)
    floor, ceiling = views.sigma_limits(curves["median"], curves["upper"], limit)
    for bound, curve in curves.groupby("bound", sort=False):
        low, middle, high = (np.fmax(curve[name].to_numpy(), floor) for name in ("lower", "median", "upper"))
        axes.fill_between(curve["index"], low, high, color=colour, alpha=0.2, lw=0)
        axes.plot(curve["index"], middle, color=colour, lw=1.1, gid=f"median:{bound}")
    if null is not None and len(null.spectra):
        for _, curve in views.null_curves(null.spectra).groupby("bound", sort=False):
            dotted: Any = {"color": "black", "lw": 0.9, "ls": (0, layout.NULL.dash), "gid": "null"}
            axes.plot(curve["index"], np.fmax(curve["mean"], floor), **dotted)
    if limit > 0:
        axes.axhline(limit, color=layout.GUIDE, lw=0.6, ls=(0, (4, 2)), zorder=1)
    axes.set_yscale("log")
    axes.set_ylim(floor, ceiling)
    layout.decades(axes.yaxis, floor, ceiling)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(labelsize=6)
    axes.set_xlabel("index of σ", size=6.5, labelpad=1)
    axes.set_title("spectrum: median, quartiles", size=7, loc="left", pad=3)
