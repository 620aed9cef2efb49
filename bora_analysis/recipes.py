"""How each method's random factors are made: the table behind :mod:`bora_analysis.synthetic`.

A recipe turns a specification, a generator and (m, n) into the parts that :mod:`bora_analysis.adapters.forms` names, in
float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import numpy as np

from .adapters.sparse import SCALING
from .adapters.vblora import TOPK
from .cost import FREQUENCIES, kronecker_factors
from .delta import Array

if TYPE_CHECKING:
    from .synthetic import Synthetic as Spec  # what a recipe is asked for

Parts = dict[str, Array]
#: Length of the vectors in VB-LoRA's bank, at most, and their number (PEFT's defaults).
LENGTH = 256


Maker = Callable[["Spec", np.random.Generator, int, int], Parts]


class Recipe(NamedTuple):
    """How a method's factors are made, and what its sizes must be.

    Attributes
    ----------
    make : specification, generator, m, n → the parts.
    blocks : what ``blocks`` is by default; 0 for a method without.
    divides : whether blocks must divide m and n. splits : whether it must divide r too.
    most : specification, m, n → the largest r; None where any will do.
    ranked : whether the method has an r at all. scaled : whether it has an α.
    """

    make: Maker
    blocks: int = 0
    divides: bool = True
    splits: bool = False
    most: Callable[[Spec, int, int], int] | None = None
    ranked: bool = True
    scaled: bool = True


def slots(spec: Spec, count: int) -> Array:
    """k^−p for k = 1 … count; ones unless the kind is ``"decay"``."""
    return np.arange(1, count + 1) ** -(spec.decay if spec.kind == "decay" else 0.0)


def pair(spec: Spec, rng: np.random.Generator, m: int, n: int, r: int | None = None) -> tuple[Array, Array]:
    """B (m, r) and A (r, n) of the kind; the product's singular values are about the scale."""
    r, size = r or spec.r, math.sqrt(spec.scale)
    if spec.kind == "init":
        return np.zeros((m, r), np.float32), kaiming(rng, (r, n))
    B = rng.standard_normal((m, r), dtype=np.float32)
    A = rng.standard_normal((r, n), dtype=np.float32)
    if spec.kind == "gaussian":
        return B * np.float32(size / math.sqrt(m)), A * np.float32(size / math.sqrt(n))
    half = size * np.arange(1, r + 1) ** (-spec.decay / 2)
    return (orthonormal(B) * half).astype(np.float32), (orthonormal(A.T) * half).T.astype(np.float32)


def kaiming(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int | None = None) -> Array:
    """Kaiming-uniform with a = √5, as ``torch.nn.init`` draws a linear layer's weight: bound 1/√fan_in."""
    bound = 1 / math.sqrt(fan_in or shape[-1])
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def orthonormal(X: Array) -> Array:
    """Orthonormal columns (rows, where there are more columns than rows), float64."""
    tall = X.shape[0] >= X.shape[1]
    Q = np.linalg.qr(X.astype(np.float64) if tall else X.T.astype(np.float64)).Q
    return Q if tall else Q.T


