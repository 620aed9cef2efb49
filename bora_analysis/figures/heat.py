"""Heat maps: a panel per adapter, cells with their numbers, colour scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .. import style
from ..analysis.views import spreads
from . import drawing as layout
from . import page

Array = NDArray[Any]


def colour_norm(values: Array) -> Normalize:
    """Colour scale of a heat map, logarithmic where the values spread, else from 0; never of zero width.

    From the least value on, 109 and 123 would look like 0 and 1.
    """
    if spreads(values):
        return LogNorm(values.min(), values.max())
    low, high = min(0.0, float(values.min(initial=0.0))), max(0.0, float(values.max(initial=0.0)))
    return Normalize(low, high if high > low else 1.0)


def cell_texts(
    grids: Mapping[str, Array], room: float, spread: Mapping[str, Array] | None = None
) -> dict[str, list[list[str]]]:
    """The numbers of heat maps' cells with ``room`` inches, written alike; empty if they do not fit.

    Parameters
    ----------
    spread : deviations, behind "±" where that fits.
    """
    values = np.concatenate([grid[np.isfinite(grid)] for grid in grids.values()])
    whole = bool(np.all(values == np.round(values))) and np.abs(values).max(initial=0) < 1e5
    forms: list[Callable[[float, float], str]] = [lambda x, _: f"{x:.0f}"]
    if not whole:
        forms = [lambda x, _: f"{x:.3g}", lambda x, _: f"{x:.2g}"]
    if spread is not None:
        forms.insert(0, lambda x, d: f"{x:.3g}±{d:.1g}" if d else f"{x:.3g}")
    for form in forms:
        texts = {}
        for adapter, grid in grids.items():
            deviations = np.zeros_like(grid) if spread is None else spread[adapter]
            rows = zip(grid.tolist(), deviations.tolist(), strict=True)
            texts[adapter] = [[form(x, d) for x, d in zip(*row, strict=True)] for row in rows]
        shown = (text for rows in texts.values() for row in rows for text in row if "nan" not in text)
        if layout.text_width(max(shown, key=len, default=""), 6) <= room:
            return texts
    return {}


def category_ticks(layers: Sequence[int | None], cell: float) -> tuple[list[int], list[str]]:
    """Places and labels of the ticks on columns ``cell`` inches wide, one of them per layer or "–"."""
    numbers = [layer for layer in layers if layer is not None]
    need = max((layout.text_width(str(layer), 7) for layer in numbers), default=0.0) + 0.12
    every = next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 40, 50, 100, 10**9) if step * cell >= need)
    where = [i for i, layer in enumerate(layers) if layer is not None and layer % every == 0]
    if not where and numbers:
        where = [0]
    if None in layers:
        where = [i for i in where if (len(layers) - 1 - i) * cell >= need] + [len(layers) - 1]
    return where, ["–" if layers[i] is None else str(layers[i]) for i in where]


def heat_panels(
    grids: Mapping[str, Array],  # adapter → (projections, layers)
    looks: Mapping[str, style.Look],
    layers: Sequence[int | None],
    projections: Sequence[str],
    label: str,
    width: str,
    height: float | None,
    *,
    each: bool,
    spread: Mapping[str, Array] | None,
) -> Figure:
    """A figure with one heat map per adapter, side by side where the layers are few.

    Parameters
    ----------
    each : whether each has a colour scale and bar of its own. spread : standard deviations, written where they fit.
    """
    found = {adapter: grid[np.isfinite(grid)] for adapter, grid in grids.items()}
    values = np.concatenate([*found.values()])
    norms = {adapter: colour_norm(own if each else values) for adapter, own in found.items()}
    names = style.shortened(map(layout.plain, projections), 14)
    room = page.inches(width) - 0.95 - layout.text_width(max(names, key=len), 7)
    least = max(0.24 * len(layers), *(layout.text_width(looks[adapter].label, 7) for adapter in grids))
    across = 1 if each else int(np.clip((room + 0.15) // (least + 0.15), 1, len(grids)))
    down = -(-len(grids) // across)
    across = -(-len(grids) // down)
    cell_width = (room - 0.15 * (across - 1)) / across / len(layers)
    # A page is 9 in high; beyond it rows get thinner and not all of them are named.
    free, most = (8.4 - 0.24 * down, 0.16) if height is None else (height - 0.45 - 0.24 * down, np.inf)
    cell_height = float(min(most, max(free, 1.0 if height is None else 0.1) / (down * len(projections))))
    body = down * (len(projections) * cell_height + 0.24)

    figure = page.blank(width, max(body + 0.45, 1.3), height)
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    texts = cell_texts(grids, cell_width - 0.05, spread) if cell_height > 0.12 else {}
    for axes, (adapter, grid) in zip(panels.flat, grids.items(), strict=False):
        gap = 0.3 if min(cell_width, cell_height) > 0.08 else 0.0
        heat_cells(axes, grid, norms[adapter], gap, texts.get(adapter)).set_gid(f"cells:{adapter}")
        axes.set_title(layout.escaped(looks[adapter].label), size=7, loc="left", pad=2.5)
        if each:
            bar = layout.colour_bar(figure, ScalarMappable(norms[adapter], "viridis"), [axes], "", 1.0, 10)
            bar.locator = MaxNLocator(2, integer=bool(np.all(found[adapter] == np.round(found[adapter]))))
            bar.ax.tick_params(labelsize=6)
    for k, axes in enumerate(panels.flat):
        axes.set_visible(k < len(grids))
        lowest = k < len(grids) <= k + across
        axes.tick_params(labelbottom=lowest)
        axes.set_xlabel("layer" if lowest else "")
    first = panels[0][0]  # the axes are shared
    first.set_xticks(*category_ticks(layers, cell_width))
    every = max(1, int(np.ceil(0.11 / cell_height)))
    first.set_yticks(range(0, len(projections), every), [layout.escaped(name) for name in names[::every]])
    first.set_ylim(len(projections) - 0.5, -0.5)
    if each:
        panels[-1, 0].set_xlabel(f"layer\n{label};\neach adapter has its own colours".replace("  ", " "))
        return figure
    if layout.text_width(label, 7) > body - 0.2:
        label = label.replace("  ", "\n").replace(", mean", "\nmean")
    tall = min(body, 2.5)
    shared = ScalarMappable(next(iter(norms.values())), "viridis")
    layout.colour_bar(figure, shared, list(panels.flat), label, tall / body, 12 * tall)
    return figure


def heat_cells(axes: Axes, grid: Array, norm: Normalize, gap: float, texts: Sequence[Sequence[str]] | None) -> QuadMesh:
    """One heat map: vector cells (an image would be smoothed by some viewers), the axes' hatch where NaN."""
    axes.patch.set(facecolor="white", edgecolor="0.8", hatch="//////", linewidth=0)
    # A logarithm has no colour for 0: the least one of the scale.
    shown: Any = np.fmax(grid, norm.vmin or 0.0) if isinstance(norm, LogNorm) else grid
    shown = np.ma.masked_array(shown, np.isnan(grid))
    rows, columns = grid.shape
    mesh = axes.pcolormesh(
        np.arange(columns + 1) - 0.5,
        np.arange(rows + 1) - 0.5,
        shown,
        cmap="viridis",
        norm=norm,
        edgecolors="white",
        linewidth=gap,
    )
    if texts:
        for i, j in np.argwhere(np.isfinite(grid)):
            ink = style.ink_on_viridis(float(norm(shown[i, j])))
            axes.text(j, i, texts[int(i)][int(j)], size=6, color=ink, ha="center", va="center_baseline")
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    return mesh
