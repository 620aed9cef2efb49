"""LoKr and KronA: w1 ⊗ w2 nearest to T, through the rearrangement that makes it a matrix of rank one.

Row (p, q) of the rearranged T holds T[p·, q·], the block that w1[p, q] multiplies (Van Loan & Pitsianis 1993). With w2
whole its first singular pair is the answer; with w2 of rank r the two factors are found in turn.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from ..catalogue.sizes import kronecker_factors
from ..linalg import Array
from ..linalg.solvers import svd_with_vectors
from .target import Target, Wish


class _Rearranged:
    """The rearranged T, applied to either factor."""

    def __init__(self, target: Target):
        (m, n), k = target.shape, len(target.right)
        (self.p, self.u), (self.q, self.v) = kronecker_factors(m), kronecker_factors(n)
        self.whole = target.dense().reshape(self.p, self.u, self.q, self.v) if k >= min(m, n) else None
        self.left = target.left.T.reshape(k, self.p, self.u)
        self.right = target.right.reshape(k, self.q, self.v)

    def first(self, w2: Array) -> Array:
        """Σ_uv T[p u, q v] w2[u, v]."""
        if self.whole is not None:
            return np.tensordot(self.whole, w2, ((1, 3), (0, 1)))
        return np.einsum("kpv,kqv->pq", self.left @ w2, self.right, optimize=True)

    def second(self, w1: Array) -> Array:
        """Σ_pq T[p u, q v] w1[p, q]."""
        if self.whole is not None:
            return np.tensordot(self.whole, w1, ((0, 2), (0, 1)))
        return np.einsum("kuq,kqv->uv", self.left.transpose(0, 2, 1) @ w1, self.right, optimize=True)


def nearest_whole(target: Target, wish: Wish) -> tuple[dict[str, Array], float]:
    """Both factors whole."""
    from scipy.sparse.linalg import ArpackError, LinearOperator, svds  # here: a slow import

    T = _Rearranged(target)
    shape = T.p * T.q, T.u * T.v
    w1: Any = None
    if min(shape) > 2:
        products: dict[str, Any] = {
            "matvec": lambda x: T.first(x.reshape(T.u, T.v)).ravel(),
            "rmatvec": lambda x: T.second(x.reshape(T.p, T.q)).ravel(),
            "dtype": np.float64,
        }
        options: dict[str, Any] = {"k": 1, "v0": np.random.default_rng(0).standard_normal(min(shape)), "tol": 1e-10}
        with suppress(ArpackError, np.linalg.LinAlgError):
            w1 = svds(LinearOperator(shape, **products), **options)[0]
    if w1 is None:  # too small for the iteration, or it did not converge
        columns = [T.first(x.reshape(T.u, T.v)).ravel() for x in np.eye(shape[1])]
        w1 = svd_with_vectors(np.stack(columns, 1))[0][:, :1]
    w1 = w1.reshape(T.p, T.q)
    w2 = T.second(w1)
    return {"w1": w1, "w2": w2}, float((w2**2).sum())


def nearest(target: Target, wish: Wish) -> tuple[dict[str, Array], float]:
    """w2 of rank r."""
    T = _Rearranged(target)
    w1 = (
        nearest_whole(target, wish)[0]["w1"]
        if wish.start == 0
        else np.random.default_rng(wish.start).standard_normal((T.p, T.q))
    )
    captured = -1.0
    while True:
        last, w1 = captured, w1 / (np.linalg.norm(w1) or 1.0)
        B, A, captured = Target(T.second(w1), np.eye(T.v)).pair(wish.r)
        if captured - last <= 1e-6 * (1 - captured):
            return {"w1": w1, "w2_a": B, "w2_b": A}, captured
        w1 = T.first(B @ A)
