"""Linear algebra of plain arrays: QR, solvers, counts, threads."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class NotFiniteError(ValueError):
    """A ΔW that float64 cannot hold, although its factors are finite."""


def check_finite(matrix: Array, name: str = "") -> Array:
    """The matrix; :class:`NotFiniteError` unless it and Σσ² are finite. One BLAS pass. ``name`` begins the message."""
    flat = matrix.ravel(order="K")
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isfinite(np.dot(flat, flat)):
            raise NotFiniteError(
                f"{name}{': ' if name else ''}ΔW or its energy Σσ² is beyond the range of float64 (1.8e308), although "
                "the factors are finite; check α and the factors"
            )
    return matrix


def normalised(X: Array, axis: Any = None) -> tuple[Array, Array]:
    """Y and e with X = Y · 2^e, the largest |Y| along the axis in [½, 1): without rounding. e is −10⁶ for zeros.

    >>> Y, e = normalised(np.array([[3e-200, 1e200], [0.0, 1e200]]), axis=0)
    >>> Y.round(3).tolist(), e.tolist()
    ([[0.574, 0.653], [0.0, 0.653]], [[-662, 665]])
    """
    top = np.maximum(X.max(axis, keepdims=True, initial=0), -X.min(axis, keepdims=True, initial=0))
    e = np.where(top > 0, np.frexp(top)[1], -(10**6))
    return np.ldexp(X, -e), e


def norm(X: Array) -> float:
    """‖X‖_F, for entries whose squares are out of range too."""
    flat = X.ravel(order="K")
    with np.errstate(over="ignore"):
        quick = float(np.linalg.norm(flat))
    if 1e-140 < quick < 1e140:
        return quick
    Y, e = normalised(flat)
    return float(np.ldexp(np.linalg.norm(Y), e.item()))
