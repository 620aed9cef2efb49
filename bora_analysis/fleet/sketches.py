"""Small sketches of ΔW, from which adapters are compared with each other: N × N pairs without reading them again.

Of every module S = P ΔW Q, P ∈ R^{p×m} and Q ∈ R^{n×q} with entries ±1/√p and ±1/√q: random, and the same for all
adapters, because they follow from the module's path and the sizes alone. (S, T) = tr(SᵀT) has the expectation
(ΔW, ΔW'), and

    Var (S, T) ≤ β² ‖ΔW‖_F² ‖ΔW'‖_F²,    β² = 2/p + 2/q + 4/(pq).

(One side: Var (PM, PN) ≤ (2/p) ‖MNᵀ‖_F² ≤ (2/p) ‖M‖² ‖N‖². Both: the variance given Q, and that of the mean given Q;
E ‖AQ‖²‖BQ‖² ≤ (1 + 2/q) ‖A‖²‖B‖² by Cauchy and Schwarz.) Modules have matrices of their own, so the errors of their
sum add up in squares: over K modules of equal norm the deviation of a cosine is at most β/√K. The cosine is that of the
sketches, whose norms err in the same direction: exactly 1 for equal updates.

For φ (see :mod:`bora_analysis.analysis.subspaces`) the top ``DIRECTIONS`` singular vectors, sketched alike: P U and
Qᵀ V. Between random subspaces of R^p, E φ = max(i, j)/p. The estimate is (φ_p − max(i, j)/p) / (1 − max(i, j)/p), with
φ_p that of the sketched subspaces: chance is 0, equal subspaces are 1. For unrelated ones of one size its deviation is
√(2 / ((p − 1)(p + 2))) for a module.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..analysis.vectors import singular_vectors
from ..linalg import Array
from ..metrics import numerical_rank
from ..updates.contract import Update

#: Rows of P and columns of Q.
SIZE = 32
#: Singular vectors of each side.
DIRECTIONS = 4
#: β for ``SIZE``: the deviation of a cosine of one module is at most this.
BETA = float(np.sqrt(4 / SIZE + 4 / SIZE**2))


def sketch(module: str, update: Update) -> dict[str, Array]:
    """What ``sweep --sketch bora_analysis.fleet.sketches:sketch`` stores of a module.

    Parameters
    ----------
    module : its path, from which P and Q follow. update : ΔW ∈ R^{m×n}, which is not formed where it has factors.

    Returns
    -------
    dict
        ``sketch`` (SIZE²,), P ΔW Q by rows; ``left`` and ``right`` (SIZE · DIRECTIONS,), P U and Qᵀ V by rows, with
        zero columns where the numerical rank is lower.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora
    >>> found = sketch("layers.0.q_proj", lora(np.ones((40, 1)), np.ones((1, 30))))
    >>> {name: array.shape for name, array in found.items()}
    {'sketch': (1024,), 'left': (128,), 'right': (128,)}
    """
    m, n = update.shape
    P, Q = signs(module, "left", m), signs(module, "right", n)
    found = singular_vectors(update)
    k = min(DIRECTIONS, numerical_rank(found.values, found.rounding))
    bases = []
    for signed, vectors in ((P, found.left[:, :k]), (Q, found.right[:k].T)):
        basis = np.zeros((SIZE, DIRECTIONS))
        basis[:, :k] = signed @ vectors
        bases.append(basis.ravel())
    S = (P @ found.left * found.values) @ (found.right @ Q.T)
    return {"sketch": S.ravel(), "left": bases[0], "right": bases[1]}


def signs(module: str, side: str, size: int) -> Array:
    """P, or Qᵀ: (SIZE, size) of ±1/√SIZE. The bits are Philox's, which no release of NumPy changes."""
    key = hashlib.sha256(f"{module}\0{side}\0{size}".encode("utf-8", "surrogatepass")).digest()[:16]
    words = np.random.Philox(key=np.frombuffer(key, dtype="<u8").astype(np.uint64)).random_raw(-(-SIZE * size // 64))
    bits = np.unpackbits(np.asarray(words, dtype="<u8").view(np.uint8), count=SIZE * size)
    return (bits.astype(np.float64) * 2 - 1).reshape(SIZE, size) / np.sqrt(SIZE)


def inner(a: Update, b: Update) -> float:
    """tr(ΔW_aᵀ ΔW_b), exactly, through the factors."""
    (left, right), (other_left, other_right) = a.factors(), b.factors()
    return float(np.vdot(left.T @ other_left, right @ other_right.T))


def projectors(bases: Array) -> tuple[Array, Array]:
    """The projectors onto the columns of each basis, as rows, and how many columns there are.

    Parameters
    ----------
    bases : (N, SIZE · DIRECTIONS), as ``left`` or ``right``.

    Returns
    -------
    (N, SIZE²) float32 and (N,) int. Two rows' product is ‖Q_aᵀ Q_b‖_F².
    """
    stacked = bases.reshape(-1, SIZE, DIRECTIONS)
    ranks = (np.abs(stacked).max(axis=1) > 0).sum(axis=1)
    out = np.zeros((len(stacked), SIZE * SIZE), dtype=np.float32)
    for rank in set(ranks.tolist()) - {0}:
        own = ranks == rank
        Q = np.linalg.qr(stacked[own, :, :rank])[0]
        out[own] = (Q @ Q.transpose(0, 2, 1)).reshape(-1, SIZE * SIZE)
    return out, ranks


def unbiased(phi: Any, ranks: Any) -> Any:
    """The estimate of φ from that of the sketched bases; ``ranks`` is max(i, j)."""
    chance = np.asarray(ranks) / SIZE
    return (phi - chance) / (1 - chance)
