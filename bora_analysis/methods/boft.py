"""BOFT (arXiv 2311.06243): ΔW = s ⊙ (W0 Rᵀ) − W0, R a butterfly. ``boft_R`` (N, n/b, b, b), ``boft_s`` (m, 1)."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..files.adapter_file import Found, Source
from ..files.base_model import BaseMatrix
from ..files.parts import collect, need, others
from ..files.tensors import Array
from ..updates.contract import Facts, Update
from .oft import cayley, rotated
from .on_base_model import base_matrix, checked


def read(source: Source) -> Found | None:
    """BOFT: a product of block-diagonal rotations with butterfly permutations between them, and a scale per output."""
    found, rest = collect(source, "boft_R|boft_s")
    if not found:
        return None
    loaders = {}
    for module, parts in found.items():
        R, s = need(source, parts, "boft_R", "boft_s")
        source.check_factor(R)
        source.check_factor(s)
        base = base_matrix(source, "BOFT", module, R)
        m, n = base.shape
        shape = source.tensors.shape(R)
        fits = len(shape) == 4 and shape[2] == shape[3] and shape[1] * shape[2] == n
        fits = fits and (shape[0] == 1 or (shape[2] % 2 == 0 and shape[1] % 2 ** (shape[0] - 1) == 0))
        source.expect(fits, R, f"(N, n/b, b, b) with n = {n} ({base.key})")
        source.expect(np.prod(source.tensors.shape(s)) == m, s, f"{m} numbers ({base.key})")
        loaders[module] = source.loader({"R": R, "s": s}, partial(_boft, source=source, key=R, base=base))
    return Found("boft", loaders, others(source, rest), [], scaled=False)


def _boft(R: Array, s: Array, *, source: Source, key: str, base: BaseMatrix, dtype: str) -> Update:
    m, n = base.shape
    N, blocks, b, _ = R.shape
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

    return checked(source, key, facts, make)


def _butterfly(n: int, b: int, level: int) -> Array:
    """PEFT's ``block_butterfly_perm``: blocks of b·2^level, cut into halves of b: the even ones, then the odd ones."""
    if level == 0:
        return np.arange(n)
    units = 2 ** (level + 1)
    order = np.r_[0:units:2, 1:units:2]
    return np.arange(n).reshape(-1, units, b // 2)[:, order].ravel()
