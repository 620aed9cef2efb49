"""LoHa (FedPara, arXiv 2108.06098): an entrywise product of two LoRAs, with a core of r² × r²."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..linalg import Array, normalised
from ..linalg.qr import from_gram, triangle
from .checks import coarsest, factor
from .contract import FactorError, Facts
from .sums import Arithmetic


@dataclass(frozen=True, eq=False, repr=False)
class HadamardProduct(Arithmetic):
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
        if self._inner() >= min(self.shape):
            return [self.to_dense()[None]]
        (Q1, R1), (Q2, R2) = np.linalg.qr(self.w1a), np.linalg.qr(self.w2a)
        (P1, L1), (P2, L2) = np.linalg.qr(self.w1b.T), np.linalg.qr(self.w2b.T)
        middle = np.kron(R1 @ L1.T, R2 @ L2.T)
        return [(_khatri_rao_triangle(Q1, Q2) @ middle @ _khatri_rao_triangle(P1, P2).T)[None]]

    def reduced(self) -> tuple[list[Array], float]:
        norm = np.linalg.norm
        pairs = ((self.w1a, self.w1b), (self.w2a, self.w2b))
        return self.cores(), float(np.prod([norm(left, axis=0) @ norm(right, axis=1) for left, right in pairs]))

    def rounding(self) -> float:
        """Σ_ij a_ik² b_kj² y_ij² for each term of each product, y_ij being the other product's entry."""
        (a, p), (b, q), (c, s), (d, t) = map(normalised, (self.w1a, self.w1b.T, self.w2a, self.w2b.T))
        squares = [
            np.sum(((x * x).T @ _khatri_rao(u, u)) * ((y * y).T @ _khatri_rao(v, v)))
            for x, y, u, v in ((a, b, c, d), (c, d, a, b))
        ]
        return float(np.ldexp(np.sqrt(2 * max(0.0, sum(squares))), (p + q + s + t).item()))

    def factors(self) -> tuple[Array, Array]:
        if self._inner() >= min(self.shape):
            return super().factors()
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
    of two matrices with r(r+1)/2 columns, far less work than QR.
    """
    r, s = X.shape[1], Y.shape[1]
    (i, j), (p, q) = np.triu_indices(r), np.triu_indices(s)
    columns, others = np.ascontiguousarray(X.T), np.ascontiguousarray(Y.T)
    packed = (columns[i] * columns[j]) @ (others[p] * others[q]).T
    first, second = np.zeros((r, r), dtype=int), np.zeros((s, s), dtype=int)
    first[i, j] = first[j, i] = np.arange(i.size)
    second[p, q] = second[q, p] = np.arange(p.size)
    gram = packed[first][:, :, second].transpose(0, 2, 1, 3).reshape(r * s, r * s)
    (R,), (safe,) = from_gram(gram[None], len(X))
    return R if safe else triangle(_khatri_rao(X, Y))


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
    scaling, method, dtype : as for :func:`bora_analysis.updates.blocks.lora`.

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
