"""BOFT (arXiv 2311.06243): ΔW = s ⊙ (W0 Rᵀ) − W0, R a butterfly. ``boft_R`` (N, n/b, b, b), ``boft_s`` (m, 1)."""

from __future__ import annotations

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import fitted, read_parts
from ..files.tensors import Array
from ..updates.contract import Facts, Update
from .oft import block_size, cayley, room, rotated
from .on_base_model import base_matrix, checked
from .random_base import deviations, form_on_base, on_base, skew
from .random_factors import Parts, Spec


def read(source: Source) -> Found | None:
    """BOFT: a product of block-diagonal rotations with butterfly permutations between them, and a scale per output."""
    return read_parts(source, "boft_R|boft_s", "boft", _loader)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    keys, sizes = fitted(source, parts, R="boft_R (N, n/b, b, b)", s="boft_s (scales…)")
    N, blocks, b = sizes["N"], sizes["n/b"], sizes["b"]
    base = base_matrix(source, "BOFT", module, keys["R"])
    m, n = base.shape
    fits = blocks * b == n and (N == 1 or (b % 2 == 0 and blocks % 2 ** (N - 1) == 0))
    source.expect(fits, keys["R"], f"(N, n/b, b, b) with n = {n} ({base.key})")
    source.expect(np.prod(source.tensors.shape(keys["s"])) == m, keys["s"], f"{m} numbers ({base.key})")

    def build(R: Array, s: Array, *, dtype: str) -> Update:
        D = R.astype(np.float64)
        rotations = cayley(0.5 * (D - D.swapaxes(-1, -2)))
        facts = Facts("boft", m, n, b, blocks, 1.0, R.size + m, N * n * b + m, min(m, n), dtype)

        def make() -> Array:
            W = base.read()
            out = W.astype(np.float64)
            for level in range(N):
                order = _butterfly(n, b, level)
                out = rotated(out[:, np.argsort(order)], rotations[level])[:, order]
            out *= s.reshape(m, 1)
            out -= W
            return out

        return checked(source, keys["R"], facts, make)

    return source.loader(keys, build)


def _butterfly(n: int, b: int, level: int) -> Array:
    """PEFT's ``block_butterfly_perm``: blocks of b·2^level, cut into halves of b: the even ones, then the odd ones."""
    if level == 0:
        return np.arange(n)
    units = 2 ** (level + 1)
    order = np.r_[0:units:2, 1:units:2]
    return np.arange(n).reshape(-1, units, b // 2)[:, order].ravel()


def random(spec: Spec, rng: np.random.Generator, W0: Array) -> Parts:
    """One factor, PEFT's default, which starts with S = 0 and s = 1."""
    m, n = W0.shape
    b = block_size(spec)
    S = skew(spec, rng, n // b, b, m, n)
    return {"R": S[None], "s": 1 + deviations(spec, rng, m, m, n)[:, None]}


FORMS = {
    "boft": form_on_base(
        read,
        {"R": "boft_R", "s": "boft_s"},
        settings=lambda a: {
            "boft_block_size": a["R"].shape[-1], "boft_block_num": 0, "boft_n_butterfly_factor": len(a["R"]),
        },
    )
}  # fmt: skip
RECIPES = {"boft": on_base(random, room)}
