"""The cost of each method from its sizes alone. These formulas stand nowhere else.

One adapted matrix is W ∈ R^{m×n}, m = out_features, n = in_features. For the conventions see
:func:`bora_analysis.catalogue.cost.cost`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

from .sizes import divisor_near, kronecker_factors


@dataclass(frozen=True)
class Cost:
    """The cost of one adapted matrix. For several matrices add the fields, except ``rank_bound``.

    Attributes
    ----------
    parameters : trained numbers.
    macs_per_token : multiply-adds per token beyond the frozen m·n (the paper's "FLOPs").
    rank_bound : least upper bound on rank(ΔW) from the sizes alone; for a single token if ΔW depends on the token.
    macs_per_pass : multiply-adds once per forward pass, independent of the number of tokens.
    """

    parameters: int
    macs_per_token: int
    rank_bound: int
    macs_per_pass: int = 0

    @property
    def flops_per_token(self) -> int:
        """Two for each multiply-add, the usual convention."""
        return 2 * self.macs_per_token


class Sizes(NamedTuple):
    """The arguments of a formula; ``blocks`` and ``experts`` are 1 for a method without them."""

    m: int
    n: int
    r: int
    blocks: int
    experts: int


def _direct(numbers: Callable[[Sizes], int], rank: Callable[[Sizes], int]) -> Callable[[Sizes], Cost]:
    """The formula of a method whose every trained number takes one multiply-add per token."""
    return lambda s: Cost(numbers(s), numbers(s), min(s.m, s.n, rank(s)))


def _few(s: Sizes) -> int:
    """The trained entries of Super-Tuning, by PEFT's own rounding."""
    return max(1, int(s.m * s.n * (1 - SPARSITY)))


lora = _direct(lambda s: (s.m + s.n) * s.r, lambda s: s.r)
melora = _direct(lambda s: (s.m + s.n) * s.r, lambda s: s.blocks * s.r)
bora = _direct(lambda s: (s.m + s.n + s.blocks**2) * s.r, lambda s: s.blocks * s.r)
hydralora = _direct(lambda s: s.n * s.r + s.experts * (s.m * s.r + s.n), lambda s: s.r)
moelora = _direct(lambda s: s.experts * ((s.m + s.n) * s.r + s.n), lambda s: s.experts * s.r)
sbora_fa = _direct(lambda s: s.m * s.r, lambda s: s.r)
sbora_fb = _direct(lambda s: s.n * s.r, lambda s: s.r)
adalora = _direct(lambda s: (s.m + s.n + 1) * s.r, lambda s: s.r)
relora = _direct(lambda s: (s.m + s.n) * s.r, lambda s: s.blocks * s.r)
gralora = melora  # k pairs, each of (m/k) r and (n/k) r numbers
miss = sbora_fa
bdlora_a = _direct(lambda s: s.m * s.r + s.n * s.r // s.blocks, lambda s: s.r)
bdlora_b = _direct(lambda s: s.m * s.r // s.blocks + s.n * s.r, lambda s: s.r)
qalora = _direct(lambda s: (s.m + -(-s.n // GROUP)) * s.r, lambda s: min(-(-s.n // GROUP), s.r))
supertuning = _direct(_few, _few)
supra = _direct(lambda s: _few(s) + (s.m + s.n) * s.r, lambda s: _few(s) + s.r)


def c3a(s: Sizes) -> Cost:
    size = gcd(s.m, s.n) // s.blocks
    pairs = s.m * s.n // size**2
    # Real frequencies are one product, one for b odd and two for b even; the others come in pairs, a complex product
    # of four real ones for each. The transforms, O((m + n) log b), are not counted.
    return Cost(pairs * size, pairs * circulant_macs(size), min(s.m, s.n))


def circulant_macs(size: int) -> int:
    """Real multiplications of one circulant block of this size in the Fourier basis.

    >>> [circulant_macs(size) for size in (1, 2, 3, 4, 128)]
    [1, 2, 5, 6, 254]
    """
    return 2 * size - 2 + size % 2


def dora(s: Sizes) -> Cost:
    size = (s.m + s.n) * s.r + s.m
    # The row norms need W + sBA: m·n·r, and m·n for the squares.
    return Cost(size, size, min(s.m, s.n), macs_per_pass=s.m * s.n * (s.r + 1))


def vera(s: Sizes) -> Cost:
    trained = s.m + s.r
    return Cost(trained, (s.m + s.n) * s.r + trained, min(s.m, s.n, s.r))


def pvera(s: Sizes) -> Cost:
    trained = s.m + 2 * s.r  # training computes the mean and the variance
    return Cost(trained, (s.m + 2 * s.n) * s.r + trained, min(s.m, s.n, s.r))


def loha(s: Sizes) -> Cost:
    size, rank = 2 * (s.m + s.n) * s.r, min(s.m, s.n, s.r**2)
    # ΔW is also a product of factors with r² columns, which is cheaper for small r².
    factored, dense = (s.m + s.n) * s.r**2, s.m * s.n
    if factored < dense:
        return Cost(size, factored, rank, macs_per_pass=factored)
    return Cost(size, dense, rank, macs_per_pass=dense * (2 * s.r + 1))


def hira(s: Sizes) -> Cost:
    dense = s.m * s.n
    return Cost((s.m + s.n) * s.r, dense, min(s.m, s.n), macs_per_pass=dense * (s.r + 1))


def lokr(s: Sizes) -> Cost:
    (p, u), (q, v) = kronecker_factors(s.m), kronecker_factors(s.n)
    if 2 * s.r >= max(u, v):  # PEFT keeps w2 whole, because the decomposition saves nothing
        return krona(s)
    return _kronecker(s.m, s.n, second=(u + v) * s.r, rank=min(p, q) * min(u, v, s.r))


def krona(s: Sizes) -> Cost:
    (p, u), (q, v) = kronecker_factors(s.m), kronecker_factors(s.n)
    return _kronecker(s.m, s.n, second=u * v, rank=min(p, q) * min(u, v))


def delora(s: Sizes) -> Cost:
    size = (s.m + s.n) * s.r
    # Every pass computes the norms of A's rows and B's columns.
    return Cost(size + 1, size + s.r + s.n, min(s.m, s.n, s.r), macs_per_pass=size)


def fourierft(s: Sizes) -> Cost:
    dense = s.m * s.n
    trained = min(FREQUENCIES, dense)
    return Cost(trained, dense, min(s.m, s.n, 2 * trained))


def shira(s: Sizes) -> Cost:
    trained = min(ENTRIES * (s.m + s.n), s.m * s.n)
    return Cost(trained, trained, min(s.m, s.n, trained))


def unilora(s: Sizes) -> Cost:
    return Cost(0, (s.m + s.n) * s.r, min(s.m, s.n, s.r))


def vblora(s: Sizes) -> Cost:
    size = (s.m + s.n) * s.r  # every number of A and B has one logit, as h = v
    return Cost(size, size, min(s.m, s.n, s.r), macs_per_pass=2 * size)


def tinylora(s: Sizes) -> Cost:
    size = (s.m + s.n) * s.r + s.r**2
    return Cost(VECTOR, size, min(s.m, s.n, s.r), macs_per_pass=VECTOR * s.r**2)


def randlora(s: Sizes) -> Cost:
    least = min(s.m, s.n)
    bases = -(-least // s.r)
    trained, inner = bases * (s.r + least), bases * s.r
    return Cost(trained, (s.m + s.n) * inner, least, macs_per_pass=2 * least * inner)


def poly(s: Sizes) -> Cost:
    size = (s.m + s.n) * s.r
    return Cost(SKILLS * size + SKILLS, size, min(s.m, s.n, s.r), macs_per_pass=SKILLS * size)


def lily(s: Sizes) -> Cost:
    size = s.n * s.r + s.experts * (s.m * s.r + s.r)
    used = (s.m + s.n) * s.r + s.experts * s.r
    return Cost(size, used, min(s.m, s.n, s.r), macs_per_pass=s.experts * s.m * s.r)


def waveft(s: Sizes) -> Cost:
    dense = s.m * s.n
    trained = min(COEFFICIENTS, dense)
    return Cost(trained, dense, min(s.m, s.n, trained))


def deft(s: Sizes) -> Cost:
    size = (s.m + s.n) * s.r
    return Cost(size, size + s.m * s.r, min(s.m, s.n, s.r))


def psoft(s: Sizes) -> Cost:
    return Cost(s.r * (s.r - 1) // 2 + 2 * s.r, (s.m + s.n) * s.r + s.r**2, min(s.m, s.n, s.r))


def frod(s: Sizes) -> Cost:
    trained = s.n + beside_diagonal(s.n)
    return Cost(trained, s.n**2 + trained, min(s.m, s.n))


def beside_diagonal(n: int) -> int:
    """The trained entries of FRoD's S, by PEFT's own rounding of its default.

    >>> beside_diagonal(768), beside_diagonal(4), beside_diagonal(1)
    (5898, 1, 0)
    """
    return min(max(1, int(n**2 * 0.01)), n * (n - 1))


def osf(s: Sizes) -> Cost:
    least = min(s.m, s.n)
    kept = least - least // 2
    return Cost((s.m + s.n + 1) * kept, 2 * (s.m + s.n) * kept, least)


def glora(s: Sizes) -> Cost:
    dense = s.m * s.n
    return Cost(2 * (s.m + s.n) * s.r, dense, min(s.m, s.n), macs_per_pass=dense * (2 * s.r + 1))


def peanut(s: Sizes) -> Cost:
    return Cost(2 * s.m * s.r, (s.m + s.n) * s.r, min(s.m, s.n, s.r), macs_per_pass=s.m * s.n * s.r)


def adamss(s: Sizes) -> Cost:
    clusters, r = min(CLUSTERS, s.m), min(s.m, s.n, s.r)
    trained = clusters * r + s.m
    return Cost(trained, s.n * r + trained, min(r, clusters))


def tlora(s: Sizes) -> Cost:
    size = (s.m + s.n + 1) * s.r
    return Cost(size, 2 * size, min(s.m, s.n, 2 * s.r))


def road(s: Sizes) -> Cost:
    return Cost(s.m, 2 * s.m, min(s.m, s.n))


def oft(s: Sizes) -> Cost:
    b = divisor_near(s.n, s.r)
    # R − I is a skew-symmetric matrix times another, and one of odd size is singular.
    return Cost(s.n * (b - 1) // 2, s.n * b, min(s.m, s.n // b * (b - b % 2)))


def boft(s: Sizes) -> Cost:
    size = s.n * divisor_near(s.n, s.r) + s.m
    return Cost(size, size, min(s.m, s.n))


def hra(s: Sizes) -> Cost:
    return Cost(s.n * s.r, 2 * s.n * s.r + s.r**2, min(s.m, s.n, s.r))


def ia3(s: Sizes) -> Cost:
    return Cost(s.m, s.m, min(s.m, s.n))


def moved(s: Sizes) -> Cost:
    """A LoRA that begins elsewhere than at zero."""
    size = (s.m + s.n) * s.r
    return Cost(size, size, min(s.m, s.n, 2 * s.r))


def full(s: Sizes) -> Cost:
    return Cost(s.m * s.n, 0, min(s.m, s.n))


def _kronecker(m: int, n: int, *, second: int, rank: int) -> Cost:
    """w1 (p, q) ⊗ w2 (u, v), with ``second`` trained numbers in w2; x as a q×v matrix gives w1 x w2ᵀ."""
    (p, u), (q, _) = kronecker_factors(m), kronecker_factors(n)
    return Cost(p * q + second, q * second + p * q * u, rank)


#: FourierFT's trained coefficients (PEFT's default ``n_frequency``), or all m·n if that is fewer.
FREQUENCIES = 1000
#: Numbers in VB-LoRA's bank (PEFT's defaults: 256 vectors of length 256), which all matrices share.
BANK = 256 * 256
#: Uni-LoRA's vector (PEFT's default), which all matrices share.
SHARED_VECTOR = 256
#: PEFT's defaults: the r of SHiRA, which trains r(m + n) entries; AdaMSS's clusters.
ENTRIES, CLUSTERS = 32, 5
#: PEFT's defaults: TinyLoRA's vector, QALoRA's inputs in a group, Poly's skills, the share of entries that Super-Tuning
#: leaves, WaveFT's coefficients.
VECTOR, GROUP, SKILLS, SPARSITY, COEFFICIENTS = 64, 16, 4, 0.99, 2592
