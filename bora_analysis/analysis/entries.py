"""What the entries of ΔW are like, through the factors: sums of their powers, energies of its rows and columns.

With ΔW = B A the squares of the entries are (B ⊙ B)(A ⊙ A), the products of all pairs of columns of B and of rows of A
(Khatri-Rao), so that Σw⁴ = ⟨(B ⊙ B)ᵀ(B ⊙ B), (A ⊙ A)(A ⊙ A)ᵀ⟩ and Σw³ = ⟨Bᵀ(B ⊙ B), A(A ⊙ A)ᵀ⟩: r(r+1)/2 columns and no
m × n matrix. Of BoRA's blocks each has its own diagonal between the same matrices. Where r is so large that this costs
more than the entries themselves, they are made and summed a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from ..linalg import Array, normalised
from ..metrics import Entries
from ..updates.blocks import DirectSum
from ..updates.circulant import BlockCirculant
from ..updates.contract import Update
from ..updates.dense import Dense
from ..updates.kronecker import KroneckerProduct
from ..updates.sparse import SparseUpdate
from ..updates.sums import BlockProduct, balanced

#: Numbers of a tile of ΔW.
TILE = 1 << 18
_POWERS = np.arange(1, 5)


def entries(update: Update) -> Entries:
    """Sums of powers of the entries, and the energies of rows and columns, of one update.

    Cost for factors of r columns: O((m + n) r⁴ / 4), or O(mnr) where that is less.

    Returns
    -------
    Entries

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora
    >>> found = entries(lora(np.array([[1.0], [2.0]]), np.array([[1.0, 0.0, 3.0]])))
    >>> (found.sums * 2.0 ** (found.power * np.arange(1, 5))).tolist(), found.size
    ([12.0, 50.0, 252.0, 1394.0], 6)
    """
    if isinstance(update, BlockProduct):
        return _of_blocks(update)
    if isinstance(update, DirectSum):
        return _diagonal([entries(part) for part in update.parts], update.shape)
    if isinstance(update, KroneckerProduct):
        one, two = entries(update.first), entries(update.second)
        rows, columns = np.kron(one.rows, two.rows), np.kron(one.columns, two.columns)
        return Entries(one.size * two.size, one.sums * two.sums, rows, columns, one.power + two.power)
    if isinstance(update, BlockCirculant):
        kernel, power = _scaled(update.kernel)  # each of its numbers stands in b places
        b = kernel.shape[2]
        squares = (kernel**2).sum(axis=2)
        rows, columns = np.repeat(squares.sum(axis=1), b), np.repeat(squares.sum(axis=0), b)
        return Entries(math.prod(update.shape), b * _sums(kernel), rows, columns, power)
    if isinstance(update, SparseUpdate) and update.transform is None:
        values, power = _scaled(update.entries)
        rows = np.bincount(update.rows, values**2, update.shape[0])
        columns = np.bincount(update.columns, values**2, update.shape[1])
        return Entries(math.prod(update.shape), _sums(values), rows, columns, power)
    left, right = update.factors()
    if isinstance(update, Dense) or left.shape[1] == min(update.shape):
        whole, power = _scaled(update.to_dense())
        return _tiled([whole], update.shape, power)
    (left, one), (right, two) = _scaled(left), _scaled(right)
    step = max(1, TILE // right.shape[1])
    tiles = (left[start : start + step] @ right for start in range(0, len(left), step))
    return _tiled(tiles, update.shape, one + two)


def _of_blocks(update: BlockProduct) -> Entries:
    B, sigma, A, power = balanced(update.B, update.sigma, update.A)
    b, p, r = B.shape
    q, (m, n) = A.shape[2], update.shape
    pairs = r * (r + 1) // 2
    if (m + n) * pairs**2 > m * n * (r + 20):
        return _tiled(_rows_of(B, sigma, A), update.shape, power)
    A = A.transpose(0, 2, 1)  # (b, q, r)
    G, H = B.transpose(0, 2, 1) @ B, A.transpose(0, 2, 1) @ A
    squares = sigma[..., :, None] * sigma[..., None, :]  # (b, b, r, r)
    rows = ((B @ (squares * H).sum(axis=1)) * B).sum(axis=2)
    columns = ((A @ (squares * G[:, None]).sum(axis=0)) * A).sum(axis=2)
    one, two = np.triu_indices(r)
    twice = np.where(one == two, 1.0, 2.0)
    K, L = (np.ascontiguousarray(X[..., one] * X[..., two]) for X in (B, A))
    weights = twice * sigma[..., one] * sigma[..., two]  # (b, b, pairs)
    first = np.einsum("ik,ijk,jk->", B.sum(axis=1), sigma, A.sum(axis=1), optimize=True)
    third = fourth = 0.0
    three, four = A.transpose(0, 2, 1) @ L, L.transpose(0, 2, 1) @ L
    for i in range(b):
        own = weights[i]
        third += float(np.vdot(B[i].T @ K[i], np.einsum("jk,jp,jkp->kp", sigma[i], own, three, optimize=True)))
        fourth += float(np.vdot(K[i].T @ K[i], np.einsum("jp,jq,jpq->pq", own, own, four, optimize=True)))
    sums = np.array([float(first), float(rows.sum()), third, fourth])
    return Entries(b * p * b * q, sums, rows.ravel(), columns.ravel(), power)


def _rows_of(B: Array, sigma: Array, A: Array) -> Iterator[Array]:
    """ΔW, a few rows at a time."""
    for left, middle in zip(B, sigma, strict=True):
        right = (middle.T[:, :, None] * A.transpose(1, 0, 2)).reshape(B.shape[2], -1)
        step = max(1, TILE // right.shape[1])
        for start in range(0, len(left), step):
            yield left[start : start + step] @ right


def _tiled(tiles: Iterable[Array], shape: tuple[int, int], power: int) -> Entries:
    rows, columns, sums = [], np.zeros(shape[1]), np.zeros(4)
    for tile in tiles:
        square = tile * tile
        rows.append(square.sum(axis=1))
        columns += square.sum(axis=0)
        flat = square.ravel()
        sums += [tile.sum(), flat.sum(), np.dot(flat, tile.ravel()), np.dot(flat, flat)]
    return Entries(math.prod(shape), sums, np.concatenate(rows), columns, power)


def _diagonal(parts: list[Entries], shape: tuple[int, int]) -> Entries:
    """Parts along the diagonal, zeros elsewhere."""
    power = max(part.power for part in parts)
    sums = sum(part.sums * 2.0 ** ((part.power - power) * _POWERS) for part in parts)
    rows, columns = (
        np.concatenate([getattr(part, side) * 4.0 ** (part.power - power) for part in parts])
        for side in ("rows", "columns")
    )
    return Entries(math.prod(shape), np.asarray(sums), rows, columns, power)


def _sums(values: Array) -> Array:
    return np.array([float((values**k).sum()) for k in _POWERS])


def _scaled(X: Array) -> tuple[Array, int]:
    """The numbers with the largest about 1, and the power of two that they lack."""
    Y, power = normalised(X.astype(np.float64, copy=False))
    return Y, int(power.item())