def _lora(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    B, A = pair(spec, rng, m, n)
    return {"B": B, "A": A}


def _melora(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    minis = [pair(spec, rng, m // spec.blocks, n // spec.blocks) for _ in range(spec.blocks)]
    return {"B": np.stack([B for B, _ in minis]), "A": np.stack([A for _, A in minis])}


def _bora(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    b = spec.blocks
    if spec.kind == "decay":  # each block orthonormal, so that σ(ΔW) = σ(Σ') up to the slots' scales
        pairs = [pair(spec, rng, m // b, n // b) for _ in range(b)]
        B, A = np.concatenate([B for B, _ in pairs]), np.concatenate([A for _, A in pairs], axis=1)
    else:
        B, A = pair(spec, rng, m, n)
    return {"B": B, "A": A, "sigma": kaiming(rng, (b, b, spec.r), fan_in=b * spec.r)}


def _adalora(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """PEFT starts with normal factors (0.02) and E = 0."""
    if spec.kind == "init":
        B, A = (0.02 * rng.standard_normal(shape, dtype=np.float32) for shape in ((m, spec.r), (spec.r, n)))
        return {"B": B, "A": A, "E": np.zeros((spec.r, 1), np.float32)}
    B, A = pair(spec, rng, m, n)
    return {"B": B, "A": A, "E": np.ones((spec.r, 1), np.float32)}


def _sbora(side: str) -> Maker:
    """One factor, and different indices at random for the other."""

    def make(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
        B, A = pair(spec, rng, m, n)
        factor, size = (B, n) if side == "B" else (A, m)
        if spec.kind == "init":  # the trained factor starts at zero, or ΔW would not
            factor = np.zeros_like(factor)
        return {side: factor, "index": np.sort(rng.choice(size, spec.r, replace=False)), "size": np.array([size])}

    return make


def _hydralora(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    pairs = [pair(spec, rng, m, n) for _ in range(spec.blocks)]
    return {"A": pairs[0][1], "B": np.stack([B for B, _ in pairs]), "route": kaiming(rng, (spec.blocks, n))}


def _moelora(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    pairs = [pair(spec, rng, m, n) for _ in range(spec.blocks)]
    B, A = (np.stack(side) for side in zip(*pairs, strict=True))
    return {"A": A, "B": B, "gate": kaiming(rng, (spec.blocks, n))}


def _loha(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """Entries of the second product are about 1, so that the update has the size of the first."""
    first, second = pair(spec, rng, m, n), (rng.standard_normal((m, spec.r)), rng.standard_normal((spec.r, n)))
    w2_a, w2_b = (factor.astype(np.float32) / np.float32(spec.r**0.25) for factor in second)
    return {"w1_a": first[0], "w1_b": first[1], "w2_a": w2_a, "w2_b": w2_b}


def _lokr(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """w1 orthonormal, so that each singular value of w2 appears once for each of its own."""
    (p, u), (q, v) = kronecker_factors(m), kronecker_factors(n)
    w2_a, w2_b = pair(spec, rng, u, v)
    return {"w1": orthonormal(rng.standard_normal((p, q))).astype(np.float32), "w2_a": w2_a, "w2_b": w2_b}


def _krona(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    (p, u), (q, v) = kronecker_factors(m), kronecker_factors(n)
    if spec.kind == "gaussian":
        w2 = rng.standard_normal((u, v)) * (spec.scale / math.sqrt(max(u, v)))
    else:
        B, A = pair(spec, rng, u, v, min(u, v))
        w2 = B @ A
    return {"w1": orthonormal(rng.standard_normal((p, q))).astype(np.float32), "w2": w2.astype(np.float32)}


def _gralora(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    k = spec.blocks
    pairs = [pair(spec, rng, m // k, n // k) for _ in range(k)]
    return {"A": np.stack([A.T for _, A in pairs]), "B": np.stack([B.T for B, _ in pairs])}


def _bdlora(side: str) -> Maker:
    """The factor on ``side`` has N blocks, its rows (r of A, m of B) in as many groups."""

    def make(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
        B, A = pair(spec, rng, m, n)
        N, width = spec.blocks, spec.r // spec.blocks
        shape = (spec.r, n // N) if side == "A" else (m, width)
        outer = shape[1] if side == "A" else m // N
        if spec.kind == "init":
            cut = kaiming(rng, shape) if side == "A" else np.zeros(shape, np.float32)
        else:
            stacks = rng.standard_normal((N, outer, width))
            stacks = stacks / math.sqrt(outer) if spec.kind == "gaussian" else np.stack([*map(orthonormal, stacks)])
            stacks *= np.sqrt(spec.scale * slots(spec, spec.r)).reshape(N, 1, width)
            cut = (stacks.transpose(0, 2, 1) if side == "A" else stacks).reshape(shape)
        return {"A": A, "B": B, side: cut.astype(np.float32), "nblocks": np.array([N])}

    return make


def _delora(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """The norms of the base's columns are 1.

    DeLoRA divides each slot by its norms, so that ΔW falls off only through directions that the slots share: those of B
    have the Gram matrix with the wished eigenvalues and ones on its diagonal.
    """
    r, norm = spec.r, np.ones(n, np.float32)
    if spec.kind == "init":  # PEFT's λ
        B, A = pair(spec, rng, m, n)
        return {"A": A, "B": B, "bound": np.array([15.0], np.float32), "norm": norm}
    A, B, bound = rng.standard_normal((r, n)), rng.standard_normal((m, r)), spec.scale * r
    if spec.kind == "decay" and r > 1:
        from scipy.stats import random_correlation  # here: a slow import

        squares = slots(spec, r) ** 2
        squares *= r / squares.sum()
        vectors = np.linalg.eigh(random_correlation.rvs(squares, random_state=rng, tol=1e-8)).eigenvectors
        A, B = orthonormal(A.T).T, orthonormal(B) @ (vectors * np.sqrt(squares[::-1])).T
        bound /= math.sqrt(squares[0])
    parts = {"A": A, "B": B, "bound": np.array([bound]), "norm": norm}
    # In order, as they are read from a file: sums over rows depend on it in their last bit.
    return {name: np.ascontiguousarray(part, np.float32) for name, part in parts.items()}


def _vera(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """Projections as PEFT draws them (Kaiming-uniform with a = 0), of the largest m and n, the same for all modules."""
    rows, columns = (max(shape[side] for shape in spec.shapes.values()) for side in (0, 1))
    draw, r = np.random.default_rng([spec.seed, crc32(b"vera")]), spec.r
    A = (math.sqrt(6) * kaiming(draw, (r, columns))).astype(np.float32)
    B = (math.sqrt(6) * kaiming(draw, (rows, r))).astype(np.float32)
    if spec.kind == "init":
        lambda_b, lambda_d = np.zeros(m), np.full(r, 0.1)
    else:
        reach = math.sqrt(2 * n / columns) * math.sqrt(2 * m / r)  # norms of A's rows and B's columns
        lambda_b, lambda_d = rng.standard_normal(m) * (spec.scale / reach), slots(spec, r)
    vectors = {"lambda_b": lambda_b.astype(np.float32), "lambda_d": lambda_d.astype(np.float32)}
    return {**vectors, "A": A, "B": B, "shape": np.array([m, n])}


def vector_length(spec: Spec) -> int:
    """The longest vector, up to 256, that divides all sizes: that of VB-LoRA's bank, and the number of its vectors."""
    common = math.gcd(*(size for shape in spec.shapes.values() for size in shape))
    return max(k for k in range(1, LENGTH + 1) if common % k == 0)


def _vblora(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """A bank of h vectors, the same for all modules; with decay slot k mixes those of a group whose size falls."""
    h = v = vector_length(spec)
    draw, r = np.random.default_rng([spec.seed, crc32(b"vblora")]), spec.r
    logits = [rng.standard_normal(shape) for shape in ((r, n // v, h), (m // v, r, h))]
    if spec.kind == "init":  # PEFT's
        bank, logits = draw.uniform(-0.02, 0.02, (h, v)), [0.1 * part for part in logits]
    else:
        spans = [math.sqrt(p * q) for p, q in spec.shapes.values()]
        # A mixture of two independent vectors, half of each, is shorter by √2.
        bank = draw.standard_normal((h, v)) * math.sqrt(2 * spec.scale / float(np.median(spans)))
        if spec.kind == "decay":
            group = np.arange(h) * r // h
            bank *= np.sqrt(slots(spec, r))[group, None]
            own = 20.0 * (group[None] == np.arange(r)[:, None])  # (r, h), above all other logits
            logits = [logits[0] + own[:, None], logits[1] + own[None]]
    parts = {"A": logits[0], "B": logits[1], "bank": bank}
    return {name: part.astype(np.float32) for name, part in parts.items()}


def _miss(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """ΔW repeats the block's columns n/r times, which makes its singular values √(n/r) times the block's."""
    B, _ = pair(spec, rng, m, n)
    size = math.sqrt(spec.scale) * math.sqrt(spec.r / n)
    falling = np.sqrt(slots(spec, spec.r))[:, None]  # the other half of k^−p
    return {"block": (B.T * falling * size).astype(np.float32), "shape": np.array([m, n])}


def _c3a(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """With decay frequency f of every block is the same matrix times (1+f)^−p: σ(ΔW) are these, repeated."""
    s = math.gcd(m, n) // spec.blocks
    shape = m // s, n // s, s
    if spec.kind == "init":  # PEFT's Xavier-uniform
        bound = math.sqrt(6 / (m + n))
        kernel = rng.uniform(-bound, bound, shape)
    elif spec.kind == "gaussian":
        kernel = rng.standard_normal(shape) * (spec.scale * n / math.sqrt(max(m, n)))
    else:
        Q = orthonormal(rng.standard_normal(shape[:2]))
        kernel = spec.scale * n * Q[:, :, None] * np.fft.irfft(slots(spec, s // 2 + 1), s)
    return {"kernel": kernel.astype(np.float32)}


def _fourierft(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """One coefficient c makes a wave of two singular values s c / 2√(mn), s = 150; many of them share the m × n."""
    count = min(FREQUENCIES, m * n)
    spectrum = rng.standard_normal(count)  # PEFT's beginning
    if spec.kind != "init":
        share = min(1.0, math.sqrt(min(m, n) / (2 * count)))
        size = spec.scale * 2 * math.sqrt(m * n) / SCALING
        spectrum = size * (share * spectrum if spec.kind == "gaussian" else np.sign(spectrum) * slots(spec, count))
    return {"spectrum": spectrum.astype(np.float32), "shape": np.array([m, n])}


def _of_lokr(_: Spec, m: int, n: int) -> int:
    """PEFT keeps w2 whole from max(u, v) / 2 on."""
    u, v = kronecker_factors(m)[1], kronecker_factors(n)[1]
    return min(u, v, (max(u, v) - 1) // 2)


RECIPES: dict[str, Recipe] = {
    "lora": Recipe(_lora),
    "rslora": Recipe(_lora),
    "melora": Recipe(_melora, 8),
    "bora": Recipe(_bora, 8),
    "sbora-fa": Recipe(_sbora("B"), most=lambda _, m, n: n),
    "sbora-fb": Recipe(_sbora("A"), most=lambda _, m, n: m),
    "hydralora": Recipe(_hydralora, 3, divides=False),
    "adalora": Recipe(_adalora),
    "loha": Recipe(_loha),
    "lokr": Recipe(_lokr, most=_of_lokr),
    "gralora": Recipe(_gralora, 2, splits=True),
    "krona": Recipe(_krona, ranked=False, scaled=False),
    "delora": Recipe(_delora, most=lambda _, m, n: min(m, n), scaled=False),
    "vera": Recipe(_vera, scaled=False),
    "vblora": Recipe(_vblora, most=lambda spec, m, n: vector_length(spec) // TOPK, scaled=False),
    "miss": Recipe(_miss, most=lambda _, m, n: min(m, n), scaled=False),
    "c3a": Recipe(_c3a, 8, ranked=False, scaled=False),
    "fourierft": Recipe(_fourierft, ranked=False, scaled=False),
    "bdlora-a": Recipe(_bdlora("A"), 2, splits=True),
    "bdlora-b": Recipe(_bdlora("B"), 2, splits=True),
    "moelora": Recipe(_moelora, 8, divides=False),
}
