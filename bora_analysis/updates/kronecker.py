"""LoKr and KronA: a Kronecker product, whose singular values are all products σ_i(w1) σ_j(w2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..linalg import Array
from ..linalg.inertia import spectral_norm
from ..linalg.solvers import svd_values
from .blocks import lora
from .checks import coarsest, factor
from .contract import Facts, Update
from .dense import dense
from .sums import Arithmetic


@dataclass(frozen=True, eq=False, repr=False)
class KroneckerProduct(Arithmetic):
    """ΔW = first ⊗ second, LoKr (LyCORIS, arXiv 2309.14859) and KronA (arXiv 2212.10650)."""

    facts: Facts
    first: Update  # (p, q), scaling folded in
    second: Update  # (u, v)

    def reduced(self) -> tuple[list[Array], float]:
        """1×1 cores: the singular values of a Kronecker product are all products of those of its factors."""
        (first, one), (second, two) = (_values(part) for part in (self.first, self.second))
        return [np.outer(first, second).reshape(-1, 1, 1)], one * two

    def rounding(self) -> float:
        one, two = (max(spectral_norm(c) for core in part.cores() for c in core) for part in (self.first, self.second))
        return self.first.rounding() * two + one * self.second.rounding()

    def factors(self) -> tuple[Array, Array]:
        (L1, R1), (L2, R2) = self.first.factors(), self.second.factors()
        if L1.shape[1] * L2.shape[1] >= min(self.shape):
            return super().factors()
        return np.kron(L1, L2), np.kron(R1, R2)

    def to_dense(self) -> Array:
        return np.kron(self.first.to_dense(), self.second.to_dense())


def lokr(
    w1: Any | tuple[Any, Any],
    w2: Any | tuple[Any, Any],
    *,
    r: int | None = None,
    scaling: float = 1.0,
    parameters: int | None = None,
    dtype: str | None = None,
) -> KroneckerProduct:
    """ΔW = scaling · w1 ⊗ w2. With both factors whole it is called KronA.

    Parameters
    ----------
    w1 : (p, q), or a pair (p, r), (r, q) whose product it is.
    w2 : (u, v), or a pair (u, r), (r, v).
    r : rank of the pairs; default that of the first pair, else of w2.
    scaling, parameters, dtype : as for :func:`loha`.

    Examples
    --------
    >>> lokr(np.eye(2), np.ones((3, 2))).facts.rank_bound
    4
    """
    first, second = (
        lora(value[0], value[1], scaling=s, dtype=dtype, any_rank=True)
        if isinstance(value, tuple)
        else dense(_scaled(value, s), dtype=dtype or _stored(value))
        for value, s in ((w1, float(scaling)), (w2, 1.0))
    )
    a, b = first.facts, second.facts
    whole = not (isinstance(w1, tuple) or isinstance(w2, tuple))
    pairs = [part.facts.r for part, value in ((first, w1), (second, w2)) if isinstance(value, tuple)]
    facts = Facts(
        method="krona" if whole else "lokr",
        out_features=a.out_features * b.out_features,
        in_features=a.in_features * b.in_features,
        r=r or (pairs[0] if pairs else min(b.out_features, b.in_features)),
        blocks=1,
        scaling=float(scaling),
        parameters=a.parameters + b.parameters if parameters is None else parameters,
        # x as a q×v matrix: w2 on each of its q rows, then w1 on the u columns.
        macs_per_token=a.in_features * b.parameters + a.parameters * b.out_features,
        rank_bound=a.rank_bound * b.rank_bound,
        dtype=coarsest((a.dtype, b.dtype)),
    )
    return KroneckerProduct(facts, first, second)


def _values(update: Update) -> tuple[Array, float]:
    """Singular values by the cores, for the small factors of a structure; rank_bound of them. And the cores' reach."""
    cores, reach = update.reduced()
    values = np.concatenate([svd_values(core)[0].ravel() for core in cores])
    return np.sort(values)[::-1][: update.facts.rank_bound], reach


def _stored(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.") if hasattr(value, "dtype") else "float64"


def _scaled(value: Any, scaling: float) -> Array:
    array, _ = factor("w", value, 2, None)
    return array.astype(np.float64) * scaling
