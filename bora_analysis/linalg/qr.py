"""The triangle R of X = QR in float64: by a Gram matrix where that is safe, else by Householder's reflections."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import Array
from .gpu_triangles import cholesky_of, device_for
from .threads import BlasLimit

#: Rows that one Gram matrix sums up, so that its rounding does not grow with the height of X.
_ROWS = 512
#: What an error of R may be, relative to ‖X‖_F. Two triangles make a core, whose σ are then within 1e-12 by half.
_ERROR = 2.5e-13
_UNIT = 2.0**-53
#: p r² up to which Householder's QR takes no longer than what a Gram matrix needs besides its product.
_SMALL = 1 << 16
#: p r² from which Householder's QR is worth scipy's import.
_LARGE = 1 << 24
#: Numbers that are brought to float64 at a time: they stay in the cache.
CACHED = 1 << 16
#: Columns up to which OpenBLAS multiplies small matrices faster than it adds up a product with itself, where it has
#: kernels for them (AVX-512): 30 against 69 µs for 4096 × 16, 131 against 240 for 4096 × 32, the other way round at 64.
_NARROW = 32


class Summed(NamedTuple):
    """A stack X (b, p, r) of which only XᵀX (b, r, r) is kept. ``again`` makes X again, where that is not enough."""

    gram: Array
    shape: tuple[int, ...]
    again: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        return self.gram.nbytes

    @classmethod
    def of(cls, X: Array, again: Callable[[], Array]) -> Summed | None:
        """None where X is needed in any case."""
        with np.errstate(over="ignore", invalid="ignore"):
            gram = _gram([X])
        return cls(gram, X.shape, again) if _usable(np.diagonal(gram, axis1=1, axis2=2)).all() else None


def triangle(X: Array) -> Array:
    """R of X = QR in float64, up to signs of its rows: X (p, r) → (min(p, r), r)."""
    return triangles(X[None])[0]


def triangles(stack: Array) -> Array:
    """R of each matrix of a stack (b, p, r), up to signs of its rows."""
    return triangles_of([stack])[0]


def triangles_of(stacks: Sequence[Array | Summed]) -> list[Array]:
    """R of each matrix of stacks (b, p, r), which may differ in each of their sizes, up to signs of its rows.

    From the Gram matrices, in a third to a fifth of the time of Householder's QR, where :func:`from_gram` can. Those of
    one r share its calls, and small stacks of one shape each call; what a stack gets does not depend on the others.
    """
    shares: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for k, stack in enumerate(stacks):
        shares[stack.shape[2:] if by_gram(stack.shape) else stack.shape].append(k)
    found: dict[int, Array] = {}
    for shape, places in shares.items():
        work = _householder_of if len(shape) > 1 else _by_grams if device_for(shape) == "cpu" else _on_a_gpu
        found |= zip(places, work([stacks[k] for k in places]), strict=True)
    return [found[k] for k in range(len(stacks))]


def by_gram(shape: tuple[int, ...]) -> bool:
    """Whether the triangle of X (…, p, r) is looked for in XᵀX."""
    *_, p, r = shape
    return p >= 2 * r and p * r * r >= _SMALL


def _householder_of(stacks: Sequence[Any]) -> list[Array]:
    R = _householder(np.concatenate(stacks, dtype=np.float64))
    return list(R.reshape(len(stacks), -1, *R.shape[1:]))


def _by_grams(stacks: Sequence[Array | Summed]) -> list[Array]:
    grams: list[Array] = []
    for (summed, shape), same in groupby(stacks, lambda stack: (isinstance(stack, Summed), stack.shape)):
        if summed:
            grams += [each.gram for each in same]  # pyright: ignore[reportAttributeAccessIssue]
            continue
        alike: list[Any] = list(same)
        together = max(1, CACHED // prod(shape))
        with np.errstate(over="ignore", invalid="ignore"):
            grams += [_gram(alike[k : k + together]) for k in range(0, len(alike), together)]
    counts = [stack.shape[0] for stack in stacks]
    heights = np.repeat([min(stack.shape[1], _ROWS) for stack in stacks], counts)
    R, safe = from_gram(np.concatenate(grams), heights)
    found = np.split(R, np.cumsum(counts)[:-1])
    return list(map(_mended, found, np.split(safe, np.cumsum(counts)[:-1]), stacks))


def _on_a_gpu(stacks: Sequence[Any]) -> list[Array]:
    found = []
    for stack in stacks:
        known = cholesky_of(stack, _ROWS, device_for(stack.shape))
        if known is None:  # too little memory there
            found += _by_grams([stack])
            continue
        R, squares, definite, grown = known
        safe = _usable(squares) & definite & _is_close(min(stack.shape[1], _ROWS), stack.shape[2], grown)
        found.append(_mended(R, safe, stack))
    return found


def _mended(R: Array, safe: NDArray[np.bool_], stack: Array | Summed) -> Array:
    """With Householder's triangles where those of the Gram matrices are not safe."""
    if not safe.all():
        X = stack.again() if isinstance(stack, Summed) else stack
        for k in np.flatnonzero(~safe):
            R[k] = _householder(X[k : k + 1].astype(np.float64))[0]
    return R


