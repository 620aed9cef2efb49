"""GraLoRA (arXiv 2505.20355): k × k blocks, each of its own rank r/k, and a LoRA over all beside them (hybrid).

PEFT: ``<module>.gralora_A`` (k, n/k, r), ``.gralora_B`` (k, r, m/k); hybrid ``.gralora_A_general.weight`` (h, n),
``.gralora_B_general.weight`` (m, h). Block (i, j) of ΔW is Σ_ρ B[i, j r/k + ρ, :] A[j, :, i r/k + ρ]ᵀ, all times
α/(r + h) with the configuration's ``alpha`` (``gralora/layer.py``).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import fitted, read_parts
from ..linalg import Array
from ..linalg.gaussian import gaussian_triangle
from ..projections import Projection, Target, Wish
from ..updates.blocks import lora
from ..updates.contract import Update
from .file_form import Form, stored
from .random_factors import NoNullError, Null, Parts, Recipe, Sizes, Spec, expect, pair


def read(source: Source) -> Found | None:
    """GraLoRA as PEFT saves it, hybrid or not."""
    return read_parts(source, "gralora_[AB](_general)?", "gralora", _loader, scaled=True)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    keys, sizes = fitted(source, parts, A="gralora_A (k, n/k, r)", B="gralora_B (k, r, m/k)")
    k, r = sizes["k"], sizes["r"]
    source.expect(r % k == 0, keys["A"], "(k, n/k, r) with r a multiple of k")
    if len(parts) > 2:
        known = {"m": k * sizes["m/k"], "n": k * sizes["n/k"]}
        shapes = {"A_general": "gralora_A_general (h, n)", "B_general": "gralora_B_general (m, h)"}
        general, sizes = fitted(source, parts, known, f"{keys['A']} and {keys['B']}", **shapes)
        keys |= general
    source.check_rank(module, keys["A"], r)
    scaling = source.scaling(module, r + sizes.get("h", 0), name="alpha")
    return source.loader(keys, partial(build, scaling=scaling))


def build(
    A: Array,
    B: Array,
    A_general: Array | None = None,
    B_general: Array | None = None,
    *,
    scaling: float,
    dtype: str,
) -> Update:
    k, width, r = A.shape
    height, part = B.shape[2], r // k
    # Inner index (i, j, ρ): left is block-diagonal in i, right in j.
    left = np.zeros((k, height, k, r))
    right = np.zeros((k, k, part, k, width))
    for i in range(k):
        left[i, :, i] = B[i].T
        right[:, i, :, i] = A[i].reshape(width, k, part).transpose(1, 2, 0)
    L, R = left.reshape(k * height, k * r), right.reshape(k * r, k * width)
    count = A.size + B.size
    if A_general is not None and B_general is not None:
        L, R = np.concatenate([L, B_general], axis=1), np.concatenate([R, A_general])
        count += A_general.size + B_general.size
    update = lora(L, R, scaling=scaling, method="gralora", dtype=dtype, any_rank=True)
    return update.with_facts(r=r, parameters=count, macs_per_token=count)


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    k = spec.blocks
    pairs = [pair(spec, rng, m // k, n // k) for _ in range(k)]
    return {"A": np.stack([A.T for _, A in pairs]), "B": np.stack([B.T for B, _ in pairs])}


def nearest(target: Target, wish: Wish) -> tuple[Parts, float]:
    """Each of the k × k blocks has its own pair of rank r/k."""
    k, part, (m, n) = wish.blocks, wish.r // wish.blocks, target.shape
    A, B, captured = np.zeros((k, n // k, k, part)), np.zeros((k, k, part, m // k)), 0.0
    for i, row in enumerate(target.grid(k)):
        for j, block in enumerate(row):
            left, right, energy = block.pair(part)
            A[j, :, i], B[i, j], captured = right.T, left.T, captured + energy
    return {"A": A.reshape(k, n // k, wish.r), "B": B.reshape(k, wish.r, m // k)}, captured


FORMS = {
    "gralora": Form(
        {"A": "gralora_A", "B": "gralora_B"},
        lambda a, s, _: build(a["A"], a["B"], scaling=s, dtype=stored(a)),
        lambda a: a["A"].shape[2],
        lambda a: {"gralora_k": a["A"].shape[0], "hybrid_r": 0},
        alpha="alpha",
    )
}


def null_cores(sizes: Sizes, rng: np.random.Generator) -> list[Array]:
    expect(sizes, (sizes.m + sizes.n) * sizes.r)  # no LoRA beside the blocks
    r, k = sizes.r, sizes.rank_bound // sizes.r  # min(m, n, kr)
    if sizes.rank_bound % r or sizes.m % k or sizes.n % k or r % k:
        raise NoNullError("has blocks whose number its row does not tell")
    R, L = (gaussian_triangle(rng, size // k, r, k) for size in (sizes.m, sizes.n))  # (k, ·, r)
    parts = [X.reshape(k, X.shape[1], k, r // k) for X in (R, L)]
    core = np.einsum("iajp,jbip->iajb", *parts, optimize=True)
    return [core.reshape(1, k * R.shape[1], k * L.shape[1])]


RECIPES = {"gralora": Recipe(random)}
NULLS = {"gralora": Null(null_cores)}
NEAREST = {"gralora": Projection(nearest)}
