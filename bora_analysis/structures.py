"""Updates of the other methods, each with the smallest core that has the singular values of its ΔW.

========== ============================================ ==============================================
method     ΔW                                           core
========== ============================================ ==============================================
a diagonal B diag(d) A: AdaLoRA, VeRA, DeLoRA …         r×r, as LoRA's
a sum      Σ w_k L_k R_k: mixtures, differences         of the concatenated factors, as LoRA's
LoHa       (w1a w1b) ⊙ (w2a w2b)                        r²×r², of the Khatri–Rao factors
LoKr       w1 ⊗ w2                                      none: all products σ_i(w1) σ_j(w2)
C³A        block-circulant                              one per frequency, m/b × n/b
sparse     few entries, also in the Fourier basis       one per connected component of the entries
========== ============================================ ==============================================

The contract is that of :class:`bora_analysis.delta.Update`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .delta import (
    Array,
    BlockProduct,
    FactorError,
    Facts,
    Update,
    coarsest,
    dense,
    factor,
    lora,
    triangle,
    trivial_factors,
)


def diagonal(
    B: Any,
    d: Any,
    A: Any,
    *,
    method: str,
    scaling: float = 1.0,
    parameters: int | None = None,
    dtype: str | None = None,
) -> BlockProduct:
    """ΔW = scaling · B diag(d) A.

    Parameters
    ----------
    B : (m, r). d : (r,). A : (r, n).
    parameters : trained numbers; default those of all three.
    method, scaling, dtype : as for :func:`bora_analysis.delta.lora`.

    Raises
    ------
    FactorError
        Wrong shape, or NaN or Inf in a factor.

    Examples
    --------
    >>> update = diagonal(np.eye(3, 2), [3.0, 2.0], np.eye(2, 4), method="adalora")
    >>> update.to_dense().diagonal().tolist(), update.facts.parameters
    ([3.0, 2.0, 0.0], 16)
    """
    update = lora(B, A, scaling=scaling, method=method, dtype=dtype, any_rank=True)
    values, stored = factor("d", d, 1, dtype)
    facts = update.facts
    if values.shape != (facts.r,):
        raise FactorError("d", f"has shape {values.shape}; expected ({facts.r},) from B and A")
    facts = replace(
        facts,
        parameters=facts.parameters + facts.r if parameters is None else parameters,
        macs_per_token=facts.macs_per_token + facts.r,
        dtype=coarsest((facts.dtype, stored)),
    )
    return replace(update, facts=facts, sigma=update.sigma * values.astype(np.float64))


def combine(
    updates: Sequence[Update], weights: Sequence[float] | None = None, *, method: str | None = None
) -> BlockProduct:
    """ΔW = Σ_k w_k ΔW_k, through the concatenated factors [w_1 L_1 | w_2 L_2 …] and [R_1; R_2 …].

    A difference of two adapters, ReLoRA's sum, the mean of experts. The rank is at most the sum of the ranks. The
    factors stay apart even where they are as many as rows or columns: what cancels between them tells how much of the
    sum is rounding.

    Parameters
    ----------
    updates : of one shape and kind of layer, at least one.
    weights : one per update; default all 1.
    method : the name in tables; default that of the updates, joined by +.

    Returns
    -------
    BlockProduct
        With r = the summed inner sizes of the factors, scaling 1 (weights and scalings are in the factors), and the
        parameters and multiply-adds of the parts together. The rank bound, and the rows and columns that the update can
        change, are the sums of theirs, at most min(m, n), m and n.

    Raises
    ------
    ValueError
        No updates, different shapes or kinds, or another number of weights.

    Examples
    --------
    >>> one = lora(np.ones((3, 1)), np.ones((1, 2)))
    >>> combine([one, one], [1.0, -1.0]).to_dense().any()
    np.False_
    """
    weights = [1.0] * len(updates) if weights is None else [float(w) for w in weights]
    each = [update.facts for update in updates]
    shapes = list(dict.fromkeys((f.out_features, f.in_features, f.kind, f.kernel) for f in each))
    if len(shapes) != 1 or len(weights) != len(updates):
        listed = ", ".join(
            f"{m}×{n}" + ("" if kind == "linear" else f" ({kind} {'×'.join(map(str, kernel))})")
            for m, n, kind, kernel in shapes
        )
        raise ValueError(
            f"cannot add updates of shapes {listed or 'none'} with {len(weights)} weights; expected one shape and kind"
        )
    pairs = [update.factors() for update in updates]
    total = lora(
        np.concatenate([w * left for w, (left, _) in zip(weights, pairs, strict=True)], axis=1),
        np.concatenate([right for _, right in pairs]),
        method=method or "+".join(dict.fromkeys(facts.method for facts in each)),
        dtype=coarsest(facts.dtype for facts in each),
        any_rank=True,
    )
    ((m, n, kind, kernel),) = shapes
    facts = replace(
        total.facts,
        parameters=sum(facts.parameters for facts in each),
        macs_per_token=sum(facts.macs_per_token for facts in each),
        rank_bound=min(m, n, sum(facts.rank_bound for facts in each)),
        support_rows=_support([facts.support_rows for facts in each], m),
        support_columns=_support([facts.support_columns for facts in each], n),
        kind=kind,
        kernel=kernel,
    )
    return replace(total, facts=facts)


def _support(sizes: Sequence[int | None], limit: int) -> int | None:
    """How many rows (or columns) of ``limit`` the sum of updates can change that can change so many; None for all."""
    known = [size for size in sizes if size is not None]
    return min(limit, sum(known)) if len(known) == len(sizes) else None


@dataclass(frozen=True, eq=False)
class HadamardProduct:
    """ΔW = scaling · (w1a w1b) ⊙ (w2a w2b), LoHa (FedPara, arXiv 2108.06098)."""

    facts: Facts
    w1a: Array  # (m, r) float64, scaling folded in
    w1b: Array  # (r, n) float64
    w2a: Array  # (m, s) float64
    w2b: Array  # (s, n) float64

    def cores(self) -> list[Array]:
        """R (C_1 ⊗ C_2) Lᵀ, r² × r², with the cores C_1, C_2 of the two products.

        ΔW = X Yᵀ with Khatri–Rao factors: row i of X is the Kronecker product of the rows of w1a and w2a. With
        w1a = Q_1 R_1 and w2a = Q_2 R_2 it is (Q_1 ∗ Q_2)(R_1 ⊗ R_2), so that only the well-conditioned Q_1 ∗ Q_2 has to
        be brought to a triangle, whatever the condition of the factors.
        """
        if self._inner() >= min(self.facts.out_features, self.facts.in_features):
            return [self.to_dense()[None]]
        (Q1, R1), (Q2, R2) = np.linalg.qr(self.w1a), np.linalg.qr(self.w2a)
        (P1, L1), (P2, L2) = np.linalg.qr(self.w1b.T), np.linalg.qr(self.w2b.T)
        middle = np.kron(R1 @ L1.T, R2 @ L2.T)
        return [(_khatri_rao_triangle(Q1, Q2) @ middle @ _khatri_rao_triangle(P1, P2).T)[None]]

    def factors(self) -> tuple[Array, Array]:
        m, n = self.facts.out_features, self.facts.in_features
        if self._inner() >= min(m, n):
            return trivial_factors(self.to_dense())
        return _khatri_rao(self.w1a, self.w2a), _khatri_rao(self.w1b.T, self.w2b.T).T

    def to_dense(self) -> Array:
        return (self.w1a @ self.w1b) * (self.w2a @ self.w2b)

    def _inner(self) -> int:
        return self.w1a.shape[1] * self.w2a.shape[1]


def _khatri_rao(X: Array, Y: Array) -> Array:
    """(m, r) and (m, s) → (m, rs), row by row the Kronecker product."""
    return (X[:, :, None] * Y[:, None, :]).reshape(len(X), -1)


def _khatri_rao_triangle(X: Array, Y: Array) -> Array:
    """R of the QR decomposition of the Khatri–Rao product, up to signs.

    Entry (k, l), (k', l') of its Gram matrix is Σ_i x_ik x_ik' y_il y_il', symmetric in k, k' and in l, l': a product
    of two matrices with r(r+1)/2 columns, far less work than QR. Cholesky's R has a relative error of about
    ε · condition², so it is taken up to a condition² of 100.
    """
    from scipy.linalg import get_lapack_funcs  # here: importing it takes longer than --help may

    potrf, pocon = get_lapack_funcs(("potrf", "pocon"), dtype=np.float64)
    r, s = X.shape[1], Y.shape[1]
    (i, j), (p, q) = np.triu_indices(r), np.triu_indices(s)
    columns, others = np.ascontiguousarray(X.T), np.ascontiguousarray(Y.T)
    packed = (columns[i] * columns[j]) @ (others[p] * others[q]).T
    first, second = np.zeros((r, r), dtype=int), np.zeros((s, s), dtype=int)
    first[i, j] = first[j, i] = np.arange(i.size)
    second[p, q] = second[q, p] = np.arange(p.size)
    gram = packed[first][:, :, second].transpose(0, 2, 1, 3).reshape(r * s, r * s)
    factored, failed = potrf(gram, lower=0, clean=1)
    if not failed and pocon(factored, np.abs(gram).sum(axis=0).max())[0] > 0.01:
        return factored
    return triangle(_khatri_rao(X, Y))


def loha(
    w1_a: Any,
    w1_b: Any,
    w2_a: Any,
    w2_b: Any,
    *,
    scaling: float = 1.0,
    method: str = "loha",
    parameters: int | None = None,
    dtype: str | None = None,
) -> HadamardProduct:
    """ΔW = scaling · (w1_a w1_b) ⊙ (w2_a w2_b), of rank up to r².

    Parameters
    ----------
    w1_a, w2_a : (m, r). w1_b, w2_b : (r, n).
    parameters : trained numbers, where they are not those of the four (a decomposed convolution).
    scaling, method, dtype : as for :func:`bora_analysis.delta.lora`.

    Raises
    ------
    FactorError
        Wrong shape, or NaN or Inf in a factor.

    Examples
    --------
    >>> loha(np.ones((4, 2)), np.ones((2, 5)), np.ones((4, 2)), np.ones((2, 5))).to_dense()[0, 0]
    np.float64(4.0)
    """
    names = ("w1_a", "w1_b", "w2_a", "w2_b")
    found = [factor(name, value, 2, dtype) for name, value in zip(names, (w1_a, w1_b, w2_a, w2_b), strict=True)]
    a1, b1, a2, b2 = (array.astype(np.float64) for array, _ in found)
    (m, r), n = a1.shape, b1.shape[1]
    for name, array, expected in (
        ("w1_b", b1, (r, n)),
        ("w2_a", a2, (m, a2.shape[1])),
        ("w2_b", b2, (a2.shape[1], n)),
    ):
        if array.shape != expected:
            raise FactorError(name, f"has shape {array.shape}; expected {expected} from w1_a {a1.shape}")
    count = a1.size + b1.size + a2.size + b2.size if parameters is None else parameters
    inner = r * a2.shape[1]
    bound = min(m, n, inner)
    facts = Facts(
        method, m, n, r, 1, float(scaling), count, min((m + n) * inner, m * n), bound, coarsest(s for _, s in found)
    )
    return HadamardProduct(facts, a1 * float(scaling), b1, a2, b2)


@dataclass(frozen=True, eq=False)
class KroneckerProduct:
    """ΔW = first ⊗ second, LoKr (LyCORIS, arXiv 2309.14859) and KronA (arXiv 2212.10650)."""

    facts: Facts
    first: Update  # (p, q), scaling folded in
    second: Update  # (u, v)

    def cores(self) -> list[Array]:
        """1×1 cores: the singular values of a Kronecker product are all products of those of its factors."""
        first, second = (_values(part) for part in (self.first, self.second))
        return [np.outer(first, second).reshape(-1, 1, 1)]

    def factors(self) -> tuple[Array, Array]:
        (L1, R1), (L2, R2) = self.first.factors(), self.second.factors()
        if L1.shape[1] * L2.shape[1] >= min(self.facts.out_features, self.facts.in_features):
            return trivial_factors(self.to_dense())
        return np.kron(L1, L2), np.kron(R1, R2)

    def to_dense(self) -> Array:
        return np.kron(self.first.to_dense(), self.second.to_dense())


def lokr(
    w1: Any | tuple[Any, Any],
    w2: Any | tuple[Any, Any],
    *,
    r: int | None = None,
    scaling: float = 1.0,
    parameters: int | None = None,
    dtype: str | None = None,
) -> KroneckerProduct:
    """ΔW = scaling · w1 ⊗ w2. With both factors whole it is called KronA.

    Parameters
    ----------
    w1 : (p, q), or a pair (p, r), (r, q) whose product it is.
    w2 : (u, v), or a pair (u, r), (r, v).
    r : rank of the pairs; default that of the first pair, else of w2.
    scaling, parameters, dtype : as for :func:`loha`.

    Raises
    ------
    FactorError
        Wrong shape, or NaN or Inf in a factor.

    Examples
    --------
    >>> lokr(np.eye(2), np.ones((3, 2))).facts.rank_bound
    4
    """
    first, second = (
        lora(value[0], value[1], scaling=s, dtype=dtype, any_rank=True)
        if isinstance(value, tuple)
        else dense(_scaled(value, s), dtype=dtype or _stored(value))
        for value, s in ((w1, float(scaling)), (w2, 1.0))
    )
    a, b = first.facts, second.facts
    whole = not (isinstance(w1, tuple) or isinstance(w2, tuple))
    pairs = [part.facts.r for part, value in ((first, w1), (second, w2)) if isinstance(value, tuple)]
    facts = Facts(
        method="krona" if whole else "lokr",
        out_features=a.out_features * b.out_features,
        in_features=a.in_features * b.in_features,
        r=r or (pairs[0] if pairs else min(b.out_features, b.in_features)),
        blocks=1,
        scaling=float(scaling),
        parameters=a.parameters + b.parameters if parameters is None else parameters,
        # x as a q×v matrix: w2 on each of its q rows, then w1 on the u columns.
        macs_per_token=a.in_features * b.parameters + a.parameters * b.out_features,
        rank_bound=a.rank_bound * b.rank_bound,
        dtype=coarsest((a.dtype, b.dtype)),
    )
    return KroneckerProduct(facts, first, second)


@dataclass(frozen=True, eq=False)
class BlockCirculant:
    """Entry (t, s) of block (i, j) of ΔW is kernel[i, j, (s − t) mod b], C³A (arXiv 2407.19342)."""

    facts: Facts
    kernel: Array  # (m/b, n/b, b) float64, scaling folded in

    def cores(self) -> list[Array]:
        """One (m/b, n/b) matrix per frequency: the DFT makes every block diagonal.

        The matrices of the frequencies f and b − f are conjugates, and the real form [[X, −Y], [Y, X]] of X + iY has
        its singular values twice: exactly those of both.
        """
        b = self.kernel.shape[2]
        spectrum = np.moveaxis(np.fft.rfft(self.kernel, axis=2), 2, 0)  # (b//2 + 1, m/b, n/b)
        alone = [0, b // 2] if b % 2 == 0 and b > 1 else [0]
        paired = spectrum[1 : (b + 1) // 2]
        X, Y = paired.real, paired.imag
        doubled = np.concatenate([np.concatenate([X, -Y], 2), np.concatenate([Y, X], 2)], 1)
        real = np.ascontiguousarray(spectrum[alone].real)
        return [real, doubled] if len(doubled) else [real]

    def factors(self) -> tuple[Array, Array]:
        return trivial_factors(self.to_dense())

    def to_dense(self) -> Array:
        p, q, b = self.kernel.shape
        index = (np.arange(b)[None, :] - np.arange(b)[:, None]) % b  # (t, s)
        return self.kernel[:, :, index].transpose(0, 2, 1, 3).reshape(p * b, q * b)


def c3a(kernel: Any, *, dtype: str | None = None) -> BlockCirculant:
    """ΔW of circulant blocks, divided by in_features as in PEFT (``c3a/layer.py``).

    Parameters
    ----------
    kernel : (m/b, n/b, b).
    dtype : as for :func:`bora_analysis.delta.lora`.

    Raises
    ------
    FactorError
        Wrong shape, or NaN or Inf.

    Examples
    --------
    >>> c3a([[[2.0, 0.0, 4.0]]]).to_dense().round(3).tolist()
    [[0.667, 0.0, 1.333], [1.333, 0.667, 0.0], [0.0, 1.333, 0.667]]
    """
    array, stored = factor("kernel", kernel, 3, dtype)
    p, q, b = array.shape
    m, n = p * b, q * b
    facts = Facts("c3a", m, n, b, b, 1 / n, array.size, m * q, min(m, n), stored)
    return BlockCirculant(facts, array.astype(np.float64) / n)


@dataclass(frozen=True, eq=False)
class SparseUpdate:
    """A matrix of few entries S; in the Fourier basis ΔW = F_m S F_nᵀ with unitary F, so that σ(ΔW) = σ(S).

    In the Fourier basis S is symmetric, S[−k, −l] = S[k, l], which makes ΔW real.
    """

    facts: Facts
    rows: Array  # (k,) whole numbers; entries at one place have been added
    columns: Array  # (k,)
    entries: Array  # (k,) float64
    components: tuple[Array, ...]  # indices of the entries of each connected component
    fourier: bool

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

    def factors(self) -> tuple[Array, Array]:
        return trivial_factors(self.to_dense())

    def to_dense(self) -> Array:
        m, n = self.facts.out_features, self.facts.in_features
        S = np.zeros((m, n))
        S[self.rows, self.columns] = self.entries
        return np.fft.ifft2(S, norm="ortho").real if self.fourier else S


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
    scaling, dtype : as for :func:`bora_analysis.delta.lora`.

    Raises
    ------
    FactorError
        Wrong shape, NaN or Inf, or a place outside of the matrix.

    Examples
    --------
    >>> fourierft([6.0], [0], [0], (2, 3)).to_dense().round(9).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    values, i, j, stored = _places(spectrum, rows, columns, shape, dtype)
    m, n = shape
    i, j = np.concatenate([i, -i % m]), np.concatenate([j, -j % n])
    # ifft2 divides by mn, the unitary transform by √(mn).
    halves = np.concatenate([values, values]) * (0.5 * scaling / np.sqrt(m * n))
    place, index = np.unique(i * n + j, return_inverse=True)
    i, j, entries = place // n, place % n, np.bincount(index, weights=halves)
    components = _components(i, j)
    bound = _sparse_bound(i, j, components)
    facts = Facts("fourierft", m, n, values.size, 1, float(scaling), values.size, m * n, bound, stored)
    return SparseUpdate(facts, i, j, entries, components, True)


def shira(weight: Any, rows: Any, columns: Any, shape: tuple[int, int], *, dtype: str | None = None) -> SparseUpdate:
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
        method="shira",
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
    return SparseUpdate(facts, i, j, values.astype(np.float64), components, False)


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


def _values(update: Update) -> Array:
    """Singular values by the cores, for the small factors of a structure; rank_bound of them."""
    values = np.concatenate([np.linalg.svd(core, compute_uv=False).ravel() for core in update.cores()])
    return np.sort(values)[::-1][: update.facts.rank_bound]


def _stored(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.") if hasattr(value, "dtype") else "float64"


def _scaled(value: Any, scaling: float) -> Array:
    array, _ = factor("w", value, 2, None)
    return array.astype(np.float64) * scaling
