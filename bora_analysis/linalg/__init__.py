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
