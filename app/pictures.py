"""Images of one update: |ΔW| by cells, Σ' and the S_k, without forming a large ΔW."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bora_analysis.updates.blocks import BlockProduct, DirectSum
from bora_analysis.updates.contract import Blocked, Update

Array = NDArray[Any]

#: Cells along each edge of an image, at most.
CELLS = 256
#: Columns of ΔW at a time.
TILE = 2048
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
    m, n = update.facts.out_features, update.facts.in_features
    b = update.facts.blocks
    rows, columns = (_edges(edge, b, cells) for edge in (m, n))
    sums = np.zeros((len(rows) - 1, n))
    for top, left, strip in _strips(update, rows):
        sums[np.searchsorted(rows, top, "right") - 1, left : left + strip.size] += strip
    totals = np.add.reduceat(sums, columns[:-1], axis=1)
    counts = np.diff(rows)[:, None] * np.diff(columns)[None, :]
    return Picture((totals / counts).astype(np.float32), (m, n), *_lines(update))


def middle(update: Blocked) -> Picture:
    """|Σ'| of eq. 6, averaged over cells where it is large."""
    sigma = np.abs(update.expanded().sigma)
    edges = _edges(len(sigma), 1, 2 * CELLS)
    sums = np.add.reduceat(np.add.reduceat(sigma, edges[:-1], 0), edges[:-1], 1)
    b = update.facts.blocks
    size = len(sigma)
    if isinstance(update, DirectSum):
        inner = np.cumsum([part.facts.r for part in update.parts])[:-1]
        lines = tuple(int(k) for k in inner) if b <= LINES else ()
    else:
        lines = tuple(range(size // b, size, size // b)) if 1 < b <= LINES else ()
    means = sums / (np.diff(edges)[:, None] * np.diff(edges)[None, :])
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


def _strips(update: Update, rows: Array) -> Iterator[tuple[int, int, Array]]:
    """Sums of |ΔW| down the rows of a strip within one cell: first row, first column, sums by column."""
    if isinstance(update, DirectSum):
        top = left = 0
        for part in update.parts:
            bottom = top + part.facts.out_features
            inner = rows[(rows > top) & (rows < bottom)] - top
            for start, column, sums in _strips(part, np.array([0, *inner, bottom - top])):
                yield top + start, left + column, sums
            top, left = bottom, left + part.facts.in_features
    elif isinstance(update, BlockProduct):
        tall = update.facts.out_features // len(update.B)
        A = np.ascontiguousarray(update.A, dtype=np.float32)
        for i, block in enumerate(update.B):
            cuts = np.unique([i * tall, *rows[(rows > i * tall) & (rows < (i + 1) * tall)], (i + 1) * tall])
            block = block.astype(np.float32)
            sigma = update.sigma[i].astype(np.float32)  # (b, r)
            # One buffer that stays in the cache: fresh memory for every strip was most of the time.
            strips = np.empty((len(A), int(np.diff(cuts).max()), min(A.shape[2], TILE)), np.float32)
            for start, stop in itertools.pairwise(cuts):
                piece = block[None, start - i * tall : stop - i * tall] * sigma[:, None, :]
                sums = np.empty((len(A), A.shape[2]), np.float32)
                for left in range(0, A.shape[2], TILE):
                    part = A[:, :, left : left + TILE]
                    strip = np.matmul(piece, part, out=strips[:, : stop - start, : part.shape[2]])  # (b, rows, tile)
                    np.abs(strip, out=strip).sum(axis=1, out=sums[:, left : left + TILE])
                yield int(start), 0, sums.ravel()
    else:
        left, right = (factor.astype(np.float32) for factor in update.factors())
        for start, stop in itertools.pairwise(rows):
            yield int(start), 0, np.abs(left[start:stop] @ right).sum(axis=0)


def _lines(update: Update) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(update, DirectSum):
        heights = np.cumsum([part.facts.out_features for part in update.parts])[:-1]
        widths = np.cumsum([part.facts.in_features for part in update.parts])[:-1]
        if len(update.parts) > LINES:
            return (), ()
        return tuple(map(int, heights)), tuple(map(int, widths))
    m, n, b = update.facts.out_features, update.facts.in_features, update.facts.blocks
    if not 1 < b <= LINES or not isinstance(update, BlockProduct):
        return (), ()
    return tuple(range(m // b, m, m // b)), tuple(range(n // b, n, n // b))
