"""Sums and multiples of updates: products of concatenated factors, so that the product of blocks stands here too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, cast

import numpy as np

from ..catalogue.dtypes import LEAST
from ..linalg import Array, norm, normalised
from ..linalg.gpu_triangles import device_for
from ..linalg.qr import CACHED, Summed, by_gram, triangles, triangles_of
from .checks import coarsest, factor
from .contract import Expanded, FactorError, Facts, Update, label


class Arithmetic:
    """What every structure has: sums, differences and multiples, see :func:`combine`; shape, and a repr.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora
    >>> one = lora(np.ones((4, 1)), np.ones((1, 3)))
    >>> (2 * one - one / 2).to_dense()[0].tolist(), one
    ([1.5, 1.5, 1.5], LoRA 4×3, r = 1, rank ≤ 1)
    """

    facts: Facts
    __array_ufunc__ = None  # NumPy's numbers leave the product to us

    # A structure has one of the next two.
    def cores(self) -> list[Array]:
        return self.reduced()[0]

    def reduced(self) -> tuple[list[Array], float]:
        """The cores, and the size that their rounding is relative to: far above σ₁ where terms cancel.

        It is at least the Frobenius norm of each core.
        """
        cores = self.cores()
        return cores, norm(np.array([norm(core) for core in cores]))

    def rounding(self) -> float:
        """√Σ_x x² ‖dΔW/dx‖_F² over the stored numbers x: ‖E‖_F where each is off by its own size, independently.

        Here each of them stands in places of its own, which makes it ‖ΔW‖_F. NaN if not known.
        """
        return self.reduced()[1]

    def measured(self) -> tuple[list[Array], float, float]:
        """:meth:`reduced` and :meth:`rounding` in one."""
        return *self.reduced(), self.rounding()

    def underflows(self) -> bool:
        """Of a ΔW that is 0 in float64: whether it only is too small for that, as a product of factors that are not 0.

        A structure is linear in each of its arrays. With each of them brought to a size of 1 by a power of two, which
        rounds nothing, ΔW is 2^k times as large; terms that cancel do so still.
        """
        return any(core.any() for core in _of_size_one(self).cores())

    def factors(self: Any) -> tuple[Array, Array]:
        """ΔW and the identity, in the order that makes k = min(m, n)."""
        delta, (m, n) = self.to_dense(), self.shape
        return (delta, np.eye(n)) if n <= m else (np.eye(m), delta)

    @property
    def shape(self) -> tuple[int, int]:
        return self.facts.out_features, self.facts.in_features

    def with_facts(self: Any, **changes: Any) -> Any:
        """The same update with other facts."""
        return replace(self, facts=replace(self.facts, **changes))

    def __add__(self, other: Any, weight: float = 1.0) -> Any:
        return combine([cast(Update, self), other], [1.0, weight]) if hasattr(other, "facts") else NotImplemented

    def __sub__(self, other: Any) -> Any:
        return self.__add__(other, -1.0)

    def __mul__(self, weight: Any) -> Any:
        return combine([cast(Update, self)], [float(weight)]) if isinstance(weight, Real) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, weight: Any) -> Any:
        return self * (1 / weight)

    def __neg__(self) -> Any:
        return self * -1

    def __repr__(self) -> str:
        facts = self.facts
        sizes = f"r = {facts.r}" + (f", b = {facts.blocks}" if facts.blocks > 1 else "")
        return f"{label(facts.method)} {facts.out_features}×{facts.in_features}, {sizes}, rank ≤ {facts.rank_bound}"


@dataclass(frozen=True, eq=False, repr=False)
class BlockProduct(Arithmetic):
    """ΔW_ij = B_i · diag(sigma[i, j]) · A_j, with i the output block and j the input block (eq. 4)."""

    facts: Facts
    B: Array  # (b, m/b, r), as stored
    sigma: Array  # (b, b, r) float64, activated, scaling folded in
    A: Array  # (b, r, n/b), as stored
    steepness: Array | float = 1.0  # relative error of sigma over that of the stored σ

    def __post_init__(self) -> None:
        if not np.isfinite(self.sigma).all():
            raise FactorError("sigma", "with the scaling in it is beyond the range of float64 (1.8e308); check α")

    def reduced(self) -> tuple[list[Array], float]:
        """One core C with C_ij = R_i Σ_ij L_jᵀ, where B_i = Q_i R_i and A_jᵀ = P_j L_j.

        blkdiag(Q_i) and blkdiag(P_j) have orthonormal columns, so σ(C) = σ(ΔW) exactly. C has at most
        min(m, br) × min(n, br) entries. Cost: O((m + n) r²) for the QR steps, O(b² r³) for the products.
        """
        (R,), (L,) = self.factor_cores()
        core, reach = product(R, self.sigma, L.transpose(0, 2, 1))
        return [core[None]], reach

    def rounding(self) -> float:
        """That of B, of A and of σ: each √Σ (‖column‖ |Σ| ‖row‖)² over the rank-one terms, σ's times its steepness."""
        *_, sizes, power = _in_range(self.B, self.sigma, self.A)
        return float(np.ldexp(_roundings([self], [size[None] for size in sizes], not power), power)[0])

    def measured(self) -> tuple[list[Array], float, float]:
        return measured([self])[0]

    @property
    def sides(self) -> tuple[Array, Array]:
        """Stacks (b, m/b, r) and (b, n/b, r), whose columns are as long as those of B_i and A_jᵀ."""
        return self.B, self.A.transpose(0, 2, 1)

    def expanded(self) -> Expanded:
        b, _, r = self.sigma.shape
        middle = np.zeros((b, r, b, r))
        slot = np.arange(r)
        middle[:, slot, :, slot] = self.sigma.transpose(2, 0, 1)
        return Expanded(block_diagonal(self.B), middle.reshape(b * r, b * r), block_diagonal(self.A))

    def slots(self) -> list[Array]:
        return list(self.sigma.transpose(2, 0, 1))

    def factor_cores(self) -> tuple[list[Array], list[Array]]:
        left, right = self.sides
        return [triangles(left)], [triangles(right)]

    def factors(self) -> tuple[Array, Array]:
        b, _, r = self.sigma.shape
        if b * r >= min(self.shape):
            return super().factors()
        B, sigma, A, power = balanced(self.B, self.sigma, self.A)
        # Row (i, k) of Σ'A' is, in column block j, sigma[i, j, k] times row k of A_j.
        right = np.ldexp(sigma.transpose(0, 2, 1)[..., None] * A.transpose(1, 0, 2)[None], power)  # (b, r, b, n/b)
        return block_diagonal(B), right.reshape(b * r, self.facts.in_features)

    def to_dense(self) -> Array:
        return product(self.B, self.sigma, self.A)[0]