def _behind(stacks: Sequence[Array]) -> Array:
    return stacks[0] if len(stacks) == 1 else np.concatenate(stacks)


def _gram(stacks: Sequence[Array]) -> Array:
    """XᵀX of each matrix of stacks (b, p, r) of one shape, summed up over parts of some rows."""
    X = _behind(stacks).astype(np.float64)
    b, p, r = X.shape
    whole = p - p % _ROWS
    parts = X[:, :whole].reshape(b, -1, _ROWS, r)
    grams = _with_itself(parts).sum(axis=1)
    return grams if whole == p else grams + _with_itself(X[:, whole:])


def _with_itself(X: Array) -> Array:
    """XᵀX of each matrix of a stack (…, p, r): by ``syrk``, or where that is faster in two products with a half."""
    XT, r = np.swapaxes(X, -1, -2), X.shape[-1]
    if r > _NARROW or not _multiplies_small():
        return XT @ X
    product, half = np.empty((*X.shape[:-2], r, r)), (r + 1) // 2
    for part in slice(half), slice(half, r):
        np.matmul(XT[..., part, :], X, out=product[..., part, :])
    return product


@cache
def _multiplies_small() -> bool:
    """Whether this processor has AVX-512 (by NumPy's names of it, old and new)."""
    found: Any = np.show_config(mode="dicts")
    return bool({"AVX512_SKX", "X86_V4"} & set(found.get("SIMD Extensions", {}).get("found", ())))


def from_gram(gram: Array, height: int | Array) -> tuple[Array, Array]:
    """R (b, r, r) of X from XᵀX (b, r, r) by Cholesky, and for which of the stack it is as good as Householder's (b,).

    Let D be the lengths of the columns of X and T = R D⁻¹. XᵀX was computed with an error E, |E_ij| ≤ η D_i D_j, so
    that RᵀR = XᵀX + E. With X R⁻¹ = Q H (polar) the exact triangle is H R. From H² − I = −R⁻ᵀ E R⁻¹ follow

    - |σ − σ'| ≤ ‖(H − I) R‖ ≤ ‖R⁻ᵀ E‖ ≤ η ‖T⁻¹‖_F ‖X‖_F: R is taken where that is at most 2.5e-13 ‖X‖_F;
    - |σ − σ'| ≤ ‖H − I‖ σ ≤ η ‖T⁻¹‖_F² σ for each singular value of X, and of products with X, small ones too.

    Both hold to first order in η = (√height + √r) u, u = 2⁻⁵³, for rounding errors that do not conspire (Higham & Mary,
    SIAM J. Sci. Comput. 41, 2019). In the worst case height stands for its root, as p r for √(p r) in Householder's.
    Ranks stay what they are: an R that is taken has full rank.

    Parameters
    ----------
    gram : finite or not.
    height : how many numbers each of its entries adds up in turn; one for all, or (b,).

    Examples
    --------
    >>> X = np.array([[3.0, 0.0], [4.0, 2.0]])
    >>> R, safe = from_gram((X.T @ X)[None], 2)
    >>> R[0].round(12).tolist(), safe.tolist()
    ([[5.0, 1.6], [0.0, 1.2]], [True])
    """
    r = gram.shape[1]
    squares = np.diagonal(gram, axis1=1, axis2=2)
    usable = _usable(squares)
    if not usable.all():  # what the others get does not depend on these
        gram, squares = np.where(usable[:, None, None], gram, np.eye(r)), np.where(usable[:, None], squares, 1.0)
    lengths = np.sqrt(squares)
    T, definite = _cholesky(gram / (lengths[:, :, None] * lengths[:, None, :]))
    grown = np.linalg.norm(np.linalg.inv(T), axis=(1, 2))
    return T * lengths[:, None, :], usable & definite & _is_close(height, r, grown)


