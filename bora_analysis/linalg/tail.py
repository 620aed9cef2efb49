"""Singular values from a Gram matrix whose small ones are found again, so that they are as good as those of an SVD.

Eigenvalues of G = C Cᵀ are σ², which rounding moves by about η = ε σ₁²: harmless for a large σ (η/2σ), not for a small
one. Let V hold the computed eigenvectors of the eigenvalues below a cut τ², and V' the others. The rows of T = Vᵀ C and
H = V'ᵀ C have together the singular values of C. Were T Hᵀ = 0, those would be the ones of H and those of T. It is not,
because of rounding, but R = (I − V Vᵀ) C Tᵀ can be measured, and ‖T Hᵀ‖ = ‖R‖. The part of T within the rows of H,
T Hᵀ (H Hᵀ)⁻¹ H, has a norm of at most ‖R‖/σ_min(H). Without it (Weyl's inequality, once for C and once for T) follow

- |σ − σ'| ≤ 2 ‖R‖ / τ' for those of T, τ' the least σ of H;
- |σ − σ'| = |σ² − σ'²| / (σ + σ') ≤ η / 2τ' for the others. η is measured too: for random X of unit variance the mean
  square of a column of G X − C (Cᵀ X) is ‖G − C Cᵀ‖_F².

T's own singular values, all below τ, are found in the same way: what is left open is then τ/σ₁ times as large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import Array
from .qr import triangle
from .solvers import svd_values
from .threads import BlasLimit

#: Share of σ₁ below which singular values are found again. Errors are inverse to it, and the work grows with it.
_CUT = 1 / 8
#: Share of the values that are found again at most, where a lower cut still leaves their errors small: of a random BoRA
#: two thirds lie below σ₁/8.
_TAIL = 1 / 4
#: The largest error that is let pass, relative to ‖C‖₂: half of what is documented of numbers stored in float64.
_ERROR = 5e-13
#: The same at most for numbers that were rounded when they were stored, and what share of that rounding it may be.
_STORED, _SHARE = 1e-9, 0.01
#: With that, how far above the least σ whose error is small enough the cut lies.
_SLACK = 4.0
#: Random vectors by which the rounding in a Gram matrix is measured.
_PROBES = 16
#: Tails up to this size are solved by an SVD.
_SMALL = 512
_UNIT = 2.0**-53


def allowed(stored: float) -> float:
    """The error that is let pass, relative to σ₁, for numbers stored with this unit of rounding (2⁻²³ for float32).

    A hundredth of that rounding, at most 1e-9: what it changes in σ cannot be told from another rounding of the
    factors, and where the least σ is to be found again it leaves a few of them and not a third.

    >>> allowed(2.0**-23), allowed(2.0**-52)
    (1e-09, 5e-13)
    """
    return max(_ERROR, min(_STORED, _SHARE * stored))


def from_gram(C: Array, suffices: Callable[[Array], bool], error: float = _ERROR) -> tuple[Array, bool] | None:
    """The singular values of C (p, q), p ≤ q, descending, and whether small ones were found again.

    None where they might be off by more than ``error``·σ₁; where a σ is so small that it could be 0 (below four times
    the bound), because the rank is that of what is stored; and where more than half of the values need to be found
    again, which an SVD does as fast.

    Parameters
    ----------
    suffices : whether the square roots of the eigenvalues, descending, are good enough as they are.
    error : relative to σ₁; by default that of numbers stored in float64, see :func:`allowed`.

    Examples
    --------
    >>> values, again = from_gram(np.diag([1.0, 0.5, 1e-6]), lambda values: False)
    >>> values.round(12).tolist(), again
    ([1.0, 0.5, 1e-06], True)
    """
    found = _mended(C, suffices, error)
    if found is None:
        return None
    values, bound = found
    values = np.sort(values)[::-1]
    if bound is None:
        return values, False
    return (values, True) if bound <= error * values[0] and values[-1] >= 4 * bound else None


def _mended(C: Array, suffices: Callable[[Array], bool], error: float = _ERROR) -> tuple[Array, float | None] | None:
    """The values in any order, and the bound of their errors; no bound for those that suffice."""
    p = len(C)
    gram = C @ C.T
    probes = np.random.default_rng(p).standard_normal((p, _PROBES))
    rounding = float(np.linalg.norm(gram @ probes - C @ (C.T @ probes))) / _PROBES**0.5
    reduced = _Tridiagonal(gram)
    squares = reduced.values
    if squares is None or not squares[-1] > 0:
        return None
    plain = np.sqrt(np.maximum(squares[::-1], 0.0))
    if suffices(plain):
        return plain, None
    eta = rounding + p**0.5 * _UNIT * squares[-1]
    k = int(np.searchsorted(squares, _CUT**2 * squares[-1]))
    lowest = eta / (error * float(plain[0]))  # there what rounding does to the others takes half of the error
    if error > _ERROR:
        k = min(k, int(np.searchsorted(squares, (_SLACK * lowest) ** 2)))
    if k > _TAIL * p:
        k = max(int(_TAIL * p), int(np.searchsorted(squares, lowest**2)))
    least = float(squares[k]) - eta
    if 2 * k > p or not least > 0:
        return None
    large, tau = np.sqrt(squares[k:]), least**0.5
    if k == 0:
        return large, eta / (2 * tau)
    V = reduced.vectors(k)
    if V is None:
        return None
    T = V.T @ C
    W = C @ T.T
    W -= V @ (V.T @ W)
    open_ = float(np.linalg.eigvalsh(W.T @ W)[-1]) ** 0.5
    skew = float(np.linalg.norm(V.T @ V - np.eye(k)))
    if k <= _SMALL:
        small, rest = svd_values(triangle(T.T)[None])[0][0], 0.0
    else:
        tail = _mended(T, lambda values: False)
        if tail is None:
            return None
        small, rest = tail[0], tail[1] or 0.0
    return np.concatenate([large, small]), max(eta / 2, 2 * open_) / tau + rest + skew * float(small.max())


class _Tridiagonal:
    """A symmetric matrix as Q T Qᵀ (LAPACK's dsytrd), which serves its eigenvalues and some of its eigenvectors."""

    def __init__(self, gram: Array) -> None:
        from scipy.linalg import lapack  # here: importing it takes longer than --help may

        BlasLimit.reach_scipy()
        tools: Any = lapack
        self.tools, p = tools, len(gram)
        work = int(tools.dsytrd_lwork(p, lower=1)[0])
        self.reflectors, self.d, self.e, self.tau, info = tools.dsytrd(gram.T, lower=1, lwork=work)
        values, failed = tools.dsterf(self.d, self.e)
        self.values: Array | None = None if info or failed else values

    def vectors(self, k: int) -> Array | None:
        """The eigenvectors of the k least eigenvalues, (p, k)."""
        from scipy.linalg import eigh_tridiagonal

        try:
            _, Z = eigh_tridiagonal(self.d, self.e, select="i", select_range=(0, k - 1), lapack_driver="stemr")
        except np.linalg.LinAlgError:  # as in clusters, where divide and conquer is quick
            try:
                Z = eigh_tridiagonal(self.d, self.e, lapack_driver="stevd")[1][:, :k]
            except np.linalg.LinAlgError:
                return None
        below = np.asfortranarray(self.reflectors[1:, :-1])  # Q leaves the first unit vector alone
        moved = np.asfortranarray(Z[1:])
        size = int(self.tools.dormqr("L", "N", below, self.tau, moved, -1)[1][0])
        moved, _, info = self.tools.dormqr("L", "N", below, self.tau, moved, size, overwrite_c=1)
        return None if info else np.concatenate([Z[:1], moved])
