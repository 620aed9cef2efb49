"""A weight update ΔW held as its factors.

Here are the structures of BoRA's own family and the one without structure; :mod:`bora_analysis.structures` has those
of the other methods.

* :class:`BlockProduct`: block (i, j) of ΔW is ``B_i · diag(Σ_ij) · A_j`` (BoRA, eq. 4). LoRA is the case of
  one block, so it costs nothing extra.
* :class:`DirectSum`: ΔW is block-diagonal (MELoRA), each block an update of its own.
* :class:`Dense`: ΔW itself.

All keep one small contract, :class:`Update`: ``facts``, ``cores()`` (small matrices with the singular values of ΔW),
``factors()`` (ΔW = left · right) and ``to_dense()``. Those of BoRA's form have B', Σ', A' of eq. 6 besides,
:class:`Blocked`. The scaling is folded in when the update is built, so that nobody can forget it.

Equations are those of BoRA, arXiv 2508.06953.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .cost import check_blocks as check_divides
from .cost import cost

Array = NDArray[Any]
Activation = Literal["exp-norm", "no-exp", "no-norm", "identity"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)

# Spacing of the floating-point numbers next to 1, by the name that PyTorch and NumPy share.
EPSILON = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "float8_e4m3fn": 2.0**-3,
    "float8_e5m2": 2.0**-2,
}


class FactorError(ValueError):
    """A factor that cannot be used. ``factor`` is its name: ``"A"``, ``"B"`` or ``"sigma"``."""

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
    kind : what ΔW belongs to: ``"linear"``, ``"embedding"`` (ΔW is d × V), ``"conv"``, ``"grouped conv"``, or a
        ``"parameter"`` that is no layer of its own (an expert's slice, a part of nn.MultiheadAttention).
    kernel : a convolution's kernel, whose size counts in n; empty for others.
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


class Expanded(NamedTuple):
    """ΔW = B' Σ' A' (eq. 6), dense float64 matrices; Σ' carries the scaling."""

    B: Array  # (m, Σr), block-diagonal
    sigma: Array  # (Σr, Σr)
    A: Array  # (Σr, n), block-diagonal


class Update(Protocol):
    """What the rest of the package asks of a weight update."""

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


@runtime_checkable
class Blocked(Update, Protocol):
    """An update of BoRA's form, ΔW = B' Σ' A' (eq. 6): LoRA, MELoRA, BoRA, and others with a diagonal in the middle."""

    def expanded(self) -> Expanded: ...

    def slots(self) -> list[Array]:
        """The S_k, scaling included: square matrices with rank(Σ') = Σ_k rank(S_k)."""
        ...

    def factor_cores(self) -> tuple[list[Array], list[Array]]:
        """Stacks with the non-zero singular values of B' and of A'."""
        ...


@dataclass(frozen=True, eq=False)
class BlockProduct:
    """ΔW_ij = B_i · diag(sigma[i, j]) · A_j, with i the output block and j the input block (eq. 4)."""

    facts: Facts
    B: Array  # (b, m/b, r), as stored
    sigma: Array  # (b, b, r) float64, activated, scaling folded in
    A: Array  # (b, r, n/b), as stored

    def cores(self) -> list[Array]:
        """One core C with C_ij = R_i Σ_ij L_jᵀ, where B_i = Q_i R_i and A_jᵀ = P_j L_j.

        blkdiag(Q_i) and blkdiag(P_j) have orthonormal columns, so σ(C) = σ(ΔW) exactly. C has at most
        min(m, br) × min(n, br) entries. Cost: O((m + n) r²) for the QR steps, O(b² r³) for the products.
        """
        R = np.stack([triangle(block) for block in self.B])  # (b, p, r), p = min(m/b, r)
        L = np.stack([triangle(block.T) for block in self.A])  # (b, q, r), q = min(n/b, r)
        blocks = (R[:, None] * self.sigma[:, :, None, :]) @ L.transpose(0, 2, 1)[None]  # (b, b, p, q)
        b, _, p, q = blocks.shape
        return [blocks.transpose(0, 2, 1, 3).reshape(1, b * p, b * q)]

    def expanded(self) -> Expanded:
        b, _, r = self.sigma.shape
        middle = np.zeros((b, r, b, r))
        slot = np.arange(r)
        middle[:, slot, :, slot] = self.sigma.transpose(2, 0, 1)
        return Expanded(block_diagonal(self.B), middle.reshape(b * r, b * r), block_diagonal(self.A))

    def slots(self) -> list[Array]:
        return list(self.sigma.transpose(2, 0, 1))

    def factor_cores(self) -> tuple[list[Array], list[Array]]:
        return (
            [np.stack([triangle(block) for block in self.B])],
            [np.stack([triangle(block.T) for block in self.A])],
        )

    def factors(self) -> tuple[Array, Array]:
        b, _, r = self.sigma.shape
        if b * r >= min(self.facts.out_features, self.facts.in_features):
            return trivial_factors(self.to_dense())
        A = self.A.astype(np.float64)
        # Row (i, k) of Σ'A' is, in column block j, sigma[i, j, k] times row k of A_j.
        right = self.sigma.transpose(0, 2, 1)[..., None] * A.transpose(1, 0, 2)[None]  # (b, r, b, n/b)
        return block_diagonal(self.B), right.reshape(b * r, self.facts.in_features)

    def to_dense(self) -> Array:
        B, A = self.B.astype(np.float64), self.A.astype(np.float64)
        blocks = np.einsum("ipk,ijk,jkq->ipjq", B, self.sigma, A, optimize=True)
        return blocks.reshape(self.facts.out_features, self.facts.in_features)


@dataclass(frozen=True, eq=False)
class DirectSum:
    """ΔW = blkdiag(part_1, …, part_N): the spectrum is the union of the parts' spectra (MELoRA)."""

    facts: Facts
    parts: tuple[BlockProduct, ...]

    def cores(self) -> list[Array]:
        return [core for part in self.parts for core in part.cores()]

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


@dataclass(frozen=True, eq=False)
class Dense:
    """ΔW without structure: its core is itself.

    Attributes
    ----------
    delta : ΔW (m, n), scaling included; or a function that makes it, which is called at each use, so that an update
        waiting for its turn holds no matrix.
    noise_floor : a function that gives the σ that rounding alone makes (see :mod:`bora_analysis.adapters.full`), for
        the difference of two rounded matrices.
    """

    facts: Facts
    delta: Array | Callable[[], Array]
    noise_floor: Callable[[], float] | None = None

    def cores(self) -> list[Array]:
        return [self.to_dense()[None]]

    def factors(self) -> tuple[Array, Array]:
        return trivial_factors(self.to_dense())

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


def trivial_factors(delta: Array) -> tuple[Array, Array]:
    """ΔW and the identity, in the order that makes k = min(m, n)."""
    m, n = delta.shape
    return (delta, np.eye(n)) if n <= m else (np.eye(m), delta)


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
    left, right, pair_dtype = _pair(B, A, dtype, any_rank)
    m, r = left.shape
    n = right.shape[1]
    price = cost("lora", m, n, r)
    facts = Facts(
        method, m, n, r, 1, float(scaling), price.parameters, price.macs_per_token, price.rank_bound, pair_dtype
    )
    return BlockProduct(facts, left[None], np.full((1, 1, r), float(scaling)), right[None])


def melora(
    B: Sequence[Any], A: Sequence[Any], *, scaling: float | Sequence[float] = 1.0, dtype: str | None = None
) -> DirectSum:
    """ΔW = blkdiag(s_1 B_1 A_1, …, s_N B_N A_N), the mini-LoRAs of MELoRA (arXiv 2402.17263).

    Parameters
    ----------
    B : N arrays (m_i, r_i).
    A : N arrays (r_i, n_i). The ranks r_i may differ.
    scaling : one factor, or one per mini.
    dtype : as for :func:`lora`.

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
            parts.append(lora(left, right, scaling=scale, method="melora", dtype=dtype))
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


def bora(
    B: Any,
    A: Any,
    sigma: Any,
    *,
    scaling: float = 1.0,
    activation: str = "exp-norm",
    method: str = "bora",
    dtype: str | None = None,
) -> BlockProduct:
    """ΔW_ij = scaling · B_i Σ_ij A_j, BoRA (arXiv 2508.06953, eq. 4 and 5).

    Parameters
    ----------
    B : (m, r) array or tensor; its b row blocks are the B_i.
    A : (r, n) array or tensor; its b column blocks are the A_j.
    sigma : (b, b, r) raw σ as trained; first index the output block i, second the input block j.
    activation : how Σ comes from σ, see :func:`activate`. A checkpoint stores the raw σ.
    method, dtype : as for :func:`lora`.

    Raises
    ------
    FactorError
        Wrong shape, b not dividing m and n (the message lists the b that would), NaN or Inf.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import bora
    >>> delta = bora(np.ones((4, 1)), np.ones((1, 6)), np.zeros((2, 2, 1)))  # σ = 0 is plain LoRA
    >>> bool((delta.to_dense() == 1).all()), delta.facts.rank_bound, delta.facts.parameters
    (True, 2, 14)
    """
    left, right, pair_dtype = _pair(B, A, dtype)
    raw, sigma_dtype = factor("sigma", sigma, 3, dtype)
    m, r = left.shape
    n = right.shape[1]
    b = raw.shape[0]
    if raw.shape != (b, b, r):
        raise FactorError("sigma", f"has shape {raw.shape}; expected (b, b, r) with r = {r} from B {left.shape}")
    check_blocks(b, m, n)
    diagonals = activate(raw, activation) * float(scaling)
    price = cost("bora", m, n, r, blocks=b)
    stored = coarsest((pair_dtype, sigma_dtype))
    facts = Facts(method, m, n, r, b, float(scaling), price.parameters, price.macs_per_token, price.rank_bound, stored)
    return BlockProduct(
        facts,
        left.reshape(b, m // b, r),
        diagonals,
        right.reshape(r, b, n // b).transpose(1, 0, 2),
    )


def activate(sigma: Array, activation: str = "exp-norm") -> Array:
    """Σ from the raw σ of shape (b, b, r), in float64.

    ``"exp-norm"`` is eq. 5, Exp(σ / Mav(σ)) with Mav(σ) = ‖σ‖₁ / (b²r) over the whole tensor. Its ablations (§4.3):
    ``"no-exp"`` is σ / Mav(σ), ``"no-norm"`` is Exp(σ). ``"identity"`` takes σ as Σ itself, for files that store Σ
    and for LoRA and MELoRA written as BoRA.

    σ = 0 has Mav(σ) = 0; σ / Mav(σ) is 0 there, which makes Σ = I under eq. 5: plain LoRA.
    """
    if activation not in ACTIVATIONS:
        raise FactorError("activation", f"{activation!r} is unknown; expected one of {', '.join(ACTIVATIONS)}")
    values = np.asarray(sigma, dtype=np.float64)
    if activation in ("exp-norm", "no-exp"):
        mean = np.abs(values).mean()
        values = values / mean if mean > 0 else values
    if activation in ("exp-norm", "no-norm"):
        if values.size and values.max() > 709.0:  # exp(710) is Inf in float64
            raise FactorError("sigma", f"overflows under activation {activation!r}: exp({values.max():.4g})")
        values = np.exp(values)
    return values


def check_blocks(b: int, m: int, n: int) -> None:
    """Raise :class:`FactorError`, with the b that would fit, unless b divides both m and n."""
    try:
        check_divides(b, [(m, n)])
    except ValueError as error:
        raise FactorError("blocks", str(error)) from None


def _pair(B: Any, A: Any, dtype: str | None, any_rank: bool = False) -> tuple[Array, Array, str]:
    left, left_dtype = factor("B", B, 2, dtype)
    right, right_dtype = factor("A", A, 2, dtype)
    if left.shape[1] != right.shape[0]:
        raise FactorError("B", f"has shape {left.shape} and A has {right.shape}; expected (m, r) and (r, n)")
    if not any_rank and left.shape[1] > max(left.shape[0], right.shape[1]):
        # With m = n, swapped factors would multiply without complaint and give an r×r "update".
        raise FactorError(
            "B",
            f"has shape {left.shape} and A has {right.shape}: r is above both m and n; "
            "expected (m, r) and (r, n), so they may be swapped",
        )
    return left, right, coarsest((left_dtype, right_dtype))


def factor(name: str, value: Any, ndim: int, stored: str | None) -> tuple[Array, str]:
    """The factor as a finite floating-point array, and the name of the dtype it was stored in."""
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu()
        dtype = str(value.dtype).removeprefix("torch.")
        array = value.numpy() if dtype in ("float16", "float32", "float64") else value.double().numpy()
    else:
        array = np.asarray(value)
        if array.dtype.kind in "biu":
            array = array.astype(np.float64)
        dtype = array.dtype.name
    if array.ndim != ndim or 0 in array.shape:
        raise FactorError(name, f"has shape {array.shape}; expected {ndim} dimensions, none of them empty")
    if array.dtype.kind != "f":
        raise FactorError(name, f"has dtype {array.dtype}; expected floating point")
    if not is_finite(array):
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(array))[0])
        raise FactorError(name, f"holds NaN or Inf (first at index {where})")
    return array, stored or dtype


def is_finite(array: Array) -> bool:
    """Whether every entry is finite. One BLAS pass; the slow test only where the squares overflow."""
    flat = array.ravel(order="K")
    if flat.itemsize == 2:  # no BLAS for these, and float16's squares overflow at 256
        return bool(np.isfinite(flat).all())
    with np.errstate(over="ignore", invalid="ignore"):
        quick = float(np.dot(flat, flat))
    return bool(np.isfinite(quick)) or bool(np.isfinite(flat).all())


def coarsest(dtypes: Any) -> str:
    """The dtype with the largest spacing."""
    return max(dtypes, key=lambda name: EPSILON.get(name, 0.0))


def triangle(X: Array) -> Array:
    """R of X = QR in float64: X (p, r) → (min(p, r), r).

    scipy's ``dgeqrf`` and not ``numpy.linalg.qr``: it works in place on Fortran order and releases the GIL, which
    made it 3× faster on one thread for 14336 × 16 and lets two threads be twice as fast.
    """
    p, r = X.shape
    work = np.array(X, dtype=np.float64, order="F")
    factored, _, _, info = _geqrf()(work, overwrite_a=1, lwork=max(32 * r, 1))
    if info:
        raise RuntimeError(f"LAPACK dgeqrf: argument {-info} is illegal for a {p}×{r} matrix")
    return np.triu(factored[: min(p, r)])


@cache
def _geqrf() -> Any:
    from scipy.linalg import get_lapack_funcs  # here: importing it takes longer than --help may

    return get_lapack_funcs("geqrf", dtype=np.float64)


def block_diagonal(blocks: Iterable[Array]) -> Array:
    """scipy's, in float64 whatever the factors are stored in."""
    from scipy.linalg import block_diag  # here: importing it takes longer than --help may

    out: Any = block_diag(*(block.astype(np.float64, copy=False) for block in blocks))
    return out
