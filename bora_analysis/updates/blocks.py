"""BoRA's family: LoRA, MELoRA, BoRA, and LoRA with a diagonal in the middle.

* :class:`~bora_analysis.updates.sums.BlockProduct`: block (i, j) of ΔW is ``B_i · diag(Σ_ij) · A_j`` (BoRA, eq. 4).
  LoRA is the case of one block.
* :class:`DirectSum`: ΔW is block-diagonal (MELoRA), each block an update of its own.
* :class:`Cut`: the part of a BoRA that is left where b does not divide m or n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import numpy as np

from ..catalogue import ACTIVATIONS
from ..catalogue.cost import cost
from ..catalogue.sizes import PADS
from ..linalg import Array, normalised
from .checks import check_blocks, coarsest, factor, pair
from .contract import Expanded, FactorError, Facts
from .sums import Arithmetic, BlockProduct, block_diagonal, measured


@dataclass(frozen=True, eq=False, repr=False)
class DirectSum(Arithmetic):
    """ΔW = blkdiag(part_1, …, part_N): the spectrum is the union of the parts' spectra (MELoRA)."""

    facts: Facts
    parts: tuple[BlockProduct, ...]

    def reduced(self) -> tuple[list[Array], float]:
        return self.measured()[:2]

    def rounding(self) -> float:
        return max(part.rounding() for part in self.parts)  # ‖blkdiag(E_i)‖₂ is the largest ‖E_i‖₂

    def measured(self) -> tuple[list[Array], float, float]:
        cores, reaches, roundings = zip(*measured(self.parts), strict=True)
        return [core for part in cores for core in part], max(reaches), max(roundings)

    def expanded(self) -> Expanded:
        B, sigma, A = zip(*(part.expanded() for part in self.parts), strict=True)
        return Expanded(block_diagonal(B), block_diagonal(sigma), block_diagonal(A))

    def slots(self) -> list[Array]:
        return [slot for part in self.parts for slot in part.slots()]

    def factor_cores(self) -> tuple[list[Array], list[Array]]:
        left, right = zip(*(part.factor_cores() for part in self.parts), strict=True)
        return [core for part in left for core in part], [core for part in right for core in part]

    def factors(self) -> tuple[Array, Array]:
        left, right = zip(*(part.factors() for part in self.parts), strict=True)
        return block_diagonal(left), block_diagonal(right)

    def to_dense(self) -> Array:
        return block_diagonal([part.to_dense() for part in self.parts])


@dataclass(frozen=True, eq=False, repr=False)
class Cut(Arithmetic):
    """The first m rows and n columns of a block product whose other rows and columns are zero (a padded BoRA)."""

    facts: Facts
    whole: BlockProduct

    def reduced(self) -> tuple[list[Array], float]:
        return self.whole.reduced()  # zeros change no singular value

    def rounding(self) -> float:
        return self.whole.rounding()

    def measured(self) -> tuple[list[Array], float, float]:
        return self.whole.measured()

    def expanded(self) -> Expanded:
        B, sigma, A = self.whole.expanded()
        m, n = self.shape
        return Expanded(B[:m], sigma, A[:, :n])

    def slots(self) -> list[Array]:
        return self.whole.slots()

    def factor_cores(self) -> tuple[list[Array], list[Array]]:
        return self.whole.factor_cores()

    def factors(self) -> tuple[Array, Array]:
        m, n = self.shape
        if self.facts.blocks * self.facts.r >= min(m, n):
            return super().factors()
        left, right = self.whole.factors()
        return left[:m], right[:, :n]

    def to_dense(self) -> Array:
        m, n = self.shape
        return np.ascontiguousarray(self.whole.to_dense()[:m, :n])


def lora(
    B: Any, A: Any, *, scaling: float = 1.0, method: str = "lora", dtype: str | None = None, any_rank: bool = False
) -> BlockProduct:
    """ΔW = scaling · B A.

    Parameters
    ----------
    B : (m, r) array or tensor, PEFT's ``lora_B.weight``.
    A : (r, n) array or tensor, PEFT's ``lora_A.weight``.
    scaling : α/r, or α/√r for rsLoRA. There is no default α: a caller who has one must divide it.
    method : the name under which the update appears in tables.
    dtype : the stored dtype, where the arrays no longer show it (bfloat16 read into float32).
    any_rank : accept r above both m and n, for a caller who knows B from A. Otherwise that is taken for a swap.

    Returns
    -------
    BlockProduct

    Raises
    ------
    FactorError
        Wrong shape, or NaN or Inf in a factor.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora
    >>> delta = lora(np.ones((4, 1)), np.ones((1, 3)), scaling=2.0)
    >>> delta.to_dense()[0]
    array([2., 2., 2.])
    >>> delta.facts.parameters
    7
    """
    left, right, pair_dtype = pair(B, A, dtype, any_rank)
    m, r = left.shape
    n = right.shape[1]
    price = cost("lora", m, n, r)
    facts = Facts(
        method, m, n, r, 1, float(scaling), price.parameters, price.macs_per_token, price.rank_bound, pair_dtype
    )
    return BlockProduct(facts, left[None], np.full((1, 1, r), float(scaling)), right[None])


