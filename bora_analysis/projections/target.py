"""The update that is to be represented, and what a method's projection is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..linalg import Array, norm
from ..linalg.qr import thin_qr, triangle
from ..linalg.solvers import svd_with_vectors

#: What may be missing where nothing is looked for any more.
ENOUGH = 1e-9
#: From this size on the first singular vectors of a T without thin factors come from its Gram matrix: at 4096 4 s for
#: 33 of them, where the whole SVD takes 50 s. Its rounding, ε σ₁² in each σ², is far below what shares are told to.
LARGE = 768


@dataclass(frozen=True, eq=False)
class Target:
    """T = left · right (m×n), never formed where the factors are thin; a block of T has slices of them.

    Examples
    --------
    >>> target = Target(np.eye(4)[:, :2] * [2.0, 1.0], np.eye(2, 6))
    >>> target.shape, round(target.energy, 9), Target(target.left[:1], target.right).energy
    ((4, 6), 5.0, 4.0)
    """

    left: Array  # (m, k)
    right: Array  # (k, n)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.left), self.right.shape[1]

    def block(self, rows: slice, columns: slice) -> Target:
        return Target(self.left[rows], self.right[:, columns])

    def grid(self, b: int) -> list[list[Target]]:
        """The b×b blocks of equal size; b divides m and n."""
        p, q = (size // b for size in self.shape)
        return [[self.block(slice(i * p, i * p + p), slice(j * q, j * q + q)) for j in range(b)] for i in range(b)]

    @cached_property
    def whole(self) -> Array | None:
        """T itself, where its factors are not thin."""
        if self.left.shape[1] < min(self.shape):
            return None
        return self.left if _is_identity(self.right) else self.right if _is_identity(self.left) else self.dense()

    @cached_property
    def energy(self) -> float:
        """‖T‖_F²."""
        if self.whole is not None:
            return norm(self.whole) ** 2
        return norm(triangle(self.left) @ triangle(self.right.T).T) ** 2

    @cached_property
    def svd(self) -> tuple[Array, Array, Array]:
        """U (m, k), σ (k,) and V (k, n)."""
        if self.whole is not None:
            return svd_with_vectors(self.whole)
        (Q, R), (P, L) = thin_qr(self.left), thin_qr(self.right.T)
        U, values, V = svd_with_vectors(R @ L.T)
        return Q @ U, values, V @ P.T

    def leading(self, k: int) -> tuple[Array, Array, Array]:
        """The k first singular directions, or all where there are fewer. Ask for the most first: it is kept."""
        whole = self.whole
        if whole is None or min(self.shape) < LARGE or 4 * k > min(self.shape):
            U, values, V = self.svd
        else:
            if not self._kept or len(self._kept[0][1]) < k:
                self._kept[:] = [_leading(whole, k)]
            U, values, V = self._kept[0]
        return U[:, :k], values[:k], V[:k]

    @cached_property
    def _kept(self) -> list[tuple[Array, Array, Array]]:
        return []

    def curve(self, k: int) -> Array:
        """The energy of the nearest matrix of rank 0, 1, … k, (k + 1,), or shorter where rank k is never reached."""
        return np.concatenate([[0.0], np.cumsum(self.leading(k)[1] ** 2)])

    def pair(self, r: int) -> tuple[Array, Array, float]:
        """B (m, r) and A (r, n) of the nearest matrix of rank r, and its energy (Eckart & Young 1936)."""
        U, values, V = self.leading(r)
        half = np.sqrt(values)
        B, A = np.zeros((self.shape[0], r)), np.zeros((r, self.shape[1]))
        B[:, : len(half)], A[: len(half)] = U * half, half[:, None] * V
        return B, A, float((values**2).sum())

    def dense(self) -> Array:
        return self.left @ self.right


def _is_identity(X: Array) -> bool:
    return X.shape[0] == X.shape[1] and bool((X.diagonal() == 1).all()) and np.count_nonzero(X) == len(X)


def _leading(T: Array, k: int) -> tuple[Array, Array, Array]:
    """The k first singular directions of a large matrix, by the eigenvectors of its Gram matrix."""
    from scipy.linalg import eigh  # here: slow imports
    from scipy.sparse.linalg import ArpackError, eigsh

    if T.shape[0] < T.shape[1]:
        U, values, V = _leading(T.T, k)
        return V.T, values, U.T
    n, gram = T.shape[1], T.T @ T
    try:
        start: Any = {"v0": np.random.default_rng(0).standard_normal(n), "tol": 1e-10}
        vectors = eigsh(gram, k, **start)[1]
    except ArpackError:  # no convergence
        vectors = eigh(gram, subset_by_index=[n - k, n - 1], check_finite=False)[1]
    basis = np.linalg.qr(vectors).Q
    U, values, turn = svd_with_vectors(T @ basis)  # in order, and orthogonal where σ are equal
    return U, values, turn @ basis.T


@dataclass(frozen=True)
class Wish:
    """Which member is looked for.

    Attributes
    ----------
    r, blocks : of the method; 1 where it has none.
    activation : of BoRA.
    start : 0 begins with the truncated SVD, or what contains it; others with random factors, from this seed.
    room : the largest m and n of the adapter's modules, where they share something of these sizes; None: T's own.
    """

    r: int
    blocks: int = 1
    activation: str = "exp-norm"
    start: int = 0
    room: tuple[int, int] | None = None


Find = Callable[[Target, Wish], tuple[dict[str, Array], float]]
Largest = Callable[[int, int, int], int]  # m, n, blocks → r


@dataclass(frozen=True)
class Projection:
    """How a method's nearest member is found.

    Attributes
    ----------
    find : T with ‖T‖_F = 1, and the wish → the parts, by the names of the method's form, and the captured share of
        ‖T‖_F²; the scaling is 1.
    scale : the part that is multiplied for a T of another norm.
    kind : ``"exact"``, ``"local"`` (a local minimum), or ``"best case"``, where training fixes at random what the
        projection may choose.
    drawn : the share to expect with that choice at random; None for the other kinds.
    needs : the extra that must be installed for it; "" for none.
    same : the method with the same set and as many parameters, give or take a few; "" for none.
    useful : the r from which on nothing is gained.
    limit : the largest r that the method has, or that its reader takes; None for any.
    tried : the largest r that is tried where none is given, for the sake of time; None for any.
    """

    find: Find
    scale: str = "B"
    kind: str = "exact"
    drawn: Callable[[Target, Wish], float] | None = None
    needs: str = ""
    same: str = ""
    useful: Largest = lambda m, n, _: min(m, n)
    limit: Largest | None = None
    tried: int | None = None


def longer_side(m: int, n: int, _: int) -> int:
    """The limit of a pair B A: a larger r is taken for swapped factors."""
    return max(m, n)