@dataclass(frozen=True, eq=False)
class Light:
    """What :func:`measured` needs of a block product without its factors; ``again`` makes the product once more."""

    facts: Facts
    sigma: Array
    steepness: Array | float
    sides: tuple[Array | Summed, Array | Summed]
    again: Callable[[], Any]

    @classmethod
    def of(cls, update: BlockProduct, again: Callable[[], Any]) -> BlockProduct | Light:
        """The update itself where its factors are small, or are needed in any case (B = 0).

        Large ones are summed up while the processor has them at hand, and many modules then share their calls.
        """
        left, right = update.sides
        if left.size + right.size < CACHED or not all(by_gram(side.shape) for side in (left, right)):
            return update
        if device_for(left.shape) != "cpu":  # which is sent them as they are
            return update
        if (first := Summed.of(left, lambda: again().sides[0])) is None:
            return update
        if (second := Summed.of(right, lambda: again().sides[1])) is None:
            return update
        return cls(update.facts, update.sigma, update.steepness, (first, second), again)

    def underflows(self) -> bool:
        return self.again().underflows()


@np.errstate(over="ignore", invalid="ignore")  # who asks looks at what came out
def measured(updates: Sequence[BlockProduct | Light]) -> list[tuple[list[Array], float, float]]:
    """What :meth:`BlockProduct.measured` tells of each, to the bit.

    Those whose triangles have the same shapes share their calls, which would take longer than the arithmetic.
    """
    R = triangles_of([update.sides[0] for update in updates])
    L = triangles_of([update.sides[1] for update in updates])
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for k in range(len(updates)):
        alike[R[k].shape, L[k].shape].append(k)
    found: dict[int, tuple[list[Array], float, float]] = {}
    for places in alike.values():
        each = _measured([updates[k] for k in places], [R[k] for k in places], [L[k] for k in places])
        found |= zip(places, each, strict=True)
    return [found[k] for k in range(len(updates))]


def _measured(
    updates: Sequence[BlockProduct | Light], left: Sequence[Array], right: Sequence[Array]
) -> list[tuple[list[Array], float, float]]:
    count = len(updates)
    R, L = np.stack(left), np.swapaxes(np.stack(right), -1, -2)
    sigma = np.stack([update.sigma for update in updates])
    sizes = _sizes(R, sigma, L)
    usual = _ordinary([size.reshape(count, -1) for size in sizes], 1)
    cores, reaches, roundings = _multiplied(R, sigma, L), _reaches(sizes), _roundings(updates, sizes, True)
    found = []
    for k, update in enumerate(updates):
        core, reach, rounding = cores[k], float(reaches[k]), float(roundings[k])
        if not usual[k]:
            core, reach, own, power = _product(R[k], sigma[k], L[k])
            rounding = float(np.ldexp(_roundings([update], [size[None] for size in own], not power), power)[0])
        found.append(([core[None]], reach, rounding))
    return found


