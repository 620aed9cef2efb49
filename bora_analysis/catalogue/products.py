"""The matrix products of a training step of each method, from its sizes alone, as PEFT computes them.

They are what torch's ``FlopCounterMode`` counts: products of matrices, two FLOPs for each multiply-add, and nothing
that goes element by element. Tests compare all of them with that counter, to the last one.

A product X Y of forward pass takes as much again backwards for each of X and Y that needs a gradient. So a chain of
products of trained factors takes twice its forward pass backwards, of which the first product's part is for x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from .formulas import VECTOR, Sizes
from .sizes import divisor_near, kronecker_factors


@dataclass(frozen=True)
class Products:
    """Multiply-adds of one adapted matrix, the frozen layer's m·n left out.

    Attributes
    ----------
    forward, backward : per token; ``backward`` for the trained numbers alone.
    inputs : per token and backwards, for the gradient of the layer's input, which the first adapted layers of a model
        with frozen embeddings do not compute.
    forward_once, backward_once : once for all tokens.
    through : whether the trained numbers come before the frozen layer, so that the gradient goes back through it even
        where the input needs none.
    """

    forward: int
    backward: int
    inputs: int
    forward_once: int = 0
    backward_once: int = 0
    through: bool = False


Count = Callable[[Sizes], Products]


def _chain(forward: Callable[[Sizes], int], first: Callable[[Sizes], int]) -> Count:
    """Products of trained factors, the first of them with x."""
    return lambda s: Products(forward(s), 2 * forward(s) - first(s), first(s))


def _whole(once: int = 0, back: int = 0) -> Count:
    """ΔW formed in ``once`` · m·n·r multiply-adds (``back`` backwards), and multiplied by x."""

    def count(s: Sizes) -> Products:
        dense = s.m * s.n
        return Products(dense, dense, dense, once * dense * s.r, back * dense * s.r)

    return count


def _ones(factor: Callable[[Sizes], int]) -> Count:
    """One product of a trained factor and x."""
    return lambda s: Products(factor(s), factor(s), factor(s))


lora = _chain(lambda s: (s.m + s.n) * s.r, lambda s: s.n * s.r)
bdlora_a = _chain(lambda s: s.m * s.r + s.n * s.r // s.blocks, lambda s: s.n * s.r // s.blocks)
bdlora_b = _chain(lambda s: s.m * s.r // s.blocks + s.n * s.r, lambda s: s.n * s.r)
hydralora = _chain(lambda s: s.n * s.r + s.experts * (s.m * s.r + s.n), lambda s: s.n * s.r + s.experts * s.n)
deft = _chain(lambda s: (3 * s.m + s.n) * s.r, lambda s: (s.m + s.n) * s.r)
sbora_fa = miss = _ones(lambda s: s.m * s.r)
sbora_fb = _ones(lambda s: s.n * s.r)
loha, hira, glora, peanut = _whole(2, 6), _whole(1, 2), _whole(2, 4), _whole(2, 3)
fourierft = krona = _whole()


def melora(s: Sizes) -> Products:
    # Our layers keep x alone and multiply by A again in the backward pass.
    return Products((s.m + s.n) * s.r, (2 * s.m + 2 * s.n) * s.r, s.n * s.r)


def bora(s: Sizes) -> Products:
    mix = s.blocks**2 * s.r  # Σ': mixed again backwards, its own gradient, and the transposed one
    return Products((s.m + s.n) * s.r + mix, (2 * s.m + 2 * s.n) * s.r + 3 * mix, s.n * s.r)


def dora(s: Sizes) -> Products:
    plain = lora(s)
    # PEFT multiplies both factors with an identity matrix, for the norms of the rows, which get no gradient.
    return Products(plain.forward, plain.backward, plain.inputs, (s.n + s.m) * s.n * s.r)


def vera(s: Sizes) -> Products:
    return Products((s.m + s.n) * s.r, s.m * s.r, s.n * s.r)  # A and B are frozen


def lokr(s: Sizes) -> Products:
    (_, u), (_, v) = kronecker_factors(s.m), kronecker_factors(s.n)
    inner = 0 if 2 * s.r >= max(u, v) else u * v * s.r
    return Products(s.m * s.n, s.m * s.n, s.m * s.n, inner, 2 * inner)


def tinylora(s: Sizes) -> Products:
    inner = VECTOR * s.r**2
    return Products((s.m + s.n) * s.r + s.r**2, s.m * s.r + s.r**2, s.n * s.r + s.r**2, inner, inner)


def psoft(s: Sizes) -> Products:
    return Products((s.m + s.n) * s.r + s.r**2, s.m * s.r + s.r**2, s.n * s.r + s.r**2, 0, s.r**3)


def lily(s: Sizes) -> Products:
    forward, mixed = (s.m + s.n + s.experts) * s.r, s.experts * s.m * s.r
    return Products(forward, 2 * forward - s.n * s.r, s.n * s.r, mixed, 2 * mixed)


def c3a(s: Sizes) -> Products:
    blocks = s.m * s.n // (gcd(s.m, s.n) // s.blocks)  # both gradients are always computed
    return Products(blocks, 2 * blocks, 0)


def oft(s: Sizes) -> Products:
    b = divisor_near(s.n, s.r)
    once = 3 * s.n * b**2  # the third to fifth power of the Neumann series
    return Products(s.n * b, s.n * b, s.n * b, once, 2 * once, through=True)


def boft(s: Sizes) -> Products:
    # PEFT forms the whole rotation, between two permutations.
    b = divisor_near(s.n, s.r)
    return Products(s.n**2, s.n**2, s.n**2, 3 * s.n**3, 3 * s.n**3 + s.n * b**2, through=True)


def hra(s: Sizes) -> Products:
    square = s.n**2
    both = s.m + s.n
    return Products(0, s.m * s.n, 0, square * (both + 2 * s.r), square * (both + 4 * s.r - 1))


def scaled(_: Sizes) -> Products:
    """IA³ on outputs and RoAd: element by element."""
    return Products(0, 0, 0)


def entries(s: Sizes) -> Products:
    """Single entries of W, whose gradients PEFT takes from that of all of W."""
    return Products(0, s.m * s.n, 0)


#: Method → its products; what is missing here is not known.
PRODUCTS: dict[str, Count] = {
    **dict.fromkeys((
        "lora", "rslora", "lora+", "adalora", "gralora", "delora", "vblora", "kasa", "pissa", "lora-ga", "olora",
        "corda", "relora",
    ), lora),
    **dict.fromkeys(("ia3", "road"), scaled),
    **dict.fromkeys(("full", "supertuning"), entries),
    "melora": melora, "bora": bora, "dora": dora, "hydralora": hydralora, "sbora-fa": sbora_fa, "sbora-fb": sbora_fb,
    "vera": vera, "loha": loha, "lokr": lokr, "krona": krona, "hira": hira, "bdlora-a": bdlora_a, "bdlora-b": bdlora_b,
    "miss": miss, "c3a": c3a, "fourierft": fourierft, "tinylora": tinylora, "lily": lily, "deft": deft, "psoft": psoft,
    "glora": glora, "peanut": peanut, "oft": oft, "boft": boft, "hra": hra,
}  # fmt: skip
