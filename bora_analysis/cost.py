"""What a low-rank adapter costs, from its sizes alone: parameters, multiply-adds, memory, rank bound, the best b.

Plain integers and no imports from the package, so that everything else may rest on it: the one place where these
formulas are written down. One adapted matrix is W ∈ R^{m×n}, m = out_features, n = in_features.

**Conventions.** ``macs_per_token`` counts multiply-adds for one token beyond the m·n of the frozen layer, as the paper
(BoRA, arXiv 2508.06953, §3.4) does under the name "FLOPs"; :attr:`Cost.flops_per_token` counts two for each. Not
counted: the scaling α/r, sums, gates' weights, softmax, dropout. What a forward pass does once for all its tokens
(DoRA's row norms, ΔW of HiRA) is in ``macs_per_pass``. All of it is for the unmerged adapter, W x computed by itself;
merged it costs nothing, but HydraLoRA and MoELoRA cannot be merged, because their ΔW depends on the token.

**Errata of the paper.** §3.3 gives LoRA (m+n)(b²r) parameters at rank br: it is (m+n)·br. §3.4 calls mn + (m+n)r the
number of trainable parameters: mn is frozen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil, gcd, isqrt, sqrt
from typing import NamedTuple


@dataclass(frozen=True)
class Cost:
    """What one adapted matrix costs. Costs of several matrices are sums of the fields, except ``rank_bound``.

    Attributes
    ----------
    parameters : trained numbers.
    macs_per_token : multiply-adds per token beyond the frozen m·n (the paper's "FLOPs").
    rank_bound : least upper bound on rank(ΔW) that the sizes alone give; for one token where ΔW depends on it.
    macs_per_pass : multiply-adds once per forward pass, whatever the number of tokens.
    """

    parameters: int
    macs_per_token: int
    rank_bound: int
    macs_per_pass: int = 0

    @property
    def flops_per_token(self) -> int:
        """Two for each multiply-add, the usual convention."""
        return 2 * self.macs_per_token


class _Sizes(NamedTuple):
    m: int
    n: int
    r: int
    blocks: int
    experts: int


def _lora(s: _Sizes) -> Cost:
    size = (s.m + s.n) * s.r
    return Cost(size, size, min(s.m, s.n, s.r))


def _melora(s: _Sizes) -> Cost:
    size = (s.m + s.n) * s.r
    return Cost(size, size, min(s.m, s.n, s.blocks * s.r))


def _bora(s: _Sizes) -> Cost:
    size = (s.m + s.n + s.blocks**2) * s.r
    return Cost(size, size, min(s.m, s.n, s.blocks * s.r))


def _dora(s: _Sizes) -> Cost:
    size = (s.m + s.n) * s.r + s.m
    # W + sBA has to be formed for its row norms: m·n·r, and m·n for the squares.
    return Cost(size, size, min(s.m, s.n), macs_per_pass=s.m * s.n * (s.r + 1))


def _hydralora(s: _Sizes) -> Cost:
    size = s.n * s.r + s.experts * (s.m * s.r + s.n)
    return Cost(size, size, min(s.m, s.n, s.r))


def _moelora(s: _Sizes) -> Cost:
    size = s.experts * ((s.m + s.n) * s.r + s.n)
    return Cost(size, size, min(s.m, s.n, s.experts * s.r))


def _sbora_fa(s: _Sizes) -> Cost:
    return Cost(s.m * s.r, s.m * s.r, min(s.m, s.n, s.r))


def _sbora_fb(s: _Sizes) -> Cost:
    return Cost(s.n * s.r, s.n * s.r, min(s.m, s.n, s.r))


def _adalora(s: _Sizes) -> Cost:
    size = (s.m + s.n + 1) * s.r
    return Cost(size, size, min(s.m, s.n, s.r))


def _vera(s: _Sizes) -> Cost:
    trained = s.m + s.r
    return Cost(trained, (s.m + s.n) * s.r + trained, min(s.m, s.n, s.r))


def _loha(s: _Sizes) -> Cost:
    size, rank = 2 * (s.m + s.n) * s.r, min(s.m, s.n, s.r**2)
    # ΔW is also a product of r²-column factors, which pays while r² is small.
    factored, dense = (s.m + s.n) * s.r**2, s.m * s.n
    if factored < dense:
        return Cost(size, factored, rank, macs_per_pass=factored)
    return Cost(size, dense, rank, macs_per_pass=dense * (2 * s.r + 1))


def _hira(s: _Sizes) -> Cost:
    dense = s.m * s.n
    return Cost((s.m + s.n) * s.r, dense, min(s.m, s.n), macs_per_pass=dense * (s.r + 1))


def _lokr(s: _Sizes) -> Cost:
    (p, u), (q, v) = kronecker_factors(s.m), kronecker_factors(s.n)
    if 2 * s.r >= max(u, v):  # the decomposition would save nothing, so PEFT keeps w2 whole
        return _krona(s)
    return _kronecker(s.m, s.n, second=(u + v) * s.r, rank=min(p, q) * min(u, v, s.r))


def _krona(s: _Sizes) -> Cost:
    (p, u), (q, v) = kronecker_factors(s.m), kronecker_factors(s.n)
    return _kronecker(s.m, s.n, second=u * v, rank=min(p, q) * min(u, v))


def _gralora(s: _Sizes) -> Cost:
    size = (s.m + s.n) * s.r  # k pairs, of (m/k) r and (n/k) r
    return Cost(size, size, min(s.m, s.n, s.blocks * s.r))


def _delora(s: _Sizes) -> Cost:
    size = (s.m + s.n) * s.r
    # The norms of A's rows and B's columns are taken in every pass.
    return Cost(size + 1, size + s.r + s.n, min(s.m, s.n, s.r), macs_per_pass=size)


def _c3a(s: _Sizes) -> Cost:
    size = s.m * s.n // (gcd(s.m, s.n) // s.blocks)
    return Cost(size, size, min(s.m, s.n))


def _miss(s: _Sizes) -> Cost:
    return Cost(s.m * s.r, s.m * s.r, min(s.m, s.n, s.r))


def _fourierft(s: _Sizes) -> Cost:
    dense = s.m * s.n
    trained = min(FREQUENCIES, dense)
    return Cost(trained, dense, min(s.m, s.n, 2 * trained))


def _vblora(s: _Sizes) -> Cost:
    size = (s.m + s.n) * s.r  # every number of A and B has one logit, as h = v
    return Cost(size, size, min(s.m, s.n, s.r), macs_per_pass=2 * size)


def _bdlora_a(s: _Sizes) -> Cost:
    size = s.m * s.r + s.n * s.r // s.blocks
    return Cost(size, size, min(s.m, s.n, s.r))


def _bdlora_b(s: _Sizes) -> Cost:
    size = s.m * s.r // s.blocks + s.n * s.r
    return Cost(size, size, min(s.m, s.n, s.r))


def _kronecker(m: int, n: int, *, second: int, rank: int) -> Cost:
    """w1 (p, q) ⊗ w2 (u, v), with ``second`` trained numbers in w2; x is taken as a q×v matrix: w1 x w2ᵀ."""
    (p, u), (q, _) = kronecker_factors(m), kronecker_factors(n)
    return Cost(p * q + second, q * second + p * q * u, rank)


#: FourierFT's trained coefficients (PEFT's default ``n_frequency``), or all m·n where there are fewer.
FREQUENCIES = 1000
#: Numbers in VB-LoRA's bank (PEFT's defaults: 256 vectors of length 256), which all matrices share.
BANK = 256 * 256

_FORMULAS: dict[str, Callable[[_Sizes], Cost]] = {
    "lora": _lora,
    "lora+": _lora,
    "rslora": _lora,
    "melora": _melora,
    "bora": _bora,
    "dora": _dora,
    "hydralora": _hydralora,
    "moelora": _moelora,
    "sbora-fa": _sbora_fa,
    "sbora-fb": _sbora_fb,
    "adalora": _adalora,
    "vera": _vera,
    "loha": _loha,
    "lokr": _lokr,
    "hira": _hira,
    "gralora": _gralora,
    "delora": _delora,
    "bdlora-a": _bdlora_a,
    "bdlora-b": _bdlora_b,
    "vblora": _vblora,
    "miss": _miss,
    "c3a": _c3a,
    "fourierft": _fourierft,
    "krona": _krona,
}

#: Accepted as well: LoRA+ (arXiv 2402.12354), LoRA with two learning rates; KronA, LoKr with both factors whole.
ALSO = ("lora+", "krona")
#: The methods that :func:`cost` knows, without those.
METHODS: tuple[str, ...] = tuple(method for method in _FORMULAS if method not in ALSO)
#: The methods that ``blocks`` concerns; of :data:`SPLIT` it must divide r too.
BLOCK_METHODS = ("melora", "bora", "gralora", "bdlora-a", "bdlora-b", "c3a")
SPLIT = ("gralora", "bdlora-a", "bdlora-b")
#: The methods that have no r.
NO_RANK = ("c3a", "fourierft", "krona")
#: The methods that ``experts`` concerns, with its default: HydraLoRA as in BoRA's tables (§4.1).
EXPERT_METHODS = {"hydralora": 3, "moelora": 8}


def cost(method: str, m: int, n: int, r: int, *, blocks: int = 1, experts: int | None = None) -> Cost:
    """Cost of one adapted matrix W ∈ R^{m×n}.

    ============ ============================== ========================== ===================
    method       parameters                     multiply-adds per token    rank bound
    ============ ============================== ========================== ===================
    lora, rslora (m+n)r                         the same                   min(m, n, r)
    lora+        (m+n)r                         the same                   min(m, n, r)
    melora       (m+n)r                         the same                   min(m, n, br)
    bora         (m+n+b²)r                      the same                   min(m, n, br)
    dora         (m+n)r + m                     the same                   min(m, n)
    hydralora    nr + K(mr + n)                 the same                   min(m, n, r)
    moelora      K((m+n)r + n)                  the same                   min(m, n, Kr)
    sbora-fa     mr                             the same                   min(m, n, r)
    sbora-fb     nr                             the same                   min(m, n, r)
    adalora      (m+n+1)r                       the same                   min(m, n, r)
    vera         m + r                          (m+n)r + m + r             min(m, n, r)
    loha         2(m+n)r                        min(mn, (m+n)r²)           min(m, n, r²)
    hira         (m+n)r                         mn                         min(m, n)
    lokr         pq + (u+v)r, or pq + uv        (u+v)rq + mq, or nu + mq   rank w1 · rank w2
    gralora      (m+n)r                         the same                   min(m, n, kr)
    delora       (m+n)r + 1                     (m+n)r + n + r             min(m, n, r)
    bdlora-a     mr + nr/N                      the same                   min(m, n, r)
    bdlora-b     mr/N + nr                      the same                   min(m, n, r)
    vblora       (m+n)r, and the bank once      (m+n)r                     min(m, n, r)
    miss         mr                             the same                   min(m, n, r)
    c3a          mn/s                           the same                   min(m, n)
    fourierft    min(1000, mn)                  mn                         min(m, n, 2000)
    ============ ============================== ========================== ===================

    Parameters
    ----------
    method : one of ``METHODS``, or of ``ALSO``.
    m, n : out_features and in_features.
    r : rank of one factor pair. AdaLoRA: that of training before pruning (PEFT's ``init_r``). MoELoRA: of one expert.
        KronA, C³A and FourierFT have none.
    blocks : b of BoRA, number of minis of MELoRA, k of GraLoRA (PEFT's ``gralora_k``), N of BD-LoRA (``nblocks``); it
        must divide m and n, for the last two also r. C³A: gcd(m, n)/blocks is s, the size of a circulant block.
    experts : K. HydraLoRA: matrices B (default 3, as in BoRA §4.1). MoELoRA: experts (default 8).

    Notes
    -----
    - Counted is what PEFT's ``print_trainable_parameters`` counts, without heads and biases, for every method that PEFT
      has. Its AdaLoRA trains ``init_r`` directions and prunes them later, so r is that one and not the budget's.
    - HydraLoRA, MoELoRA: a linear router n → K is counted, and all K experts are at work on every token.
    - VeRA: the frozen random A and B, shared by the layers, work but are not trained.
    - SBoRA: the frozen factor picks rows or columns and costs nothing.
    - DoRA, HiRA: the bound is for ΔW = W' − W with a full-rank W.
    - HiRA: W ⊙ BA is formed once per pass, as PEFT does. LoHa: ΔW is formed once, or its r²-column (Khatri-Rao)
      factors where they are cheaper; PEFT always forms ΔW.
    - LoKr: w1 ∈ R^{p×q}, w2 ∈ R^{u×v}, pu = m, qv = n, both pairs as square as they can be (``decompose_factor=-1``);
      w2 = w2a w2b of rank r where 2r < max(u, v), as in PEFT (``decompose_both=False``). Multiply-adds are those of
      w1 x w2ᵀ; PEFT forms ΔW instead. KronA (arXiv 2212.10650) keeps both factors whole at every r.
    - GraLoRA (arXiv 2505.20355): without the LoRA beside it (PEFT's ``hybrid_r`` = 0).
    - DeLoRA (arXiv 2503.18225): one number λ bounds ‖ΔW‖; the frozen norms of W's columns multiply x.
    - BD-LoRA: A or B block-diagonal, as PEFT's ``target_modules_bd_a`` and ``target_modules_bd_b`` say.
    - VB-LoRA (arXiv 2405.15179): a bank of h vectors of length v with h = v, as PEFT's defaults have it; v numbers of
      A and B each are a mixture of two of them, chosen by h logits, and formed once per pass. All logits are trained,
      though a file may keep the two largest alone. The bank, v² = 65,536 numbers, is trained once for all matrices and
      not counted here.
    - C³A (arXiv 2407.19342): blocks as large as gcd(m, n) for ``blocks`` = 1, the paper's b = d/1; multiply-adds are
      the products of the transformed blocks, without the Fourier transforms.
    - FourierFT (arXiv 2405.03003): PEFT's default of 1000 coefficients; ΔW is formed once per pass by a Fourier
      transform, which is not counted.

    Raises
    ------
    ValueError
        Unknown method, a size below 1, b that does not divide m and n, blocks or experts for a method without them.
        The message says what is possible.

    Examples
    --------
    >>> cost("bora", 4096, 4096, 8, blocks=16)
    Cost(parameters=67584, macs_per_token=67584, rank_bound=128, macs_per_pass=0)
    >>> cost("lora", 4096, 4096, 128).parameters  # the same bound
    1048576
    """
    if method not in _FORMULAS:
        raise ValueError(f"method {method!r} is unknown; known: {', '.join(METHODS)}")
    for name, value in (("m", m), ("n", n), ("r", r)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    if method in BLOCK_METHODS:
        check_blocks(blocks, [(m, n)])
    elif blocks != 1:
        raise ValueError(
            f"{method} has no blocks, and {blocks} were given; methods with blocks: {_listed(BLOCK_METHODS)}"
        )
    if method in SPLIT and r % blocks:
        raise ValueError(f"{method} splits r among the blocks: r = {r} is no multiple of {blocks}")
    if experts is None:
        experts = EXPERT_METHODS.get(method, 1)
    elif method not in EXPERT_METHODS:
        raise ValueError(
            f"{method} has no experts, and {experts} were given; methods with experts: {_listed(EXPERT_METHODS)}"
        )
    elif experts < 1:
        raise ValueError(f"experts is {experts}; expected at least 1")
    return _FORMULAS[method](_Sizes(m, n, r, blocks, experts))


def common_divisors(sizes: Iterable[int]) -> tuple[int, ...]:
    """Every b that divides all sizes, ascending.

    >>> common_divisors([768, 512])
    (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """
    common = gcd(*sizes)
    small = [k for k in range(1, isqrt(common) + 1) if common % k == 0]
    return tuple(sorted({*small, *(common // k for k in small)}))


def check_blocks(b: int, shapes: Iterable[tuple[int, int]]) -> None:
    """``ValueError``, with the b that would fit, unless b divides m and n of every shape (m, n)."""
    shapes = list(dict.fromkeys(shapes))
    if b < 1 or any(m % b or n % b for m, n in shapes):
        good = _listed(common_divisors(size for shape in shapes for size in shape))
        (m, n), *others = [(m, n) for m, n in shapes if b < 1 or m % b or n % b]
        among = "" if len(shapes) == 1 else f" ({len(others) + 1} of {len(shapes)} shapes)"
        raise ValueError(f"b = {b} does not divide m = {m} and n = {n}{among}; b may be {good}")


@lru_cache(maxsize=1024)
def kronecker_factors(size: int) -> tuple[int, int]:
    """(small, large) with small · large = size, as close to each other as they come.

    The same as PEFT's ``factorization(size, -1)``.

    >>> kronecker_factors(4096), kronecker_factors(14336), kronecker_factors(127)
    ((64, 64), (112, 128), (1, 127))
    """
    small = next(k for k in range(isqrt(size), 0, -1) if size % k == 0)
    return small, size // small


@dataclass(frozen=True)
class Blocks:
    """Which b reaches a rank most cheaply with BoRA: N(b) = R((m+n)/b + b) for the rank bound R = br.

    Attributes
    ----------
    shapes : the (m, n) of the matrices, all with the same b and R; one entry per matrix.
    optimum : the real b at which N is least: √(m+n), for several matrices √ of the mean of m+n.
    paper : the paper's rule ⌊√n⌋ (§3.3), whether it divides or not; None where the matrices differ in n.
    valid : every b that divides all sizes, ascending.
    best : the valid b with the least N; several where they tie.
    """

    shapes: tuple[tuple[int, int], ...]
    optimum: float
    paper: int | None
    valid: tuple[int, ...]
    best: tuple[int, ...]

    def parameters(self, b: int, rank: int = 1) -> Fraction:
        """N(b), exact, summed over the matrices; with ``rank`` 1 per unit of rank. Whole for every valid b."""
        return rank * sum((Fraction(m + n, b) + b for m, n in self.shapes), Fraction(0))


def optimal_blocks(m: int, n: int) -> Blocks:
    """The b with which BoRA reaches a given rank with the fewest parameters, for one matrix (paper §3.3).

    >>> found = optimal_blocks(4096, 4096)
    >>> found.optimum, found.paper, found.best  # a tie
    (90.50966799187809, 64, (64, 128))
    >>> found.parameters(64) == found.parameters(128) == 192
    True
    >>> optimal_blocks(1024, 4096).best
    (64,)
    """
    return shared_blocks([(m, n)])


def shared_blocks(shapes: Sequence[tuple[int, int]]) -> Blocks:
    """As :func:`optimal_blocks`, for matrices (m, n) that are to share b and the rank R; one entry per matrix.

    >>> shared_blocks([(4096, 4096), (1024, 4096), (1024, 4096)]).best
    (64,)
    """
    _check_shapes(shapes)
    total = sum(m + n for m, n in shapes)
    inputs = {n for _, n in shapes}
    valid = common_divisors(size for shape in shapes for size in shape)
    # b and not R decides: the sum over k matrices is R(total/b + kb).
    price = {b: Fraction(total, b) + len(shapes) * b for b in valid}
    least = min(price.values())
    return Blocks(
        shapes=tuple(shapes),
        optimum=sqrt(total / len(shapes)),
        paper=isqrt(inputs.pop()) if len(inputs) == 1 else None,
        valid=valid,
        best=tuple(b for b in valid if price[b] == least),
    )


def blocks_curve(m: int, n: int, rank: int = 1) -> dict[int, int]:
    """b → N(b) = R((m+n)/b + b) for every b that divides m and n; R = ``rank``.

    >>> blocks_curve(4, 4)
    {1: 9, 2: 6, 4: 6}
    """
    found = optimal_blocks(m, n)
    return {b: int(found.parameters(b, rank)) for b in found.valid}


class Choice(NamedTuple):
    """An adapter that a budget may buy: a method at r and b on all matrices, and what it costs there in all."""

    method: str
    r: int
    blocks: int
    parameters: int
    macs_per_token: int
    #: Mean over the matrices.
    rank_bound: float
    #: Σ rank bounds / Σ parameters.
    bound_per_parameter: float


def within_budget(
    shapes: Sequence[tuple[int, int]],
    budget: int,
    *,
    methods: Sequence[str] = METHODS,
    at_least: float = 0.9,
    experts: int | None = None,
) -> list[Choice]:
    """Every (method, r, b) whose parameters lie between ``at_least`` · budget and the budget.

    r runs over the powers of two, three times these, and the largest r that fits, up to the smallest min(m, n); b over
    the divisors ≥ 2 that all sizes share (1 for the methods without blocks). Methods without r have r = 1; GraLoRA and
    BD-LoRA only multiples of b.

    Parameters
    ----------
    shapes : (m, n) of the adapted matrices, one entry per matrix.
    budget : trained parameters of the whole adapter.
    at_least : share of the budget that has to be used; 0 for everything below it.
    experts : K of HydraLoRA and MoELoRA, see :func:`cost`.

    Returns
    -------
    Sorted by rank bound, the highest first, then by parameters, the fewest first.

    Raises
    ------
    ValueError
        Nothing fits; the message names the nearest below and above.

    Examples
    --------
    >>> best = within_budget([(768, 768)] * 24, 300_000, methods=["lora", "bora"])[0]
    >>> best.method, best.r, best.blocks, best.rank_bound, best.parameters
    ('bora', 3, 48, 144.0, 276480)
    """
    _check_shapes(shapes)
    if budget < 1:
        raise ValueError(f"budget is {budget}; expected at least 1 parameter")
    if not 0 <= at_least <= 1:
        raise ValueError(f"at_least is {at_least}; expected a share of the budget between 0 and 1")
    every = _choices(shapes, budget, methods, experts)
    found = [choice for choice in every if at_least * budget <= choice.parameters <= budget]
    if not found:
        below = max((c for c in every if c.parameters <= budget), key=lambda c: c.parameters, default=None)
        above = min((c for c in every if c.parameters > budget), key=lambda c: c.parameters, default=None)
        near = " and ".join(f"{_named(c)} with {c.parameters:,}" for c in (below, above) if c is not None)
        raise ValueError(f"nothing takes {ceil(at_least * budget):,} to {budget:,} parameters; the nearest: {near}")
    return sorted(found, key=lambda c: (-c.rank_bound, c.parameters))


def _choices(
    shapes: Sequence[tuple[int, int]], budget: int, methods: Sequence[str], experts: int | None
) -> list[Choice]:
    counts = Counter(shapes)
    top = min(min(shape) for shape in shapes)
    usual = sorted(r for k in range(top.bit_length()) for r in (2**k, 3 * 2**k) if r <= top)
    shared = common_divisors(size for shape in counts for size in shape)[1:]
    out: dict[tuple[object, ...], Choice] = {}
    for method in methods:
        for b in shared if method in BLOCK_METHODS else (1,):

            def choice(r: int, method: str = method, b: int = b) -> Choice:
                count = experts if method in EXPERT_METHODS else None
                each = [(k, cost(method, m, n, r, blocks=b, experts=count)) for (m, n), k in counts.items()]
                parameters = sum(k * c.parameters for k, c in each)
                bounds = sum(k * c.rank_bound for k, c in each)
                macs = sum(k * c.macs_per_token for k, c in each)
                return Choice(method, r, b, parameters, macs, bounds / len(shapes), bounds / parameters)

            step = b if method in SPLIT else 1
            possible = range(step, top + 1, step)
            largest = bisect_right(possible, budget, key=lambda r: choice(r).parameters)
            for r in sorted({*usual, step * max(largest, 1)} & set(possible)):
                found = choice(r)
                # LoKr stops growing at some r, others have none: the first one stands for the rest.
                out.setdefault((method, b, *found[3:]), found)
    return list(out.values())


def _check_shapes(shapes: Sequence[tuple[int, int]]) -> None:
    if not shapes or any(size < 1 for shape in shapes for size in shape):
        raise ValueError(f"shapes are {list(shapes)}; expected at least one (m, n), both at least 1")


def _named(choice: Choice) -> str:
    sizes = [f"r = {choice.r}"] * (choice.method not in NO_RANK)
    sizes += [f"b = {choice.blocks}"] * (choice.method in BLOCK_METHODS)
    return f"{choice.method} {', '.join(sizes)}".rstrip()


#: Bytes per number of the dtypes that adapters are trained in.
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes that training an adapter takes, without activations and the frozen model."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def memory(parameters: int, dtype: str = "float32", *, master: bool = False) -> Memory:
    """Memory of training ``parameters`` numbers with AdamW.

    Parameters
    ----------
    parameters : trained numbers.
    dtype : of weights and gradients; the two moments have it too, as in PyTorch's AdamW.
    master : keep a float32 copy of the weights and float32 moments in the optimizer, as mixed-precision trainers do
        (16 bytes for a 16-bit weight: ZeRO, arXiv 1910.02054, §3.1).

    Raises
    ------
    ValueError
        Unknown dtype; the message lists the known ones.

    Examples
    --------
    >>> memory(1000), memory(1000).total
    (Memory(weights=4000, gradients=4000, optimizer=8000), 16000)
    >>> memory(1000, "bfloat16", master=True)
    Memory(weights=2000, gradients=2000, optimizer=12000)
    """
    if dtype not in BYTES:
        raise ValueError(f"dtype {dtype!r} is unknown; known: {_listed(BYTES)}")
    size = BYTES[dtype]
    state = 3 * BYTES["float32"] if master else 2 * size
    return Memory(parameters * size, parameters * size, parameters * state)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
