"""ΔW without structure: the matrix itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..linalg import Array, norm
from .checks import factor
from .contract import Facts
from .sums import Arithmetic


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Arithmetic):
    """ΔW without structure: its core is itself.

    Attributes
    ----------
    delta : ΔW (m, n), scaling included; or a function that makes it, which is called at each use, so that an update
        waiting for its turn holds no matrix.
    noise_floor : the σ that rounding alone makes (see :mod:`bora_analysis.adapters.model_difference`), a function, for
        the difference of two rounded matrices.
    """

    facts: Facts
    delta: Array | Callable[[], Array]
    noise_floor: Callable[[], float] | None = None

    def cores(self) -> list[Array]:
        return [self.to_dense()[None]]

    def rounding(self) -> float:
        return float("nan") if callable(self.delta) else norm(self.delta)  # made of numbers that are not known here

    def to_dense(self) -> Array:
        if callable(self.delta):
            return np.asarray(self.delta(), dtype=np.float64)
        return self.delta.astype(np.float64)


def dense(
    delta: Any,
    *,
    method: str = "full",
    r: int | None = None,
    scaling: float = 1.0,
    parameters: int | None = None,
    macs_per_token: int | None = None,
    dtype: str | None = None,
) -> Dense:
    """ΔW given as a matrix, for methods whose update has no cheaper form, and full fine-tuning.

    Parameters
    ----------
    delta : (m, n) array or tensor, scaling included.
    r : the method's rank parameter; default min(m, n).
    scaling : what was folded in, for the tables.
    parameters, macs_per_token : default m·n.
    method, dtype : as for :func:`lora`.

    Returns
    -------
    Dense

    Raises
    ------
    FactorError
        Wrong shape, or NaN or Inf.

    Examples
    --------
    >>> import numpy as np
    >>> update = dense(np.eye(3, 2))
    >>> update.facts.rank_bound, update.factors()[0].shape, update.factors()[1].shape
    (2, (3, 2), (2, 2))
    """
    matrix, stored = factor("delta", delta, 2, dtype)
    m, n = matrix.shape
    facts = Facts(
        method, m, n, min(m, n) if r is None else r, 1, float(scaling), m * n if parameters is None else parameters,
        m * n if macs_per_token is None else macs_per_token, min(m, n), stored,
    )  # fmt: skip
    return Dense(facts, matrix)
