"""Figure 1: ΔW as block products, from real factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .. import metrics, style
from ..analysis.spectrum import factor_ranks, singular_values
from ..linalg import NotFiniteError
from ..updates.blocks import bora, lora, melora
from ..updates.contract import Blocked, Update
from . import data, page
from . import drawing as layout

Array = NDArray[Any]

_LEFT, _RIGHT, _GAP = 0.36, 0.54, 0.12  # inches: names of the B_i; colour bars; between two panels
_EDGE = 0.14  # inches: beside a first panel without such names
_LEAST, _MOST = 0.62, 1.5  # inches: side of a panel; below, the ranks beneath two panels would touch
_CELLS = 192  # more along a side would be smaller than a printer's dot

_COLOURS = "YlGnBu"  # near white at 0, even lightness, and sound under colour blindness

# Block (i, j) of ΔW, by method.
_FORMULAS = {"lora": "$B\\,A$", "melora": "$B_i\\,A_i$, else 0", "bora": "$B_i\\,\\Sigma_{ij}\\,A_j$"}


@dataclass(frozen=True, eq=False)
class Picture:
    """One column of the figure: |ΔW| and |Σ'|, in cells, and what is written beside them."""

    name: str
    formula: str
    weights: Array  # (p, q), p ≤ m and q ≤ n
    sigma: Array  # (k, k), k ≤ br
    blocks: int
    parted: bool  # whether ΔW consists of blocks: those of LoRA are only a way to see it
    rank: int
    bound: int
    sigma_rank: int


def example(size: int = 96, r: int = 4, blocks: int = 3, seed: int = 0) -> dict[str, Blocked]:
    """LoRA, MELoRA and BoRA with the same B and A; σ as BoRA starts.

    The columns of B and the rows of A are smooth, so that the eye can follow them through the blocks: under LoRA the
    blocks fit together, under BoRA they no longer do.

    Parameters
    ----------
    size : m = n. r : rank of the pair. blocks : b, a divisor of ``size``.
    """
    rng = np.random.default_rng(seed)
    waves = np.arange(1, 13)
    along = np.pi * (np.arange(size) + 0.5) / size
    basis = np.cos(np.outer(along, waves))  # (size, 12)
    B = basis @ rng.standard_normal((waves.size, r)) / np.sqrt(waves.size)
    A = (basis @ rng.standard_normal((waves.size, r)) / np.sqrt(waves.size)).T
    bound = 1 / np.sqrt(blocks * r)  # Kaiming-uniform, a = √5
    sigma = rng.uniform(-bound, bound, (blocks, blocks, r))
    return {
        "LoRA": lora(B, A),
        "MELoRA": melora(np.split(B, blocks), np.split(A, blocks, axis=1)),
        "BoRA": bora(B, A, sigma),
    }


