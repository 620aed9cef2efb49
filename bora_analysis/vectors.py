"""Singular values with their vectors, through the factors, never through ΔW.

What :mod:`bora_analysis.spectrum` does for values alone: QR of the thin factors and the SVD of a core, in float64, one
BLAS thread per worker. Truncation (:mod:`bora_analysis.conversion`) and subspaces (:mod:`bora_analysis.subspaces`)
need the vectors too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from scipy.linalg import block_diag, qr, svd

from .delta import Array, BlockProduct, DirectSum, Update
from .spectrum import available_cores, one_blas_thread

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class SingularVectors:
    """ΔW = left · diag(values) · right, the thin SVD.

    Attributes
    ----------
    left : (m, k) with orthonormal columns.
    values : (k,) float64, descending; k is the inner size of the factors, at most min(m, n). ΔW's other singular
        values are exactly 0.
    right : (k, n) with orthonormal rows.
    """

    left: Array
    values: Array
    right: Array


def singular_vectors(update: Update) -> SingularVectors:
    """The thin SVD of one update.

    BoRA: QR block by block, then the SVD of the (br × br) core of :meth:`bora_analysis.delta.BlockProduct.cores`.
    MELoRA: the SVDs of the minis, sorted into one. Everything else: QR of ``factors()``; a dense update is its own
    core. Within 1e-12·‖B'‖‖Σ'‖‖A'‖ of the exact values; vectors of a singular value that repeats are any
    orthonormal basis of its subspace.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora, singular_vectors
    >>> found = singular_vectors(lora(np.eye(4)[:, :2] * [3.0, 2.0], np.eye(2, 5)))
    >>> found.left.shape, found.values.round(12).tolist(), found.right.shape
    ((4, 2), [3.0, 2.0], (2, 5))
    """
    with one_blas_thread():
        return _thin_svd(update)


def in_order(work: Callable[[str], T], names: Iterable[str], workers: int | None = None) -> Iterator[tuple[str, T]]:
    """``(name, work(name))`` in the order of the names, a few of them ahead in threads of one BLAS thread each."""
    workers = workers or available_cores()
    waiting: deque[tuple[str, Future[T]]] = deque()
    with one_blas_thread(), ThreadPoolExecutor(workers, thread_name_prefix="vectors") as pool:
        try:
            for name in names:
                waiting.append((name, pool.submit(work, name)))
                if len(waiting) > 2 * workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:  # an error, or a caller that stops early: drop what has not begun
            pool.shutdown(wait=True, cancel_futures=True)


def _thin_svd(update: Update) -> SingularVectors:
    if isinstance(update, DirectSum):
        return _united([_thin_svd(part) for part in update.parts])
    if isinstance(update, BlockProduct):
        return _of_blocks(update)
    left, right = update.factors()
    if left.shape[1] >= min(left.shape[0], right.shape[1]):  # QR would make nothing smaller
        return SingularVectors(*_svd(left @ right))
    (Q, R), (P, L) = _qr(left), _qr(right.T)
    U, values, V = _svd(R @ L.T)
    return SingularVectors(Q @ U, values, V @ P.T)


def _of_blocks(update: BlockProduct) -> SingularVectors:
    Q, R = zip(*(_qr(block) for block in update.B), strict=True)
    P, L = zip(*(_qr(block.T) for block in update.A), strict=True)
    # The core is the same product of smaller blocks: C_ij = R_i Σ_ij L_jᵀ.
    sizes = replace(update.facts, out_features=sum(map(len, R)), in_features=sum(map(len, L)))
    core = BlockProduct(sizes, np.stack(R), update.sigma, np.stack([block.T for block in L]))
    U, values, V = _svd(core.to_dense())
    return SingularVectors(_lift(Q, U), values, _lift(P, V.T).T)


def _lift(bases: Sequence[Array], vectors: Array) -> Array:
    """blkdiag(bases) · vectors: from the core's rows to those of ΔW."""
    rows = np.split(vectors, len(bases))
    return np.concatenate([basis @ part for basis, part in zip(bases, rows, strict=True)])


def _united(parts: Sequence[SingularVectors]) -> SingularVectors:
    """The SVD of blkdiag(part_1, …): each vector is zero outside its own part."""
    values = np.concatenate([part.values for part in parts])
    order = np.argsort(-values, kind="stable")
    left: Any = block_diag(*(part.left for part in parts))
    right: Any = block_diag(*(part.right for part in parts))
    return SingularVectors(left[:, order], values[order], right[order])


def _qr(X: Array) -> tuple[Array, Array]:
    """Q (p, k), R (k, r) with k = min(p, r). scipy's, which releases the GIL; see :mod:`bora_analysis.delta`."""
    factored: Any = qr(X.astype(np.float64), mode="economic", overwrite_a=True, check_finite=False)
    return factored


def _svd(core: Array) -> tuple[Array, Array, Array]:
    try:
        U, values, V = np.linalg.svd(core, full_matrices=False)
    except np.linalg.LinAlgError:  # LAPACK's gesdd did not converge: its older, sturdier sibling
        U, values, V = svd(core, full_matrices=False, lapack_driver="gesvd")
    return U, values, V