def melora(
    B: Sequence[Any],
    A: Sequence[Any],
    *,
    scaling: float | Sequence[float] = 1.0,
    dtype: str | None = None,
    any_rank: bool = False,
) -> DirectSum:
    """ΔW = blkdiag(s_1 B_1 A_1, …, s_N B_N A_N), the mini-LoRAs of MELoRA (arXiv 2402.17263).

    Parameters
    ----------
    B : N arrays (m_i, r_i).
    A : N arrays (r_i, n_i). The ranks r_i may differ.
    scaling : one factor, or one per mini.
    dtype, any_rank : as for :func:`lora`.

    Returns
    -------
    DirectSum

    Raises
    ------
    FactorError
        As for :func:`lora`; the message names the mini.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import melora
    >>> delta = melora([np.ones((2, 1)), np.ones((2, 2))], [np.ones((1, 3)), np.ones((2, 3))])
    >>> delta.facts.out_features, delta.facts.in_features, delta.facts.rank_bound
    (4, 6, 3)
    """
    if len(B) != len(A) or not B:
        raise FactorError("B", f"has {len(B)} minis and A has {len(A)}; expected the same number, at least one")
    scales = [float(scaling)] * len(B) if isinstance(scaling, int | float) else [float(s) for s in scaling]
    if len(scales) != len(B):
        raise FactorError("scaling", f"has {len(scales)} values for {len(B)} minis")
    parts = []
    for i, (left, right, scale) in enumerate(zip(B, A, scales, strict=True)):
        try:
            parts.append(lora(left, right, scaling=scale, method="melora", dtype=dtype, any_rank=any_rank))
        except FactorError as error:
            raise FactorError(error.factor, f"{error.message} (mini {i})") from None
    each = [part.facts for part in parts]
    facts = Facts(
        method="melora",
        out_features=sum(f.out_features for f in each),
        in_features=sum(f.in_features for f in each),
        r=max(f.r for f in each),
        blocks=len(each),
        scaling=scales[0] if len(set(scales)) == 1 else float("nan"),
        parameters=sum(f.parameters for f in each),
        macs_per_token=sum(f.macs_per_token for f in each),
        rank_bound=sum(f.rank_bound for f in each),
        dtype=coarsest(f.dtype for f in each),
    )
    return DirectSum(facts, tuple(parts))


@overload
def bora(
    B: Any,
    A: Any,
    sigma: Any,
    *,
    scaling: float = 1.0,
    activation: str = "exp-norm",
    method: str = "bora",
    dtype: str | None = None,
    pad: Literal[False] = False,
) -> BlockProduct: ...
@overload
def bora(
    B: Any,
    A: Any,
    sigma: Any,
    *,
    scaling: float = 1.0,
    activation: str = "exp-norm",
    method: str = "bora",
    dtype: str | None = None,
    pad: bool,
) -> BlockProduct | Cut: ...
def bora(
    B: Any,
    A: Any,
    sigma: Any,
    *,
    scaling: float = 1.0,
    activation: str = "exp-norm",
    method: str = "bora",
    dtype: str | None = None,
    pad: bool = False,
) -> BlockProduct | Cut:
    """ΔW_ij = scaling · B_i Σ_ij A_j, BoRA (arXiv 2508.06953, eq. 4 and 5).

    Parameters
    ----------
    B : (m, r) array or tensor; its b row blocks are the B_i.
    A : (r, n) array or tensor; its b column blocks are the A_j.
    sigma : (b, b, r) raw σ as trained; first index the output block i, second the input block j.
    activation : how Σ comes from σ, see :func:`activate`. A checkpoint stores the raw σ.
    method, dtype : as for :func:`lora`.
    pad : accept a b that does not divide m or n. The blocks have ⌈m/b⌉ rows and ⌈n/b⌉ columns, and ΔW is the first m
        rows and n columns of their product, so that the last blocks are smaller, or empty. The rank bound is then
        Σ_i min(p_i, r) over the rows p_i (or columns) of the shorter side, which may lie below min(m, n, br).

    Returns
    -------
    BlockProduct, or Cut for a padded one

    Raises
    ------
    FactorError
        Wrong shape, b not dividing m and n without pad (the message lists the b that would), NaN or Inf.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import bora
    >>> delta = bora(np.ones((4, 1)), np.ones((1, 6)), np.zeros((2, 2, 1)))  # σ = 0 is plain LoRA
    >>> bool((delta.to_dense() == 1).all()), delta.facts.rank_bound, delta.facts.parameters
    (True, 2, 14)
    >>> odd = bora(np.ones((5, 1)), np.ones((1, 5)), np.zeros((4, 4, 1)), pad=True)  # blocks of 2, 2, 1 and 0
    >>> odd.to_dense().shape, odd.facts.rank_bound, odd.facts.parameters
    ((5, 5), 3, 26)
    """
    left, right, pair_dtype = pair(B, A, dtype)
    raw, sigma_dtype = factor("sigma", sigma, 3, dtype)
    m, r = left.shape
    n = right.shape[1]
    b = raw.shape[0]
    if raw.shape != (b, b, r):
        raise FactorError("sigma", f"has shape {raw.shape}; expected (b, b, r) with r = {r} from B {left.shape}")
    if not pad:
        check_blocks(b, m, n, PADS)
    with np.errstate(over="ignore"):  # BlockProduct says so
        values = activate(raw, activation)
        diagonals = values * float(scaling)
    price = cost("bora", m, n, r, blocks=b, pad=pad)
    stored = coarsest((pair_dtype, sigma_dtype))
    facts = Facts(
        method, m, n, r, b, float(scaling), price.parameters, price.macs_per_token, price.rank_bound, stored,
        activation=activation,
    )  # fmt: skip
    rows, columns = -m % b, -n % b
    if rows or columns:
        left, right = np.pad(left, [(0, rows), (0, 0)]), np.pad(right, [(0, 0), (0, columns)])
    whole = BlockProduct(
        replace(facts, out_features=m + rows, in_features=n + columns),
        left.reshape(b, -1, r),
        diagonals,
        right.reshape(r, b, -1).transpose(1, 0, 2),
        np.log(values) if activation in ("exp-norm", "no-norm") else 1.0,
    )
    return Cut(facts, whole) if rows or columns else whole


