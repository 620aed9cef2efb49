"""Figure 2: the forward pass of BoRA as a diagram. Nothing in it is measured."""

from __future__ import annotations

import math
from collections import namedtuple
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle

from .. import style
from . import drawing as layout
from . import page

_BLOCKS, _RANK = 3, 4
_ROW, _SEGMENT = 0.72, 0.58  # inches: distance of two rows; height of a segment of X or Y
_CELL, _TILE, _STEP = 0.06, 0.168, 0.2  # inches: entry of an r-vector; a Σ_jk; distance of two Σ_jk
_VECTOR = _RANK * _CELL
_RADIUS = 0.075  # inches: of the circle of a sum
_INPUTS = [style.shade(style.BLUE, nth) for nth in (1, 0, 2)]
_SIGMA, _OUTPUT = style.VERMILLION, "#4D4D4D"


# Left edges of what stands in a row, in inches, and the length of a trapezoid; the paper's width decides the distances.
_Columns = namedtuple("_Columns", "x a ax tile plus total b y trapezoid")


@page.in_style
def figure2(*, width: str = "neurips", font: str | None = None, title: str | None = None) -> Figure:
    """Y_j = B_j Σ_k Σ_jk A_k X_k (eq. 8) with b = 3, and what each step costs, as figure 2 of BoRA (arXiv 2508.06953).

    Each dotted line is a trained diagonal Σ_jk, first index output block, as in the equation; the caption of the
    paper's figure 2 calls it Σ_ij between A_j and B_i, which is the same.

    Parameters
    ----------
    width, font, title : see :mod:`bora_analysis.figures`.
    """
    paper = page.inches(width)
    top, bottom = 0.3 if title is None else 0.52, 0.9
    height = top + _BLOCKS * _ROW + bottom
    figure = page.PaperFigure(figsize=(paper, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, paper), ylim=(0, height))
    axes.set_axis_off()
    at = _columns(paper)
    rows = [height - top - _ROW * (k + 0.5) for k in range(_BLOCKS)]
    for j in range(_BLOCKS):
        for k in range(_BLOCKS):
            _product(axes, at, rows, j, k)
    for k, y in enumerate(rows):
        _input(axes, at, k, y)
        _output(axes, at, k, y)
    _words(axes, at, paper, height - top, bottom)
    if title is not None:
        figure.suptitle(layout.escaped(title), y=1 - 0.05 / height, va="top")
    return figure


def _columns(paper: float) -> _Columns:
    segment, sigma, plus = 0.22, _TILE + 0.22, 0.15
    margin = 0.06
    fixed = 2 * margin + 2 * segment + 2 * _CELL + sigma + plus
    # Shares of what the fixed sizes leave: arrows, trapezoids, the fan of dotted lines, the way to the sum.
    arrow, trapezoid, fan, join = (share * (paper - fixed) for share in (0.065, 0.16, 0.29, 0.13))
    x = margin
    a = x + segment + arrow
    ax = a + trapezoid + arrow / 2
    tile = ax + _CELL + fan
    plus_at = tile + sigma + join
    total = plus_at + plus + arrow
    b = total + _CELL + arrow / 2
    return _Columns(x, a, ax, tile, plus_at, total, b, b + trapezoid + arrow, trapezoid)


def _input(axes: Axes, at: _Columns, k: int, y: float) -> None:
    colour = _INPUTS[k]
    _segment(axes, at.x, y, colour, f"$X_{k + 1}$")
    _arrow(axes, at.x + 0.22, at.a, y)
    _trapezoid(axes, at.a, y, at.trapezoid, _SEGMENT, _VECTOR, colour, f"$A_{k + 1}$")
    axes.plot([at.a + at.trapezoid, at.ax], [y, y], color="black", lw=0.6)
    _vector(axes, at.ax, y, colour)


def _product(axes: Axes, at: _Columns, rows: list[float], j: int, k: int) -> None:
    """The line from A_k X_k to Σ_jk, and from there to the edge of the sum of row j."""
    y = rows[j] + _STEP * ((_BLOCKS - 1) / 2 - k)
    line: dict[str, Any] = {"color": _INPUTS[k], "lw": 0.9, "zorder": 0.5}
    axes.plot(
        [at.ax + _CELL, at.tile], [rows[k], y], ls=(0, (0.1, 1.7)), dash_capstyle="round", gid=f"line:{j + 1},{k + 1}",
        **line,
    )  # fmt: skip
    away = math.atan2(y - rows[j], at.tile + _TILE - at.plus - _RADIUS)
    edge = at.plus + _RADIUS * (1 + math.cos(away)), rows[j] + _RADIUS * math.sin(away)
    axes.plot([at.tile + _TILE, edge[0]], [y, edge[1]], gid=f"sum:{j + 1},{k + 1}", **line)
    axes.add_patch(Rectangle((at.tile, y - _TILE / 2), _TILE, _TILE, fc="white", ec=_SIGMA, lw=0.6))
    cell = _TILE / _RANK
    for i in range(_RANK):
        corner = at.tile + i * cell, y + _TILE / 2 - (i + 1) * cell
        axes.add_patch(
            Rectangle(corner, cell, cell, fc=_SIGMA, ec="none", alpha=(0.9, 0.45, 0.7, 0.3)[(i + j + 2 * k) % 4])
        )
    # Left of its diagonal, on white: the dotted line ends behind it.
    name = axes.text(at.tile - 0.03, y, f"$\\Sigma_{{{j + 1}{k + 1}}}$", size=6.5, ha="right", va="center_baseline")
    name.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.3})


