"""DeLoRA (arXiv 2503.18225): ΔW = B diag(λ / (r ‖A_i‖ ‖B_i‖)) A diag(w).

PEFT: ``<module>.delora_A`` (r, n), ``.delora_B`` (m, r), ``.delora_lambda`` (1,), and ``.delora_w_norm`` (n,), the
column norms of the frozen weight, which are saved, so that the base model is not needed (``delora/layer.py``).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import collect, need, others
from ..linalg import Array
from ..updates.blocks import diagonal
from ..updates.contract import Update
from .file_form import Form, stored
from .random_factors import Parts, Recipe, Spec, orthonormal, pair, slots


def read(source: Source) -> Found | None:
    """DeLoRA as PEFT saves it."""
    found, rest = collect(source, "delora_(A|B|lambda|w_norm)")
    if not found:
        return None
    loaders = {module: _loader(source, module, parts) for module, parts in found.items()}
    return Found("delora", loaders, others(source, rest), [], scaled=False)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    B, A, bound, norm = need(source, parts, "delora_B", "delora_A", "delora_lambda", "delora_w_norm")
    for key in (B, A, bound, norm):
        source.check_factor(key)
    shape = source.tensors.shape(A)
    source.expect(len(shape) == 2, A, "(r, n)")
    r, n = shape
    source.expect(source.tensors.shape(B)[1:] == (r,), B, f"(m, {r}) from delora_A {shape}")
    source.expect(source.tensors.shape(bound) == (1,), bound, "(1,)")
    source.expect(source.tensors.shape(norm) == (n,), norm, f"({n},) from delora_A {shape}")
    source.check_rank(module, A, r)
    return source.loader({"B": B, "A": A, "bound": bound, "norm": norm}, build)


def build(B: Array, A: Array, bound: Array, norm: Array, *, dtype: str) -> Update:
    left, right = B.astype(np.float64), A.astype(np.float64)
    # PEFT keeps the norms above 1e-4, so that a zero row does not divide by zero.
    sizes = np.maximum(np.linalg.norm(left, axis=0), 1e-4) * np.maximum(np.linalg.norm(right, axis=1), 1e-4)
    d = float(bound[0]) / (len(A) * sizes)
    update = diagonal(B, d, right * norm, method="delora", parameters=B.size + A.size + 1, dtype=dtype)
    # The norms multiply every input.
    return replace(update, facts=replace(update.facts, macs_per_token=update.facts.macs_per_token + norm.size))


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
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


FORMS = {
    "delora": Form(
        {"A": "delora_A", "B": "delora_B", "bound": "delora_lambda", "norm": "delora_w_norm"},
        lambda a, _, __: build(**a, dtype=stored(a)),
        lambda a: len(a["A"]),
        alpha=None,
    )
}
RECIPES = {"delora": Recipe(random, most=lambda _, m, n: min(m, n))}