def _roundings(updates: Sequence[BlockProduct | Light], sizes: Sequence[Array], by_dtype: bool) -> Array:
    """:meth:`BlockProduct.rounding` of some, from sizes with an axis for them in front."""
    left, sigma, right = sizes
    least = np.array([LEAST.get(update.facts.dtype, 0.0) if by_dtype else 0.0 for update in updates])[:, None, None]
    if least.any():  # a smaller number is off by as much as this one
        rows, columns = (np.array([update.sides[k].shape[1] for update in updates])[:, None, None] for k in (0, 1))
        left, right = np.hypot(left, least * rows**0.5), np.hypot(right, least * columns**0.5)
    terms = left[:, :, None] * sigma * right[:, None]
    given = [update.steepness for update in updates]
    if all(isinstance(each, float) for each in given):  # of all but some BoRAs
        steep = np.array(given)[:, None, None, None]
    else:
        steep = np.stack([np.broadcast_to(update.steepness, update.sigma.shape) for update in updates])
    return np.sqrt(np.einsum("nijk,nijk->n", (2 + np.square(steep)) * terms, terms))


def combine(
    updates: Sequence[Update], weights: Sequence[float] | None = None, *, method: str | None = None
) -> BlockProduct:
    """ΔW = Σ_k w_k ΔW_k, through the concatenated factors [w_1 L_1 | w_2 L_2 …] and [R_1; R_2 …].

    A difference of two adapters, ReLoRA's sum, the mean of experts. The rank is at most the sum of the ranks. The
    factors stay apart even where they are as many as rows or columns: what cancels between them tells how much of the
    sum is rounding.

    Parameters
    ----------
    updates : of one shape and kind of layer, at least one.
    weights : one per update; default all 1.
    method : the name in tables; default that of the updates, joined by +.

    Returns
    -------
    BlockProduct
        With r = the summed inner sizes of the factors, scaling 1 (weights and scalings are in the factors), and the
        parameters and multiply-adds of the parts together. The rank bound, and the rows and columns that the update can
        change, are the sums of theirs, at most min(m, n), m and n.

    Raises
    ------
    ValueError
        No updates, different shapes or kinds, or another number of weights.

    Examples
    --------
    >>> from bora_analysis import lora
    >>> one = lora(np.ones((3, 1)), np.ones((1, 2)))
    >>> combine([one, one], [1.0, -1.0]).to_dense().any()
    np.False_
    """
    weights = [1.0] * len(updates) if weights is None else [float(w) for w in weights]
    each = [update.facts for update in updates]
    shapes = list(dict.fromkeys((f.out_features, f.in_features, f.kind, f.kernel, f.groups) for f in each))
    if len(shapes) != 1 or len(weights) != len(updates):
        listed = ", ".join(
            f"{m}×{n}" + ("" if kind == "linear" else f" ({kind} {'×'.join(map(str, kernel))})")
            for m, n, kind, kernel, _ in shapes
        )
        raise ValueError(
            f"cannot add updates of shapes {listed or 'none'} with {len(weights)} weights; expected one shape and kind"
        )
    ((m, n, kind, kernel, groups),) = shapes
    pairs = [update.factors() for update in updates]
    scaled = np.concatenate([w * left for w, (left, _) in zip(weights, pairs, strict=True)], axis=1)
    (B, _), (A, _) = factor("B", scaled, 2, None), factor("A", np.concatenate([right for _, right in pairs]), 2, None)
    facts = Facts(
        method=method or "+".join(dict.fromkeys(facts.method for facts in each)),
        out_features=m,
        in_features=n,
        r=len(A),
        blocks=1,
        scaling=1.0,
        parameters=sum(facts.parameters for facts in each),
        macs_per_token=sum(facts.macs_per_token for facts in each),
        rank_bound=min(m, n, sum(facts.rank_bound for facts in each)),
        dtype=coarsest(facts.dtype for facts in each),
        support_rows=_support([facts.support_rows for facts in each], m),
        support_columns=_support([facts.support_columns for facts in each], n),
        kind=kind,
        kernel=kernel,
        groups=groups,
    )
    return BlockProduct(facts, B[None], np.ones((1, 1, len(A))), A[None])