def _output(axes: Axes, at: _Columns, j: int, y: float) -> None:
    radius = _RADIUS
    axes.add_patch(Circle((at.plus + radius, y), radius, fc="white", ec="black", lw=0.6, zorder=2))
    for dx, dy in ((0.042, 0.0), (0.0, 0.042)):
        axes.plot([at.plus + radius - dx, at.plus + radius + dx], [y - dy, y + dy], color="black", lw=0.7, zorder=3)
    _arrow(axes, at.plus + 2 * radius, at.total, y)
    _vector(axes, at.total, y, _OUTPUT)
    axes.plot([at.total + _CELL, at.b], [y, y], color="black", lw=0.6)
    _trapezoid(axes, at.b, y, at.trapezoid, _VECTOR, _SEGMENT, _OUTPUT, f"$B_{j + 1}$")
    _arrow(axes, at.b + at.trapezoid, at.y, y)
    _segment(axes, at.y, y, _OUTPUT, f"$Y_{j + 1}$")


def _words(axes: Axes, at: _Columns, paper: float, top: float, bottom: float) -> None:
    x, y = at.x + 0.11, at.y + 0.11
    a, sigma, b = at.a + at.trapezoid / 2, at.tile + _TILE / 2, at.b + at.trapezoid / 2
    grey: dict[str, Any] = {"size": 6.5, "color": "0.35"}
    heads = {x: "$X$", at.ax + _CELL / 2: "$A_kX_k$", sigma: "$\\odot\\,\\Sigma_{jk}$"}
    heads |= {at.plus + 0.075: "$\\sum_k$", y: "$Y$"}
    sizes = {x: "$n$", a: "$r\\times n/b$", sigma: "$r$ each", b: "$m/b\\times r$", y: "$m$"}
    costs = {a: "$nr$", (a + sigma) / 2: "+", sigma: "$b^2r$", (sigma + b) / 2: "+", b: "$mr$"}
    formula = {paper / 2: "$Y_j = B_j\\,\\sum_k\\,\\Sigma_{jk}\\,A_k X_k$"}
    rows: tuple[tuple[float, dict[float, str], dict[str, Any]], ...] = (
        (top + 0.1, heads, {"size": 8}),
        (bottom - 0.11, sizes, grey),
        (bottom - 0.3, costs, {"size": 8}),
        (bottom - 0.45, {sigma: "multiply-adds per token"}, grey),
        (0.19, formula, {"size": 8}),
    )
    for height, texts, look in rows:
        for where, text in texts.items():
            axes.text(where, height, text, ha="center", va="baseline", **look)


def _segment(axes: Axes, x: float, y: float, colour: str, label: str) -> None:
    axes.add_patch(Rectangle((x, y - _SEGMENT / 2), 0.22, _SEGMENT, fc=_pale(colour), ec=colour, lw=0.8))
    axes.text(x + 0.11, y, label, size=7.5, ha="center", va="center_baseline")


def _trapezoid(
    axes: Axes, x: float, y: float, length: float, left: float, right: float, colour: str, label: str
) -> None:
    corners = [(x, y - left / 2), (x, y + left / 2), (x + length, y + right / 2), (x + length, y - right / 2)]
    axes.add_patch(Polygon(corners, closed=True, fc=_pale(colour), ec=colour, lw=0.8, joinstyle="miter"))
    axes.text(x + length / 2, y, label, size=7.5, ha="center", va="center_baseline")


def _vector(axes: Axes, x: float, y: float, colour: str) -> None:
    for i in range(_RANK):
        corner = x, y + _VECTOR / 2 - (i + 1) * _CELL
        axes.add_patch(Rectangle(corner, _CELL, _CELL, fc=_pale(colour, 0.5), ec=colour, lw=0.5))


def _arrow(axes: Axes, start: float, end: float, y: float) -> None:
    how = {
        "arrowstyle": "-|>,head_length=0.25,head_width=0.11",
        "lw": 0.6,
        "color": "black",
        "shrinkA": 0,
        "shrinkB": 0,
    }
    axes.annotate("", (end, y), (start, y), arrowprops=how)


def _pale(colour: str, share: float = 0.22) -> str:
    """A share of the colour on white, without transparency: what lies behind does not show."""
    return style.mixed(colour, 1 - share)
