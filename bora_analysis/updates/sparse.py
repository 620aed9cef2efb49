"""FourierFT, WaveFT, SHiRA, Super-Tuning: few entries, with one core per connected component of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..catalogue.dtypes import LEAST
from ..linalg import Array, norm
from .checks import factor
from .contract import FactorError, Facts
from .sums import Arithmetic


@dataclass(frozen=True, eq=False, repr=False)
class SparseUpdate(Arithmetic):
    """A matrix of few entries S, or ΔW = F_m S F_nᵀ with unitary F, so that σ(ΔW) = σ(S).

    In the Fourier basis S is symmetric, S[−k, −l] = S[k, l], which makes ΔW real.
    """

    facts: Facts
    rows: Array  # (k,) whole numbers; entries at one place have been added
    columns: Array  # (k,)
    entries: Array  # (k,) float64
    components: tuple[Array, ...]  # indices of the entries of each connected component
    transform: Callable[[Array], Array] | None = None  # S → F_m S F_nᵀ
    unit: float = 1.0  # entry of a stored 1

    def cores(self) -> list[Array]:
        """One dense matrix per connected component of the graph of rows and columns with an entry between them.

        After sorting rows and columns by component S is block-diagonal. Random entries fewer than rows and columns
        make many small components (Erdős & Rényi), more of them one large.
        """
        stacks: dict[tuple[int, ...], list[Array]] = {}
        for own in self.components:
            block = _block(self.entries[own], self.rows[own], self.columns[own])
            stacks.setdefault(block.shape, []).append(block)
        return [np.stack(blocks) for blocks in stacks.values()]

    def rounding(self) -> float:
        return norm(np.hypot(self.entries, LEAST.get(self.facts.dtype, 0.0) * self.unit))

    def to_dense(self) -> Array:
        m, n = self.facts.out_features, self.facts.in_features
        S = np.zeros((m, n))
        S[self.rows, self.columns] = self.entries
        return self.transform(S) if self.transform else S


def _fourier(S: Array) -> Array:
    return np.fft.ifft2(S, norm="ortho").real


def fourierft(
    spectrum: Any,
    rows: Any,
    columns: Any,
    shape: tuple[int, int],
    *,
    scaling: float = 1.0,
    dtype: str | None = None,
) -> SparseUpdate:
    """ΔW = scaling · Re(ifft2(S)) with S[rows, columns] = spectrum, FourierFT (arXiv 2405.03003).

    Re(ifft2(S)) is ifft2 of (S[k, l] + S[−k, −l]) / 2, which is as sparse as S.

    Parameters
    ----------
    spectrum : (k,) real numbers. rows, columns : (k,) where they stand, no place twice. shape : (m, n) of ΔW.
    scaling, dtype : as for :func:`bora_analysis.updates.blocks.lora`.

    Examples
    --------
    >>> fourierft([6.0], [0], [0], (2, 3)).to_dense().round(9).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    values, i, j, stored = _places(spectrum, rows, columns, shape, dtype)
    m, n = shape
    i, j = np.concatenate([i, -i % m]), np.concatenate([j, -j % n])
    # ifft2 divides by mn, the unitary transform by √(mn).
    unit = 0.5 * scaling / np.sqrt(m * n)
    halves = np.concatenate([values, values]) * unit
    place, index = np.unique(i * n + j, return_inverse=True)
    i, j, entries = place // n, place % n, np.bincount(index, weights=halves)
    components = _components(i, j)
    bound = _sparse_bound(i, j, components)
    facts = Facts("fourierft", m, n, values.size, 1, float(scaling), values.size, m * n, bound, stored)
    return SparseUpdate(facts, i, j, entries, components, _fourier, unit)


def shira(
    weight: Any, rows: Any, columns: Any, shape: tuple[int, int], *, method: str = "shira", dtype: str | None = None
) -> SparseUpdate:
    """ΔW of few entries in fixed places, SHiRA (arXiv 2406.13175). Parameters as for :func:`fourierft`.

    Examples
    --------
    >>> update = shira([3.0, 2.0], [0, 1], [2, 2], (2, 4))
    >>> update.to_dense().tolist(), update.facts.rank_bound
    ([[0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 2.0, 0.0]], 1)
    """
    values, i, j, stored = _places(weight, rows, columns, shape, dtype)
    m, n = shape
    components = _components(i, j)
    facts = Facts(
        method=method,
        out_features=m,
        in_features=n,
        r=max(1, values.size // (m + n)),
        blocks=1,
        scaling=1.0,
        parameters=values.size,
        macs_per_token=values.size,
        rank_bound=_sparse_bound(i, j, components),
        dtype=stored,
        support_rows=np.unique(i).size,
        support_columns=np.unique(j).size,
    )
    return SparseUpdate(facts, i, j, values.astype(np.float64), components)


def _places(
    values: Any, rows: Any, columns: Any, shape: tuple[int, int], dtype: str | None
) -> tuple[Array, Array, Array, str]:
    found, stored = factor("spectrum", values, 1, dtype)
    i, j = np.asarray(rows, dtype=np.int64), np.asarray(columns, dtype=np.int64)
    if i.shape != found.shape or j.shape != found.shape:
        raise FactorError("spectrum", f"has {found.size} numbers for {i.size} rows and {j.size} columns")
    if min(i.min(), j.min()) < 0 or i.max() >= shape[0] or j.max() >= shape[1]:
        raise FactorError(
            "spectrum", f"has places up to row {i.max()}, column {j.max()}; expected inside {shape[0]} × {shape[1]}"
        )
    if np.unique(i * shape[1] + j).size < i.size:
        raise FactorError("spectrum", "has two numbers for one place")
    return found, i, j, stored


def _components(rows: Array, columns: Array) -> tuple[Array, ...]:
    """Indices of the entries of each connected component of the graph of rows and columns."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    top, i = np.unique(rows, return_inverse=True)
    side, j = np.unique(columns, return_inverse=True)
    size = top.size + side.size
    graph = coo_array((np.ones(i.size, np.int8), (i, top.size + j)), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    order = np.argsort(label[i], kind="stable")
    return tuple(np.split(order, np.flatnonzero(np.diff(label[i][order])) + 1))


def _block(entries: Array, rows: Array, columns: Array) -> Array:
    if entries.size == 1:
        return entries.reshape(1, 1)
    (top, i), (side, j) = (np.unique(index, return_inverse=True) for index in (rows, columns))
    out = np.zeros((top.size, side.size))
    out[i, j] = entries
    return out


def _sparse_bound(rows: Array, columns: Array, components: tuple[Array, ...]) -> int:
    return sum(
        1 if own.size == 1 else min(np.unique(rows[own]).size, np.unique(columns[own]).size) for own in components
    )