def _is_close(height: int | Array, r: int, grown: Array) -> NDArray[np.bool_]:
    """Where the error of R by the first bound of :func:`from_gram` is small enough, from ‖T⁻¹‖_F."""
    return (np.sqrt(height) + r**0.5) * _UNIT * grown <= _ERROR


def _usable(squares: Array) -> NDArray[np.bool_]:
    """Where no column is zero or out of the range, from the squares of their lengths (b, r)."""
    return (squares.min(axis=1) > 1e-280) & (squares.max(axis=1) < 1e280)


def _cholesky(grams: Array) -> tuple[Array, Array]:
    """T with TᵀT = gram, the identity where there is none, and where there is one."""
    definite = np.ones(len(grams), dtype=bool)
    try:
        # In memory as below, because sums over it depend on that to the last bit.
        return np.ascontiguousarray(np.linalg.cholesky(grams).transpose(0, 2, 1)), definite
    except np.linalg.LinAlgError:  # it does not say which
        T = np.empty_like(grams)
        for k, gram in enumerate(grams):
            try:
                T[k] = np.linalg.cholesky(gram).T
            except np.linalg.LinAlgError:
                T[k], definite[k] = np.eye(len(gram)), False
        return T, definite


def thin_qr(X: Array) -> tuple[Array, Array]:
    """Q (p, k), R (k, r) with k = min(p, r), Householder's."""
    Q, R = np.linalg.qr(X.astype(np.float64))
    return Q, R


def _householder(stack: Array) -> Array:
    b, p, r = stack.shape
    if p * r * r >= _LARGE:
        return np.stack([_in_place(X) for X in stack])
    if p < 2 * _ROWS or 2 * r > _ROWS:
        return _numpys(stack)
    # Triangles of parts that stay in the cache, then the triangle of these: 2.5 times as fast for 4096 × 16.
    rest = p % _ROWS
    parts = _numpys(stack[:, rest:].reshape(-1, _ROWS, r))
    return _householder(np.concatenate([stack[:, :rest], parts.reshape(b, -1, r)], axis=1))


def _numpys(stack: Array) -> Array:
    R: Any = np.linalg.qr(stack.astype(np.float64, copy=False), mode="r")  # which makes a copy itself
    return R


def _in_place(X: Array) -> Array:
    """By scipy's ``dgeqrf``, which takes 0.5 to 0.7 of the time of NumPy's."""
    from scipy.linalg import get_lapack_funcs  # here: importing it takes longer than --help may

    BlasLimit.reach_scipy()
    geqrf: Any = get_lapack_funcs("geqrf", dtype=np.float64)
    p, r = X.shape
    factored, _, _, info = geqrf(np.array(X, dtype=np.float64, order="F"), overwrite_a=1, lwork=max(32 * r, 1))
    if info:
        raise RuntimeError(f"LAPACK dgeqrf: argument {-info} is illegal for a {p}×{r} matrix")
    return np.triu(factored[: min(p, r)])