@page.in_style
def figure1(
    updates: Any = None,
    *,
    width: str = "neurips",
    font: str | None = None,
    title: str | None = None,
    labels: data.Labels | None = None,
) -> Figure:
    """|ΔW| with its blocks, and Σ' of ΔW = B'Σ'A' (eq. 6), for each update, as figure 1 of BoRA (arXiv 2508.06953).

    Beneath |ΔW| its rank (``numerical_rank``) and the bound; beneath Σ' its rank Σ_k rank(S_k). LoRA is one block:
    its ΔW has no grid, and next to updates with more its Σ' is that of BoRA with their b and every Σ_ij = I, which
    gives the same ΔW.

    Parameters
    ----------
    updates : label → factors of one module (:class:`Update`), at most 6 of them (3 on a narrow page), or adapters or
        paths, whose first module is shown; by default those of :func:`example`. Above 192 rows or columns a cell of
        |ΔW| is the mean of several entries, and one of Σ' the largest (most entries are 0).
    width, font, title, labels : see :mod:`bora_analysis.figures`.

    Notes
    -----
    Entries that are exactly 0 are white. The panels of a row share one colour scale, unless one of them would then
    be all but white: each is then drawn relative to its own largest entry, as the colour bar says.
    """
    updates = _updates(updates)
    names = data.relabelled(updates, labels)
    updates = {names.get(name, name): update for name, update in updates.items()}
    paper = page.inches(width)
    most = int((paper - _LEFT - _RIGHT + _GAP) / (_LEAST + _GAP))
    if not 1 <= len(updates) <= most:
        raise ValueError(f"figure1 shows 1 to {most} updates side by side at width {width}; got {len(updates)}")
    pictures = _pictures(updates)

    room = paper - _LEFT - _RIGHT - _GAP * (len(pictures) - 1)
    side = min(room / len(pictures), _MOST)
    left = _LEFT + (room - side * len(pictures)) / 2
    size, heads = _names([picture.name for picture in pictures], side + 0.8 * _GAP)
    head, foot, small = 0.44 if title is None else 0.66, 0.22, 0.7 * side
    middle = 0.26 if side > 1.1 else 0.38
    height = head + side + middle + small + foot
    figure = page.PaperFigure(figsize=(paper, height))
    rows = (
        ("weights", [each.weights for each in pictures], "entry |ΔW|", height - head - side, side),
        ("sigma", [each.sigma for each in pictures], "entry |Σ'|", foot, small),
    )
    # The names of the B_i stand left of the first panel that has blocks, in the room that is else at the left end.
    leader = next((k for k, each in enumerate(pictures) if each.parted), 0)
    places = [left + k * (side + _GAP) - (_LEFT - _EDGE if k < leader else 0) for k in range(len(pictures))]
    for what, grids, words, bottom, edge in rows:
        tops = [float(grid.max()) for grid in grids if grid.any()] or [1.0]
        top = max(tops)
        shared = min(tops) >= top / 20
        scale = ScalarMappable(_norm(top if shared else 1.0), _COLOURS)
        for k, (picture, grid) in enumerate(zip(pictures, grids, strict=True)):
            x = places[k] + (side - edge) / 2
            axes = figure.add_axes((x / paper, bottom / height, edge / paper, edge / height))
            lines = picture.blocks if picture.parted or what == "sigma" else 1
            _panel(axes, grid, lines, _norm(top if shared else float(grid.max())), edge)
            axes.set_gid(f"{what}:{picture.name}")
            options: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "top"}
            if what == "weights":
                parts = f"rank {picture.rank}", f"(bound {picture.bound})"
                axes.text(0.5, -0.04, (" " if side > 1.1 else "\n").join(parts), size=7, **options)
                above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center"}
                axes.annotate(layout.escaped(heads[k]), (0.5, 1), (0, 22), size=size, **above)
                axes.annotate(picture.formula, (0.5, 1), (0, 13), size=7, **above)
                if picture.parted:
                    _block_names(axes, picture.blocks, edge, first=k == leader)
            else:
                axes.text(0.5, -0.06, f"rank {picture.sigma_rank}", size=7, **options)
        x = left + len(pictures) * (side + _GAP) - _GAP + 0.08
        beside = figure.add_axes((x / paper, bottom / height, 0.07 / paper, edge / height))
        bar = figure.colorbar(scale, cax=beside)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.locator = MaxNLocator(4)
        beside.tick_params(width=0.4, length=2, labelsize=6, pad=1.5)
        bar.set_label(words if shared else f"{words}, share of each largest", size=6.5, labelpad=2)
    if title is not None:
        figure.suptitle(layout.escaped(title), y=1 - 0.05 / height, va="top")
    return figure


def _updates(given: Any) -> dict[str, Update]:
    """Label → factors, of a mapping of them, of one, of adapters or paths, or of nothing."""
    if given is None:
        return dict(example())
    if hasattr(given, "facts"):
        return {style.method_look(given.facts.method).label: given}
    if isinstance(given, dict) and all(hasattr(each, "facts") for each in given.values()):
        return given
    from ..analysis.given import adapters_of

    last = {adapter.name: adapter for adapter in adapters_of(given)}
    return {name: adapter[next(iter(adapter))] for name, adapter in last.items()}


def _names(names: list[str], room: float) -> tuple[float, list[str]]:
    """Font size, and names cut to what fits into ``room`` inches, still different from one another."""
    for size in (8.0, 6.5):
        widest = max(layout.text_width(name, size) for name in names)
        if widest <= room:
            return size, names
    # Letters differ in width: a little less than their share of the room.
    limit = int(0.92 * max(map(len, names)) * room / widest)
    return 6.5, style.shortened(names, max(limit, 6))


