"""The update that is to be represented, and what a method's projection is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..linalg import Array, norm
from ..linalg.qr import thin_qr, triangle
from ..linalg.solvers import svd_with_vectors

#: What may be missing where nothing is looked for any more.
ENOUGH = 1e-9


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
    def energy(self) -> float:
        """‖T‖_F²."""
        return norm(triangle(self.left) @ triangle(self.right.T).T) ** 2

    @cached_property
    def svd(self) -> tuple[Array, Array, Array]:
        """U (m, k), σ (k,) and V (k, n)."""
        (Q, R), (P, L) = thin_qr(self.left), thin_qr(self.right.T)
        U, values, V = svd_with_vectors(R @ L.T)
        return Q @ U, values, V @ P.T

    def pair(self, r: int) -> tuple[Array, Array, float]:
        """B (m, r) and A (r, n) of the nearest matrix of rank r, and its energy (Eckart & Young 1936)."""
        U, values, V = self.svd
        half = np.sqrt(values[:r])
        B, A = np.zeros((self.shape[0], r)), np.zeros((r, self.shape[1]))
        B[:, : len(half)], A[: len(half)] = U[:, :r] * half, half[:, None] * V[:r]
        return B, A, float((values[:r] ** 2).sum())

    def dense(self) -> Array:
        return self.left @ self.right


@dataclass(frozen=True)
class Wish:
    """Which member is looked for.

    Attributes
    ----------
    r, blocks : of the method; 1 where it has none.
    activation : of BoRA.
    start : 0 begins with the truncated SVD, or what contains it; others with random factors, from this seed.
    """

    r: int
    blocks: int = 1
    activation: str = "exp-norm"
    start: int = 0


Find = Callable[[Target, Wish], tuple[dict[str, Array], float]]


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
    needs : the extra that must be installed for it; "" for none.
    drawn : the share to expect with that choice at random; None for the other kinds.
    """

    find: Find
    scale: str = "B"
    kind: str = "exact"
    drawn: Callable[[Target, Wish], float] | None = None
    needs: str = ""
