"""A weight update ΔW held as its factors: the contract that every structure keeps.

:class:`Update` is small: ``facts``, ``cores()`` (small matrices with the singular values of ΔW), ``factors()`` (ΔW =
left · right) and ``to_dense()``. Updates of BoRA's form have B', Σ', A' of eq. 6 besides, :class:`Blocked`. The scaling
is folded in when the update is built, so that nobody can forget it. Equations are those of BoRA, arXiv 2508.06953.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from ..catalogue import METHODS
from ..linalg import Array


class FactorError(ValueError):
    """A factor that cannot be used. ``factor`` is its name: ``"A"``, ``"B"`` or ``"sigma"``.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import FactorError, lora
    >>> try:
    ...     lora(np.ones((4, 1)), np.ones((2, 3)))
    ... except FactorError as error:
    ...     print(error.factor, error.message)
    B has shape (4, 1) and A has (2, 3); expected (m, r) and (r, n)
    """

    def __init__(self, factor: str, message: str):
        super().__init__(f"{factor} {message}")
        self.factor = factor
        self.message = message


@dataclass(frozen=True)
class Facts:
    """What is known about an update without computing anything.

    Attributes
    ----------
    method : ``"lora"``, ``"melora"``, ``"bora"`` …
    out_features, in_features : m and n of ΔW ∈ R^{m×n}.
    r : rank of one factor pair; the largest one where MELoRA's minis differ.
    blocks : number of blocks b (MELoRA: number of minis).
    scaling : factor in front of the product; NaN where MELoRA's minis differ.
    parameters : trained numbers, σ included.
    macs_per_token : multiply-adds per token beyond the frozen layer's m·n. The paper's "FLOPs" (§3.4) count one
        per multiply-add; in the usual convention a multiply-add is two FLOPs.
    rank_bound : least upper bound on rank(ΔW) that the sizes alone give; min(m, n, br) for BoRA (eq. 7).
    dtype : the coarsest dtype in which a factor was stored (the computation is in float64).
    support_rows, support_columns : how many rows and columns of ΔW the method can change (SBoRA's index factor, a
        sparse update); None for all of them.
    kind : what ΔW belongs to: ``"linear"``, ``"embedding"`` (ΔW is d × V), ``"conv"``, ``"grouped conv"``, a part of
        ``"attention"`` (nn.MultiheadAttention), a ``"parameter"`` that is no layer of its own (an expert's slice), or a
        ``"task"``, one of several that share a layer (Poly).
    kernel : a convolution's kernel, whose size counts in n; empty for others.
    groups : of a grouped convolution.
    activation : how BoRA's Σ comes from σ; empty for others.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora
    >>> facts = lora(np.ones((4, 1)), np.ones((1, 3)), scaling=2.0).facts
    >>> facts.method, facts.r, facts.scaling, facts.parameters
    ('lora', 1, 2.0, 7)
    """

    method: str
    out_features: int
    in_features: int
    r: int
    blocks: int
    scaling: float
    parameters: int
    macs_per_token: int
    rank_bound: int
    dtype: str
    support_rows: int | None = None
    support_columns: int | None = None
    kind: str = "linear"
    kernel: tuple[int, ...] = ()
    groups: int = 1
    activation: str = ""


class Expanded(NamedTuple):
    """ΔW = B' Σ' A' (eq. 6), dense float64 matrices; Σ' carries the scaling."""

    B: Array  # (m, Σr), block-diagonal
    sigma: Array  # (Σr, Σr)
    A: Array  # (Σr, n), block-diagonal


class Update(Protocol):
    """What the rest of the package asks of a weight update.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import Update, lora
    >>> update: Update = lora(np.ones((4, 1)), np.ones((1, 3)))
    >>> left, right = update.factors()
    >>> bool((left @ right == update.to_dense()).all()), [core.shape for core in update.cores()]
    (True, [(1, 1, 1)])
    """

    @property
    def facts(self) -> Facts: ...

    def cores(self) -> list[Array]:
        """Stacks (k, p, q) in float64 whose singular values, united, are the non-zero ones of ΔW.

        Together they have ``facts.rank_bound`` singular values, or more, of which the rest are zero.
        """
        ...

    def factors(self) -> tuple[Array, Array]:
        """left (m, k) and right (k, n), float64, with ΔW = left · right; k ≤ min(m, n).

        The scaling is in one of them. k is the structure's own inner size; where that reaches min(m, n), and for an
        update without structure, one factor is ΔW and the other the identity.
        """
        ...

    def to_dense(self) -> Array:
        """ΔW as an (m, n) float64 matrix. For tests, pictures and small layers."""
        ...

    # What every structure has from :class:`bora_analysis.updates.sums.Arithmetic`.
    def reduced(self) -> tuple[list[Array], float]: ...

    def rounding(self) -> float: ...

    def measured(self) -> tuple[list[Array], float, float]: ...

    def underflows(self) -> bool: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    def __add__(self, other: Update) -> Update: ...

    def __sub__(self, other: Update) -> Update: ...

    def __mul__(self, weight: float) -> Update: ...

    def __rmul__(self, weight: float) -> Update: ...

    def __neg__(self) -> Update: ...


def label(method: str) -> str:
    """A method, or several joined by +, as people write it.

    >>> label("bora"), label("lora+mine")
    ('BoRA', 'LoRA+mine')
    """
    return "+".join(METHODS[name].label if name in METHODS else name for name in method.split("+"))


@runtime_checkable
class Blocked(Update, Protocol):
    """An update of BoRA's form, ΔW = B' Σ' A' (eq. 6): LoRA, MELoRA, BoRA, and others with a diagonal in the middle.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import Blocked, bora, dense
    >>> update = bora(np.ones((4, 1)), np.ones((1, 6)), np.zeros((2, 2, 1)))
    >>> isinstance(update, Blocked), isinstance(dense(np.ones((4, 6))), Blocked), update.expanded().sigma.tolist()
    (True, False, [[1.0, 1.0], [1.0, 1.0]])
    """

    def expanded(self) -> Expanded: ...

    def slots(self) -> list[Array]:
        """The S_k, scaling included: square matrices with rank(Σ') = Σ_k rank(S_k)."""
        ...

    def factor_cores(self) -> tuple[list[Array], list[Array]]:
        """Stacks with the non-zero singular values of B' and of A'."""
        ...
