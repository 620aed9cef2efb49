"""Singular values with their vectors, through the factors, never through ΔW.

What :mod:`bora_analysis.analysis.spectrum` does for values alone. Truncation and subspaces need the vectors too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import block_diag

from ..files.errors import counted
from ..linalg import Array
from ..linalg.qr import thin_qr
from ..linalg.solvers import svd_with_vectors
from ..linalg.threads import one_blas_thread
from ..metrics import rounding_tolerance
from ..updates.blocks import DirectSum
from ..updates.contract import Update
from ..updates.sums import BlockProduct, product


@dataclass(frozen=True, eq=False, repr=False)
class SingularVectors:
    """ΔW = left · diag(values) · right, the thin SVD.

    Attributes
    ----------
    left : (m, k) with orthonormal columns.
    values : (k,) float64, descending; k is the inner size of the factors, at most min(m, n). ΔW's other singular
        values are exactly 0.
    right : (k, n) with orthonormal rows.
    rounding : values up to this may be rounding: √k·ε (ε of float64) times the sum of the norms of the rank-one terms
        that ΔW is made of. Where these cancel, as in the difference of two adapters, that is far above ε·σ₁.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora, singular_vectors
    >>> singular_vectors(lora(np.eye(4)[:, :2] * [3.0, 2.0], np.eye(2, 5)))
    <SingularVectors of 2 directions, 4×5>
    """

    left: Array
    values: Array
    right: Array
    rounding: float

    def __repr__(self) -> str:
        return f"<SingularVectors of {counted(len(self.values), 'direction')}, {len(self.left)}×{self.right.shape[1]}>"


def singular_vectors(update: Update) -> SingularVectors:
    """The thin SVD of one update.

    BoRA: QR block by block, then the SVD of the (br × br) core of
    :meth:`bora_analysis.updates.sums.BlockProduct.reduced`.
    MELoRA: the SVDs of the minis, sorted into one. Everything else: QR of ``factors()``; a dense update is its own
    core. Within 1e-12·‖B'‖‖Σ'‖‖A'‖ of the exact values; vectors of a singular value that repeats are any
    orthonormal basis of its subspace.

    Returns
    -------
    SingularVectors

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora, singular_vectors
    >>> found = singular_vectors(lora(np.eye(4)[:, :2] * [3.0, 2.0], np.eye(2, 5)))
    >>> found.left.shape, found.values.round(12).tolist(), found.right.shape
    ((4, 2), [3.0, 2.0], (2, 5))
    """
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        return _thin_svd(update)


def _thin_svd(update: Update) -> SingularVectors:
    if isinstance(update, DirectSum):
        return _united([_thin_svd(part) for part in update.parts])
    if isinstance(update, BlockProduct):
        return _of_blocks(update.B, update.sigma, update.A)
    left, right = update.factors()
    k = left.shape[1]
    if k < min(len(left), right.shape[1]):
        return _of_blocks(left[None], np.ones((1, 1, k)), right[None])
    core, reach = product(left[None], np.ones((1, 1, k)), right[None])  # QR would make nothing smaller
    U, values, V = svd_with_vectors(core)
    return SingularVectors(U, values, V, rounding_tolerance(values, reach))


def _of_blocks(B: Array, sigma: Array, A: Array) -> SingularVectors:
    Q, R = zip(*(thin_qr(block) for block in B), strict=True)
    P, L = zip(*(thin_qr(block.T) for block in A), strict=True)
    # The core is the same product of smaller blocks: C_ij = R_i Σ_ij L_jᵀ.
    core, reach = product(np.stack(R), sigma, np.stack(L).transpose(0, 2, 1))
    U, values, V = svd_with_vectors(core)
    return SingularVectors(_lift(Q, U), values, _lift(P, V.T).T, rounding_tolerance(values, reach))


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
    return SingularVectors(left[:, order], values[order], right[order], max(part.rounding for part in parts))