def _of_size_one(value: Any) -> Any:
    """An update with every array that it is made of times a power of two, such that its largest entry is about 1."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return normalised(value.astype(np.float64))[0]
    if isinstance(value, tuple):
        return tuple(map(_of_size_one, value))
    if isinstance(value, Arithmetic):
        parts = {each.name: _of_size_one(getattr(value, each.name)) for each in fields(cast(Any, value))}
        return replace(cast(Any, value), **parts)
    return value


def since(update: Update, start: Update, method: str) -> BlockProduct:
    """ΔW less that of the start, which was taken out of the base model; ValueError where they do not fit.

    One of the two is trained, though the difference as a plain LoRA costs as much as both.
    """
    difference, facts = combine([update, start], [1.0, -1.0], method=method), update.facts
    kept = {"r": facts.r, "scaling": facts.scaling, "parameters": facts.parameters}
    return replace(difference, facts=replace(difference.facts, **kept))


def _support(sizes: Sequence[int | None], limit: int) -> int | None:
    """How many rows (or columns) of ``limit`` the sum of updates can change that can change so many; None for all."""
    known = [size for size in sizes if size is not None]
    return min(limit, sum(known)) if len(known) == len(sizes) else None


def product(B: Array, sigma: Array, A: Array) -> tuple[Array, float]:
    """The blocks B_i Σ_ij A_j as one matrix, and the norms of the rank-one terms that they are made of.

    These are summed in each block, and the Frobenius norm is that of the blocks: rounding is relative to it.

    Parameters
    ----------
    B : (b, m/b, r). sigma : (b, b, r). A : (b, r, n/b).
    """
    return _product(B, sigma, A)[:2]


def _product(B: Array, sigma: Array, A: Array) -> tuple[Array, float, Sequence[Array], int]:
    B, sigma, A, sizes, power = _in_range(B, sigma, A)
    reach = float(_reaches(sizes))
    if power:
        A, reach = np.ldexp(A, power), float(np.ldexp(reach, power))
    return _multiplied(B, sigma, A), reach, sizes, power


# The next take one product of blocks, or a stack of them along more axes in front.


def _multiplied(B: Array, sigma: Array, A: Array) -> Array:
    blocks = (B[..., :, None, :, :] * sigma[..., :, :, None, :]) @ A[..., None, :, :, :]  # (…, b, b, m/b, n/b)
    *stack, b, _, p, q = blocks.shape
    return np.swapaxes(blocks, -3, -2).reshape(*stack, b * p, b * q)


def _reaches(sizes: Sequence[Array]) -> Array:
    terms = np.einsum("...ik,...ijk,...jk->...ij", *sizes)
    return np.sqrt(np.einsum("...ij,...ij->...", terms, terms))


def _sizes(B: Array, sigma: Array, A: Array) -> tuple[Array, Array, Array]:
    """Norms of the columns of B_i, |Σ|, norms of the rows of A_j; einsum does not warn of an overflow."""
    return np.sqrt(np.einsum("...pr,...pr->...r", B, B)), np.abs(sigma), np.sqrt(np.einsum("...rq,...rq->...r", A, A))


def _ordinary(sizes: Sequence[Array], axes: Any = None) -> Any:
    """Whether a product of three of them, squared, stays in range."""
    return np.all([(size.min(axes) > 1e-45) & (size.max(axes) < 1e45) for size in sizes], axis=0)


def _in_range(B: Array, sigma: Array, A: Array) -> tuple[Array, Array, Array, tuple[Array, Array, Array], int]:
    """B, Σ, A in float64, their sizes and k, up to a factor 2^k; see :func:`balanced`."""
    B, A, power = B.astype(np.float64, copy=False), A.astype(np.float64, copy=False), 0
    sizes = _sizes(B, sigma, A)
    if not _ordinary(sizes):
        B, sigma, A, power = balanced(B, sigma, A)
        sizes = _sizes(B, sigma, A)
    return B, sigma, A, sizes, power


def balanced(B: Array, sigma: Array, A: Array) -> tuple[Array, Array, Array, int]:
    """B, Σ, A and k with the same B_i Σ_ij A_j up to a factor 2^k, all of them at most 1 and no product out of range.

    Columns of B_i, rows of A_j and Σ are divided by powers of two, which rounds nothing, so that factors like 1e-200
    and 1e200 make an ordinary update.
    """
    (B, p), (A, q) = normalised(B.astype(np.float64, copy=False), 1), normalised(A.astype(np.float64, copy=False), 2)
    sigma, e = np.frexp(sigma)
    e = e + p + q[None, :, :, 0]
    power = int(e.max(where=sigma != 0, initial=-(10**7)))
    return B, np.ldexp(sigma, e - power), A, power


def block_diagonal(blocks: Iterable[Array]) -> Array:
    """scipy's, in float64 whatever the factors are stored in."""
    from scipy.linalg import block_diag  # here: importing it takes longer than --help may

    out: Any = block_diag(*(block.astype(np.float64, copy=False) for block in blocks))
    return out