def _pictures(updates: Mapping[str, Update]) -> list[Picture]:
    most = max(update.facts.blocks for update in updates.values())
    pictures = []
    for name, update in updates.items():
        if not isinstance(update, Blocked):
            raise ValueError(f"figure1 shows B', Σ', A', and {name} ({update.facts.method}) has none; leave it out")
        facts, (B, sigma, A) = update.facts, update.expanded()
        blocks = facts.blocks
        if blocks == 1 and most > 1 and facts.out_features % most == 0 and facts.in_features % most == 0:
            shown, blocks = np.tile(sigma, (most, most)), most
        else:
            shown = sigma
        try:
            values = singular_values(update)
        except NotFiniteError as error:
            raise ValueError(f"{name}: {error}") from None
        pictures.append(
            Picture(
                name=name,
                formula=_FORMULAS.get(
                    "lora" if facts.method == "rslora" else facts.method, style.method_look(facts.method).label
                ),
                weights=_means(B, sigma @ A, blocks),
                sigma=_largest(np.abs(shown)),
                blocks=blocks,
                parted=facts.blocks > 1,
                rank=metrics.numerical_rank(values, metrics.rounding_tolerance(values)),
                bound=facts.rank_bound,
                sigma_rank=factor_ranks(update).sigma,
            )
        )
    return pictures


def _edges(size: int, blocks: int) -> Array:
    """Where cells begin along a side; a cell never reaches over the border of a block."""
    cells = size if size <= _CELLS else max(blocks, _CELLS // blocks * blocks)
    return np.arange(cells) * size // cells


def _means(left: Array, right: Array, blocks: int) -> Array:
    """Mean of |left · right| over the cells, some rows at a time: a large ΔW never stands in memory."""
    rows, columns = _edges(len(left), blocks), _edges(right.shape[1], blocks)
    widths = np.diff(columns, append=right.shape[1])
    out = np.empty((rows.size, columns.size))
    for k, part in enumerate(np.split(left, rows[1:])):
        out[k] = np.add.reduceat(np.abs(part @ right).mean(axis=0), columns) / widths
    return out


def _largest(matrix: Array) -> Array:
    starts = _edges(len(matrix), 1)
    return np.maximum.reduceat(np.maximum.reduceat(matrix, starts, axis=0), starts, axis=1)


def _norm(top: float) -> Normalize:
    """From 0 to ``top``; the small entries, which are many, get more than their share of the colours."""
    return PowerNorm(0.7, 0, top or 1.0)


def _panel(axes: Axes, grid: Array, blocks: int, norm: Normalize, edge: float) -> None:
    shown = np.ma.masked_equal(grid, 0.0)
    axes.patch.set_facecolor("white")
    p, q = grid.shape
    axes.imshow(shown, cmap=_COLOURS, norm=norm, interpolation="nearest", aspect="auto", extent=(0, q, p, 0))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    if blocks > 1 and edge / blocks > 0.04:
        ink = {"color": "0.45", "lw": 0.5 if edge / blocks > 0.2 else 0.3}
        for k in range(1, blocks):  # those of a padded layer have ⌈p/b⌉ rows, as far as there are any
            axes.axhline(min(p, k * -(-p // blocks)), **ink)
            axes.axvline(min(q, k * -(-q // blocks)), **ink)


def _block_names(axes: Axes, blocks: int, edge: float, *, first: bool) -> None:
    if blocks == 1 or edge / blocks < 0.2:
        return
    options: dict[str, Any] = {"textcoords": "offset points", "xycoords": "axes fraction", "size": 6, "color": "0.3"}
    for k in range(blocks):
        at = (k + 0.5) / blocks
        axes.annotate(f"$A_{{{k + 1}}}$", (at, 1), (0, 2.5), ha="center", **options)
        if first:
            axes.annotate(f"$B_{{{k + 1}}}$", (0, 1 - at), (-3, 0), ha="right", va="center", **options)
