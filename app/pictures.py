"""Images of one update: |ΔW| by cells, Σ' and the S_k, without forming a large ΔW."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bora_analysis.catalogue.sizes import padded_sizes
from bora_analysis.linalg import normalised
from bora_analysis.updates.blocks import BlockProduct, Cut, DirectSum
from bora_analysis.updates.contract import Blocked, Update

Array = NDArray[Any]

#: Cells along each edge of an image, at most.
CELLS = 256
#: Up to this r, and a quarter of a band's rows, squares are found from r × r products; beyond, strips are as quick.
GRAM = 64
#: Rows of a strip, where cells have fewer: a product of few rows takes twice as long for each of them.
ROWS = 128
#: Beyond this many blocks lines would cover the picture.
LINES = 64


@dataclass(frozen=True, eq=False)
class Picture:
    """A matrix as an image, and where its blocks end.

    Attributes
    ----------
    image : (p, q), the root mean square of the entries of each cell: |x| where a cell is one entry.
    size : m, n of the matrix.
    rows, columns : positions between blocks, in entries; empty for one block or very many.
    exact : whether a cell is one entry.
    """

    image: Array
    size: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def exact(self) -> bool:
        return self.image.shape == self.size


def magnitude(update: Update, cells: int = CELLS) -> Picture:
    """|ΔW|: the root mean square of each cell; the squares, by the sizes of the cells, add up to ‖ΔW‖_F².

    Cells end where blocks end, if there are no more blocks than cells. Cost for a LoRA of r ≤ 64: O((m + n + p q) r²)
    multiply-adds, where the entries of ΔW would be m n r. A larger r takes strips of ΔW in float32.
    """
    m, n, b = update.facts.out_features, update.facts.in_features, update.facts.blocks
    rows, columns = (_edges(edge, b, cells) for edge in (m, n))
    squares = np.zeros((len(rows) - 1, len(columns) - 1))
    for top, first, left, right in _bands(update):
        (down, below), (across, beside) = _within(rows, top, len(left)), _within(columns, first, right.shape[1])
        squares[down, across] += _squares(left, right, below, beside)
    heights, widths = [m], [n]
    if isinstance(update, DirectSum):
        each = [part.facts for part in update.parts]
        heights, widths = [one.out_features for one in each], [one.in_features for one in each]
    elif isinstance(update, BlockProduct):
        heights, widths = [m // b] * b, [n // b] * b
    elif isinstance(update, Cut):
        heights, widths = (list(filter(None, padded_sizes(size, b))) for size in (m, n))
    return Picture(_root_means(squares, rows, columns), (m, n), _between(heights), _between(widths))


def middle(update: Blocked) -> Picture:
    """|Σ'| of eq. 6; where it is large, the root mean square of each cell."""
    sigma = update.expanded().sigma
    size, b = len(sigma), update.facts.blocks
    edges = _edges(size, 1, 2 * CELLS)
    squares = np.add.reduceat(np.add.reduceat(sigma * sigma, edges[:-1], 0), edges[:-1], 1)
    lines = _between([part.facts.r for part in update.parts] if isinstance(update, DirectSum) else [size // b] * b)
    return Picture(_root_means(squares, edges, edges), (size, size), lines, lines)


def slot_tiles(update: Blocked) -> Picture | None:
    """The |S_k| beside each other in a grid, row by row; None where they are numbers, or too large."""
    found = update.slots()
    r, b = len(found), len(found[0])
    if b == 1 or any(len(slot) != b for slot in found) or r * b * b > 1 << 20:
        return None
    slots = np.abs(np.stack(found))
    across = next(k for k in range(1, r + 1) if r % k == 0 and k * k >= r)  # no empty place in the grid
    down = r // across
    image = slots.reshape(down, across, b, b).transpose(0, 2, 1, 3).reshape(down * b, across * b)
    return Picture(image.astype(np.float32), image.shape, tuple(range(b, down * b, b)), tuple(range(b, across * b, b)))


def _edges(length: int, blocks: int, cells: int) -> Array:
    """Ends of cells: a multiple of the blocks, so that no cell lies across two of them."""
    count = min(length, cells // blocks * blocks if blocks <= cells else cells)
    return np.round(np.linspace(0, length, count + 1)).astype(int)


def _within(edges: Array, start: int, length: int) -> tuple[slice, Array]:
    """The cells that a band of this length meets, and where they end in it."""
    cuts = np.unique(np.clip(edges - start, 0, length))
    place = int(np.searchsorted(edges, start, "right")) - 1
    return slice(place, place + len(cuts) - 1), cuts


def _squares(left: Array, right: Array, rows: Array, columns: Array) -> Array:
    """Sums of the squared entries of left · right in each cell.

    Of a cell with the factors L and R it is ‖L R‖_F² = tr(LᵀL · RRᵀ).
    """
    (left, scale), (right, also) = normalised(left), normalised(right)
    if left.shape[1] <= min(GRAM, len(left) // 4):
        sums = _grams(left, rows) @ _grams(right.T, columns).T
        return np.ldexp(np.fmax(sums, 0), 2 * (scale + also))  # rounding may lead below 0
    left, right = left.astype(np.float32), right.astype(np.float32)
    sums = np.empty((len(rows) - 1, right.shape[1]))
    together = max(1, ROWS // int(np.diff(rows).max()))
    buffer = np.empty((ROWS, right.shape[1]), np.float32)  # fresh memory for every strip took longer than the product
    for k in range(0, len(sums), together):
        ends = rows[k : k + together + 1] - rows[k]
        strip = left[rows[k] : rows[k] + ends[-1]]
        strip = np.matmul(strip, right, out=buffer[: len(strip)] if len(strip) <= ROWS else None)
        np.square(strip, out=strip)
        for cell, (start, end) in enumerate(pairwise(ends), k):
            sums[cell] = strip[start:end].sum(axis=0)
    return np.ldexp(np.add.reduceat(sums, columns[:-1], axis=1), 2 * (scale + also))


def _grams(factor: Array, edges: Array) -> Array:
    """(cells, r²): XᵀX of the rows X of each cell; all at once, so those with a row less have one of zeros."""
    heights = np.diff(edges)
    each = np.arange(heights.max())
    places = np.where(each < heights[:, None], edges[:-1, None] + each, len(factor))
    parts = np.concatenate([factor, np.zeros((1, factor.shape[1]))])[places]
    return np.matmul(parts.transpose(0, 2, 1), parts).reshape(len(heights), -1)


def _root_means(squares: Array, rows: Array, columns: Array) -> Array:
    return np.sqrt(squares / (np.diff(rows)[:, None] * np.diff(columns))).astype(np.float32)


def _bands(update: Update) -> Iterator[tuple[int, int, Array, Array]]:
    """ΔW as products left · right, of r columns where it has blocks: first row, first column, factors."""
    if isinstance(update, DirectSum):
        top = first = 0
        for part in update.parts:
            yield from ((top + row, first + column, left, right) for row, column, left, right in _bands(part))
            top, first = top + part.facts.out_features, first + part.facts.in_features
    elif isinstance(update, BlockProduct):
        B, sigma, A = (factor.astype(float) for factor in (update.B, update.sigma, update.A))
        for i, left in enumerate(B):
            right = (sigma[i, :, :, None] * A).transpose(1, 0, 2).reshape(A.shape[1], -1)
            yield i * len(left), 0, left, right
    else:
        left, right = (factor.astype(float) for factor in update.factors())
        yield 0, 0, left, right


def _between(sizes: Sequence[int]) -> tuple[int, ...]:
    """Where blocks of these sizes meet; nothing for more of them than are drawn."""
    return tuple(np.cumsum(sizes)[:-1].tolist()) if len(sizes) <= LINES else ()