def activate(sigma: Array, activation: str = "exp-norm") -> Array:
    """Σ from the raw σ of shape (b, b, r), in float64.

    ``"exp-norm"`` is eq. 5, Exp(σ / Mav(σ)) with Mav(σ) = ‖σ‖₁ / (b²r) over the whole tensor. Its ablations (§4.3):
    ``"no-exp"`` is σ / Mav(σ), ``"no-norm"`` is Exp(σ). ``"identity"`` takes σ as Σ itself, for files that store Σ
    and for LoRA and MELoRA written as BoRA.

    σ = 0 has Mav(σ) = 0; σ / Mav(σ) is 0 there, which makes Σ = I under eq. 5: plain LoRA.

    Returns
    -------
    Array of the shape of σ

    Examples
    --------
    >>> from bora_analysis import activate
    >>> activate([[[1.0]]], "no-exp").item(), activate([[[0.0]]]).item()
    (1.0, 1.0)
    """
    if activation not in ACTIVATIONS:
        raise FactorError("activation", f"{activation!r} is unknown; expected one of {', '.join(ACTIVATIONS)}")
    values = np.asarray(sigma, dtype=np.float64)
    if activation in ("exp-norm", "no-exp"):
        values = normalised(values)[0]  # neither the sum nor the ratio leaves the range
        mean = np.abs(values).mean()
        values = values / mean if mean > 0 else values
    if activation in ("exp-norm", "no-norm"):
        if values.size and values.max() > 709.0:  # exp(710) is Inf in float64
            raise FactorError(
                "sigma",
                f"overflows under activation {activation!r}: exp({values.max():.4g}) is beyond "
                "the range of float64; check σ, or the activation (--activation)",
            )
        values = np.exp(values)
    return values


def diagonal(
    B: Any,
    d: Any,
    A: Any,
    *,
    method: str,
    scaling: float = 1.0,
    parameters: int | None = None,
    dtype: str | None = None,
) -> BlockProduct:
    """ΔW = scaling · B diag(d) A.

    Parameters
    ----------
    B : (m, r). d : (r,). A : (r, n).
    parameters : trained numbers; default those of all three.
    method, scaling, dtype : as for :func:`bora_analysis.updates.blocks.lora`.

    Examples
    --------
    >>> update = diagonal(np.eye(3, 2), [3.0, 2.0], np.eye(2, 4), method="adalora")
    >>> update.to_dense().diagonal().tolist(), update.facts.parameters
    ([3.0, 2.0, 0.0], 16)
    """
    update = lora(B, A, scaling=scaling, method=method, dtype=dtype, any_rank=True)
    values, stored = factor("d", d, 1, dtype)
    facts = update.facts
    if values.shape != (facts.r,):
        raise FactorError("d", f"has shape {values.shape}; expected ({facts.r},) from B and A")
    facts = replace(
        facts,
        parameters=facts.parameters + facts.r if parameters is None else parameters,
        macs_per_token=facts.macs_per_token + facts.r,
        dtype=coarsest((facts.dtype, stored)),
    )
    return replace(update, facts=facts, sigma=update.sigma * values.astype(np.float64))
