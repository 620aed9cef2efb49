"""Images of one update: |ΔW| by cells, Σ' and the S_k, without forming a large ΔW."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bora_analysis.updates.blocks import BlockProduct, DirectSum
from bora_analysis.updates.contract import Blocked, Update

Array = NDArray[Any]

#: Cells along each edge of an image, at most.
CELLS = 256
#: Columns of ΔW at a time, and rows where cells have fewer: what stays in the processor's cache.
TILE, ROWS = 1024, 128
#: Beyond this many blocks lines would cover the picture.
LINES = 64


@dataclass(frozen=True, eq=False)
class Picture:
    """A matrix as an image, and where its blocks end.

    Attributes
    ----------
    image : (p, q), the mean of |x| over the entries of each cell.
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
    """|ΔW|, averaged over cells, strip by strip in float32: at no time is more than a few rows of ΔW there.

    Cells end where blocks end, if there are no more blocks than cells. Cost: O(m n r) multiply-adds, and memory for
    m/cells rows.
    """
    m, n, b = update.facts.out_features, update.facts.in_features, update.facts.blocks
    rows, columns = (_edges(edge, b, cells) for edge in (m, n))
    sums = np.zeros((len(rows) - 1, n))
    for top, first, left, right in _bands(update):
        cuts = np.unique(np.clip(rows - top, 0, len(left)))
        heights = np.diff(cuts)
        # Cells of one height go together: a product of few rows takes twice as long for each of them.
        together = max(1, ROWS // int(heights[0])) if (heights == heights[0]).all() else 1
        # One buffer that stays in the cache: fresh memory for every strip was most of the time.
        buffer = np.empty(int(heights.max()) * together * min(right.shape[1], TILE), np.float32)
        for k in range(0, len(heights), together):
            ends = cuts[k : k + together + 1]
            count, here = len(ends) - 1, slice(ends[0], ends[-1])
            place = np.searchsorted(rows, top + ends[0], "right") - 1
            cells_here = sums[place : place + count, first:]
            for column in range(0, right.shape[1], TILE):
                tile = right[:, column : column + TILE]
                size = ends[-1] - ends[0], tile.shape[1]
                strip = np.matmul(left[here], tile, out=buffer[: size[0] * size[1]].reshape(size))
                added = np.abs(strip, out=strip).reshape(count, -1, size[1]).sum(axis=1)
                cells_here[:, column : column + size[1]] += added
    totals = np.add.reduceat(sums, columns[:-1], axis=1)
    counts = np.diff(rows)[:, None] * np.diff(columns)[None, :]
    heights, widths = [m], [n]
    if isinstance(update, DirectSum):
        each = [part.facts for part in update.parts]
        heights, widths = [one.out_features for one in each], [one.in_features for one in each]
    elif isinstance(update, BlockProduct):
        heights, widths = [m // b] * b, [n // b] * b
    return Picture((totals / counts).astype(np.float32), (m, n), _between(heights), _between(widths))


def middle(update: Blocked) -> Picture:
    """|Σ'| of eq. 6, averaged over cells where it is large."""
    sigma = np.abs(update.expanded().sigma)
    size, b = len(sigma), update.facts.blocks
    edges = _edges(size, 1, 2 * CELLS)
    sums = np.add.reduceat(np.add.reduceat(sigma, edges[:-1], 0), edges[:-1], 1)
    means = sums / (np.diff(edges)[:, None] * np.diff(edges)[None, :])
    lines = _between([part.facts.r for part in update.parts] if isinstance(update, DirectSum) else [size // b] * b)
    return Picture(means.astype(np.float32), (size, size), lines, lines)


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


def _bands(update: Update) -> Iterator[tuple[int, int, Array, Array]]:
    """ΔW as products left · right in float32, of r columns where it has blocks: first row, first column, factors."""
    if isinstance(update, DirectSum):
        top = first = 0
        for part in update.parts:
            yield from ((top + row, first + column, left, right) for row, column, left, right in _bands(part))
            top, first = top + part.facts.out_features, first + part.facts.in_features
    elif isinstance(update, BlockProduct):
        B, sigma, A = (factor.astype(np.float32) for factor in (update.B, update.sigma, update.A))
        for i, left in enumerate(B):
            right = (sigma[i, :, :, None] * A).transpose(1, 0, 2).reshape(A.shape[1], -1)
            yield i * len(left), 0, left, right
    else:
        left, right = (factor.astype(np.float32) for factor in update.factors())
        yield 0, 0, left, right


def _between(sizes: Sequence[int]) -> tuple[int, ...]:
    """Where blocks of these sizes meet; nothing for more of them than are drawn."""
    return tuple(np.cumsum(sizes)[:-1].tolist()) if len(sizes) <= LINES else ()
